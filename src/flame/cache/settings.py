"""What a cache needs to know."""

from __future__ import annotations

from pathlib import Path

import msgspec

from flame.config import TlsConfig
from flame.link import Address


class CacheSettings(msgspec.Struct, frozen=True):
    """`location`: where it listens, `endpoint`: what references say; both `grpc://` or `grpc+tls://` HOST:PORT.

    `max_memory`, `max_disk`, `quotas` and `session_quota` (None: half of what there is) in bytes, `retention` in
    seconds. `peers`: endpoints of other caches whose objects are fetched for clients of this node. `object_store`: an
    URL of a place for what `max_disk` has no room for. `spill`: to `storage` goes only what memory has no room for. An
    `endpoint` `unix:PATH` is for clients of this user on this node; `listener` is the descriptor of that socket if
    somebody listens already. `door`: folder of the unix socket for clients of this node. `manager`: where the session
    manager's link listens, with `manager_tls`; None: objects of closed sessions stay until somebody ends the session
    here.
    """

    location: str
    endpoint: str
    max_memory: int = 1024**3
    max_objects: int | None = None
    evict: bool = True
    storage: Path | None = None
    spill: bool = False
    max_disk: int | None = None
    object_store: str = ""
    quotas: dict[str, int] = {}
    session_quota: int | None = None
    retention: float = 3600.0
    peers: tuple[str, ...] = ()
    tls: TlsConfig | None = None
    verify_clients: bool = False
    door: Path | None = None
    listener: int | None = None
    manager: Address | None = None
    manager_tls: TlsConfig | None = None

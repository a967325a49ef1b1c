"""The object cache for instances that can't reach it: behind an isolation level they ask their executor manager, which
looks whether they may, and does it for them. Each has a door (relay_door.py); all share one way to the cache.
"""

from __future__ import annotations

import importlib
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from flame.config import TlsConfig
from flame.model.errors import InvalidConfigError, UnavailableError
from flame.node.relay_door import RelayDoor
from flame.node.settings import NodeSettings

if TYPE_CHECKING:
    from flame.objects.links import Link


class ObjectRelay:
    """The way of a node's instances to the cache at `endpoint`. `folder` has a short path and is for sockets."""

    def __init__(self, endpoint: str, tls: TlsConfig | None, folder: Path) -> None:
        self._endpoint = endpoint
        self._tls = tls
        self._folder = folder
        self._number = 0
        self._lock = threading.Lock()  # of whoever makes the connection
        self._closed = False
        self._link: Link | None = None
        self._name = ""

    def open(self, application: str) -> RelayDoor:
        """A door for one instance. Raises OSError."""
        self._number += 1
        return RelayDoor(self, self._folder / f"{self._number:x}.objects", application)

    def close(self) -> None:
        """End the connections to the cache. It does not wait for who makes one, which may take long where the host of
        the cache hangs."""
        self._closed = True
        link = self._link
        if link is not None:
            link.close()

    def cache(self) -> tuple[Link, str]:
        """The way to the cache, and what it calls itself. Blocks; raises FlameError."""
        with self._lock:
            link = self._link
            if link is None:
                link = self._link = _link_to(self._endpoint, self._tls)
            if not self._name and not self._closed:
                self._name = link.endpoint()
            if self._closed:
                link.close()
                raise UnavailableError("this node stops, and passes on nothing to the object cache any more")
            return link, self._name

    def origin(self, endpoint: str) -> str:
        """Which cache to name to this node's own for an object at an endpoint: empty for that itself."""
        if not endpoint:
            return ""
        from flame.objects.remote import same_cache

        return "" if same_cache(endpoint, (self._endpoint, self.cache()[1])) else endpoint


def open_relay(settings: NodeSettings, folder: Path) -> ObjectRelay | None:
    """The relay of a node, None where it has no cache. To a cache that wants certificates it shows its own."""
    if not settings.cache_endpoint:
        return None
    tls = settings.tls
    if settings.cache_ca_file:
        tls = msgspec.structs.replace(tls or TlsConfig(), ca_file=Path(settings.cache_ca_file))
    return ObjectRelay(settings.cache_endpoint, tls, folder)


def _link_to(endpoint: str, tls: TlsConfig | None) -> Link:
    try:
        links: Any = importlib.import_module("flame.objects.links")
        remote: Any = importlib.import_module("flame.objects.remote")
    except ModuleNotFoundError as error:
        raise InvalidConfigError(
            f"objects need the package {error.name} on the node", remedy="pip install flame-engine[cache]"
        ) from error
    return links.Link(remote.location(endpoint), tls)

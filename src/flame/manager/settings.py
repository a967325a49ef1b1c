"""What a session manager is told at its start."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from flame.config import TlsConfig
from flame.config.cluster import DEFAULT_POLICIES
from flame.link import DEFAULT_MAX_PAYLOAD, Address
from flame.model.resources import Resources
from flame.model.specs import UNIT
from flame.model.tenants import TenantSpec


class ManagerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where to listen and how to behave.

    `links` are addresses of the framed link, `frontend` and `backend` of gRPC (`host:port` or `unix:/path`; None = no
    gRPC, which saves its memory), `http` of probes and metrics (`host:port`; None = none). `endpoint` is the URL that
    clients are told. `max_payload` in bytes, `heartbeat` in seconds, `drain_ms` and `retention_s` as in EngineSettings.
    `storage` as in `journal.open_journal`. `policies` are names of the scheduler's, in their order; `tenants` are made
    or updated at the start, parents before those below them; what follows is as in EngineSettings.
    """

    name: str = "flame"
    links: Sequence[Address] = ()
    frontend: str | None = None
    backend: str | None = None
    http: str | None = None
    endpoint: str = ""
    storage: str = "none"
    resreq: Resources = UNIT
    tls: TlsConfig | None = None
    insecure: bool = False
    max_payload: int = DEFAULT_MAX_PAYLOAD
    retry_limits: int = 5
    max_kills: int = 3
    max_sessions: int | None = None
    retention_s: int = 86_400
    drain_ms: int = 30_000
    heartbeat: float = 5.0
    policies: tuple[str, ...] = DEFAULT_POLICIES
    tenants: tuple[tuple[str, TenantSpec], ...] = ()
    preemption_grace_ms: int = 30_000
    unsatisfiable_ms: int = 60_000
    gang_ports: tuple[int, int] = (29_500, 30_499)
    max_pending: int = 0

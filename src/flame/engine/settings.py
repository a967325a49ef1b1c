"""What the engine decides by."""

from __future__ import annotations

import msgspec

from flame.model.resources import Resources
from flame.model.specs import UNIT


class EngineSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine decides by. Times in milliseconds unless the name says seconds."""

    resreq: Resources = UNIT  # of a session that asks for nothing
    retry_limits: int = 5  # bind failures in a row before a session gets no more executors
    max_kills: int = 3  # instances that one task may take down
    drain_ms: int = 30_000  # how long a node may be away before its executors count as lost
    retention_s: int = 86_400  # how long a closed session stays readable
    max_sessions: int | None = None  # closed sessions beyond this many in all leave early, oldest first
    max_pending: int = 0  # pending tasks of one session, 0 = no limit
    stop_grace_ms: int = 5_000  # for an instance to leave its session
    policies: tuple[str, ...] = ("drf", "priority", "gang", "locality", "binpack")  # of the scheduler, in their order
    preemption_grace_ms: int = 30_000  # for running tasks on an executor that is taken back
    unsatisfiable_ms: int = 60_000  # after so long, tasks fail that no node could ever run
    gang_ports: tuple[int, int] = (29_500, 30_499)  # first and last port handed out to members of gangs
    doors: tuple[tuple[str, int], ...] = ()  # listeners that take whoever comes from this machine for an administrator

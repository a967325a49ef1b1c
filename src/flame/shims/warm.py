"""Instances that are started ahead: which are alike, how many are kept. Only the rules; pool.py carries them out."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from flame.model.isolation import isolated
from flame.proto import shim_pb2, types_pb2
from flame.shims.shim import Launch

# Of an application's registration, what an instance shows nothing of before it enters a session.
_NO_MATTER = (
    "description",
    "labels",
    "schema",
    "max_instances",
    "delay_release",
    "start_timeout_ms",
    "warm_instances",
    "readable_objects",
)
_PAUSES = (1.0, 5.0, 25.0)


class WarmLimits(msgspec.Struct, frozen=True, kw_only=True):
    """`budget` is how many a node keeps of all its applications together; times are in seconds.

    `idle` is how long an application keeps its instances after its last executor started, `start_timeout` how long one
    may take to become ready, `terminate_grace` the time from SIGTERM to SIGKILL.
    """

    budget: int
    idle: float
    start_timeout: float
    terminate_grace: float


def recipe(launch: Launch) -> bytes | None:
    """The same for launches that start the same program in the same way; None when it can't be started ahead, because
    its environment depends on the executor: GPUs, a place in a gang."""
    if launch.devices or launch.context.HasField("gang"):
        return None
    application = types_pb2.ApplicationSpec()
    application.CopyFrom(launch.application)
    for field in _NO_MATTER:
        application.ClearField(field)
    parts = (application, launch.context.application)
    package = launch.package.identity if launch.package is not None else ""  # what its address names may change
    # Its limits come from there; elsewhere an instance sees nothing of it.
    resreq = launch.resreq if isolated(launch.application.isolation) else None
    size = (resreq.cpu, resreq.memory) if resreq is not None else ()
    return msgspec.msgpack.encode([package, size, *(part.SerializeToString(deterministic=True) for part in parts)])


def ahead(launch: Launch, identity: str, token: str) -> Launch:
    """The launch of an instance like this one, without anything of its session."""
    context = shim_pb2.SessionContext(application=launch.context.application)
    return msgspec.structs.replace(launch, executor_id=identity, token=token, context=context)


def allot(wishes: Iterable[int], budget: int) -> list[int]:
    """How many each application may keep, the one that comes first before all others."""
    given: list[int] = []
    for wish in wishes:
        given.append(min(wish, budget))
        budget -= given[-1]
    return given


def pause_after(deaths: int) -> float | None:
    """Seconds until a further one is started after so many of an application died waiting, one after another; None =
    not before the application is used again."""
    return _PAUSES[deaths - 1] if deaths <= len(_PAUSES) else None

"""How a sandbox is asked for: the attributes of its session, and what can't be asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta

from flame.client.snapshot import SessionSnapshot
from flame.client.values import ResourceRequirement, SessionAttributes, short_name
from flame.model.errors import FlameError, InvalidArgumentError, NotFoundError, TimedOutError, UnavailableError
from flame.model.isolation import Limits
from flame.model.specs import TaskOptions
from flame.proto.values import limits_of
from flame.sandbox import wire
from flame.sandbox.arguments import check_env, check_timeout
from flame.sandbox.snapshot import Snapshot

RETENTION = 3600  # seconds that a closed sandbox is remembered, so that it can be told why it was closed
PREFIX = "sandbox"


def attributes(
    *,
    isolation: str,
    network: str | Sequence[str],
    limits: Limits | None,
    resreq: ResourceRequirement | str | None,
    idle_timeout: float | timedelta | None,
    labels: Mapping[str, str] | None,
    tenant: str,
    readable_objects: Sequence[str] = (),
) -> SessionAttributes:
    """The session of a new sandbox. Raises InvalidArgumentError."""
    if isolation in ("", "none") and network != "host":
        raise InvalidArgumentError(
            "a sandbox with isolation none can't be kept off the network",
            remedy="give it isolation, or say network='host'",
        )
    seconds = idle_timeout.total_seconds() if isinstance(idle_timeout, timedelta) else idle_timeout
    if seconds is not None and not (isinstance(seconds, (int, float)) and seconds >= 1):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidArgumentError(f"idle_timeout must be at least 1 second, or None, not {idle_timeout!r}")
    return replace(
        _any_sandbox(),
        resreq=resreq,
        labels=dict(labels or {}),
        tenant=tenant,
        isolation=isolation,
        limits=limits,
        network=network,
        idle_timeout=None if seconds is None else round(seconds),
        readable_objects=readable_objects,
    )


def attributes_like(session: SessionSnapshot) -> SessionAttributes:
    """The session of a sandbox that is to be like this one."""
    spec = session.message.spec
    return replace(
        _any_sandbox(),
        resreq=session.resreq,
        labels=session.labels,
        tenant=session.tenant,
        isolation=spec.isolation,
        limits=limits_of(spec.limits),
        network=spec.network,
        idle_timeout=spec.idle_timeout_s,
        readable_objects=spec.readable_objects,
    )


def _any_sandbox() -> SessionAttributes:
    """What is the same for all."""
    return SessionAttributes(
        application=wire.APPLICATION,
        id=short_name(PREFIX, 12),
        common_data=wire.common_data(),
        min_instances=1,
        max_instances=1,
        task_defaults=TaskOptions(max_retries=0),
        retention=RETENTION,
    )


def beginning(attrs: SessionAttributes, env: Mapping[str, str] | None) -> bytes:
    """The input of the first task of a sandbox's session. Raises InvalidArgumentError."""
    return wire.encode_call(wire.Begin(check_env(env), alone=attrs.isolation not in ("", "none")))


def check_begin(snapshot: object, timeout: object) -> None:
    """Raises InvalidArgumentError for what no sandbox can begin with, and for no time to wait for it."""
    check_timeout(timeout)
    if snapshot is not None and not isinstance(snapshot, Snapshot):
        raise InvalidArgumentError(f"this is no snapshot: {snapshot!r}", remedy="Snapshot.load reads one from a file")


def check_begun(output: bytes | None) -> None:
    """Raises the fault of a sandbox that did not begin."""
    answer = wire.decode_answer(output, wire.Begun)
    if isinstance(answer, wire.Fault):
        raise answer.error()


def unknown(sandbox_id: str) -> NotFoundError:
    return NotFoundError(f"there is no sandbox {sandbox_id!r}", remedy="those that were closed long ago are forgotten")


def check_session(session: SessionSnapshot) -> None:
    """Raises InvalidArgumentError for a session that is no sandbox."""
    if session.application != wire.APPLICATION or not wire.is_sandbox(session.common_data()):
        raise InvalidArgumentError(
            f"session {session.id} is no sandbox", remedy="open what Sandbox.create has made, by its id"
        )


def not_started(session: SessionSnapshot, error: FlameError, timeout: float) -> FlameError:
    """Why a new sandbox did not begin."""
    reason = session.pending_reason or error.message
    if isinstance(error, TimedOutError):
        return TimedOutError(f"the sandbox did not start within {timeout:g} s: {reason}", remedy=error.remedy)
    return UnavailableError(f"the sandbox did not start: {error.message}", remedy=error.remedy, retryable=False)

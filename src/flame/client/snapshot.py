"""A session as it was when it was asked for: what `Session` and `AsyncSession` have in common."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, TypedDict, Unpack, cast

from flame.client.values import Event, ResourceRequirement
from flame.client.wire import events_of, options_to, resources_from, time_of, time_or_none
from flame.model.errors import InvalidArgumentError
from flame.model.specs import TaskOptions
from flame.model.states import SessionState
from flame.model.task_options import MAX_MS
from flame.objects.parcels import opened
from flame.proto import types_pb2 as ty

_MAX_OPTIONS = 256


class TaskArguments(TypedDict, total=False):
    """Options of a task. All times are seconds or a timedelta.

    `run_timeout` is for one attempt; `deadline` from acceptance to the end, over all attempts: a task past it fails.
    `max_retries` further attempts after a failure, the first after `retry_delay`, which doubles with each one up to
    `retry_max_delay` (a minute unless given). `priority` inside the session, larger first. Of the tasks with one `key`,
    only as many run at a time as the session's max_running_per_key says. `labels`. An `idempotency_key` names the task
    in its session: whoever submits with the same one gets the same task.
    """

    run_timeout: float | timedelta | None
    max_retries: int | None
    priority: int
    labels: dict[str, str]
    idempotency_key: str
    deadline: float | timedelta | None
    retry_delay: float | timedelta | None
    retry_max_delay: float | timedelta | None
    key: str


class SessionSnapshot:
    """State and counters of a session; `refresh()` reads them anew.

    `executors` hold it now, `wanted` it could use; `pending_reason` says why it gets no (further) one and is empty when
    nothing is wanting, `pending_since` since when.

    `cpu_seconds`, `peak_memory` (bytes, of the largest) and `written` (bytes in logs) are what its instances used that
    ended since the session manager started, where control groups counted it; `sent` and `received` are bytes of their
    network, where that is a list.
    """

    def __init__(self, message: ty.Session) -> None:
        self._options: dict[object, ty.TaskOptions] = {}
        self._load(message)

    def _load(self, message: ty.Session) -> None:
        self.message = message
        spec, status = message.spec, message.status
        self.id = message.metadata.id
        self.application = spec.application
        self.state = SessionState(status.state)
        self.creation_time = time_of(status.creation_time)
        self.completion_time = time_of(status.completion_time) if status.HasField("completion_time") else None
        self.pending = status.pending
        self.running = status.running
        self.succeed = status.succeed
        self.failed = status.failed
        self.cancelled = status.cancelled
        self.executors = status.executors
        self.wanted = status.wanted
        self.pending_reason = status.pending_reason
        self.pending_since: datetime | None = time_or_none(status.pending_since)
        self.cpu_seconds = status.cpu_ms / 1000
        self.peak_memory = status.peak_memory
        self.written = status.written
        self.sent = status.sent
        self.received = status.received
        self.events: list[Event] = events_of(status.events)
        self.min_instances = spec.min_instances
        self.max_instances: int | None = spec.max_instances if spec.HasField("max_instances") else None
        self.priority = spec.priority
        self.tenant = spec.tenant
        self.gang = spec.gang
        self.labels = dict(spec.labels)
        self.resreq: ResourceRequirement = resources_from(spec.resreq)
        self._common_data: bytes | None = spec.common_data if spec.HasField("common_data") else None

    def common_data(self) -> bytes | None:
        """What the session's services get when they enter it; None when there is none. What was too large for the
        cluster is fetched from the object cache. Raises FlameError when that can't be."""
        return None if self._common_data is None else opened(self._common_data)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} of {self.application}, {self.state.name.lower()}>"

    def options(self, **arguments: Unpack[TaskArguments]) -> ty.TaskOptions | None:
        """The wire form of task options, the same object for the same options. Raises InvalidArgumentError."""
        if not arguments:
            return None
        unknown = arguments.keys() - TaskArguments.__annotations__.keys()
        if unknown:
            hint = "run_timeout limits its run, result(timeout) the waiting" if "timeout" in unknown else ""
            known = ", ".join(TaskArguments.__annotations__)
            raise InvalidArgumentError(f"a task has no option {min(unknown)!r}", remedy=hint or f"it has {known}")
        try:
            labels = arguments.get("labels", {})
            key = (tuple(labels.items()), *((name, value) for name, value in arguments.items() if name != "labels"))
            known = self._options.get(key)
            if known is not None:
                return known
            made = options_to(
                TaskOptions(
                    timeout_ms=milliseconds("run_timeout", arguments.get("run_timeout")),
                    max_retries=arguments.get("max_retries"),
                    priority=arguments.get("priority", 0),
                    idempotency_key=arguments.get("idempotency_key", ""),
                    labels=labels,
                    deadline_ms=milliseconds("deadline", arguments.get("deadline")),
                    retry_delay_ms=milliseconds("retry_delay", arguments.get("retry_delay"), least=0),
                    retry_max_delay_ms=milliseconds("retry_max_delay", arguments.get("retry_max_delay"), least=0),
                    key=arguments.get("key", ""),
                )
            )
        except (TypeError, ValueError, OverflowError, AttributeError) as error:
            raise InvalidArgumentError(f"invalid task options {arguments!r}: {error}") from error
        if len(self._options) >= _MAX_OPTIONS:
            self._options.clear()
        self._options[key] = made
        return made


def milliseconds(name: str, value: float | timedelta | None, *, least: int = 1) -> int:
    """A span of time as whole milliseconds, at least `least` of them; None = 0. Raises InvalidArgumentError."""
    if value is None:
        return 0
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if not 0 <= seconds <= MAX_MS / 1000 or (least and not seconds):
        raise InvalidArgumentError(
            f"{name} must be {'over' if least else 'at least'} 0 and at most {MAX_MS // 1000} seconds, not {value!r}"
        )
    return max(1, round(seconds * 1000)) if seconds else 0


def payload_of(value: Any) -> bytes | None:
    """A task's input as it is sent: bytes, or None for none. Raises InvalidArgumentError."""
    if value is None or type(value) is bytes:
        return value
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(cast("bytes", value))
    raise InvalidArgumentError(f"the input of a task must be bytes, not {type(value).__name__}")

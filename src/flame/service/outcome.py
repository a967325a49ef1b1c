"""What tasks came to, collected in the columns of a wire Results; and what to tell about an exception."""

from __future__ import annotations

import os
import sys

from flame.objects import parcels
from flame.proto import link_pb2, types_pb2
from flame.service.api import TaskFailure

FAILED = types_pb2.Failed
CANCELLED = types_pb2.Cancelled
CODE = -1  # the return code of every failure that an exception caused
_MAX_TEXT = 64 * 1024
_MAX_DETAILS = 256 * 1024
# Results are flushed before they grow over this: a frame must hold one payload of the largest size beside them.
FULL = 256 * 1024


class Outcomes:
    """Results that were not sent yet. `max_payload` is the largest output in bytes."""

    def __init__(self, max_payload: int) -> None:
        self.max_payload = max_payload
        self._parcel_from = parcels.limit_of(max_payload)
        self._clear()

    def _clear(self) -> None:
        self._ids: list[int] = []
        self._outputs: list[bytes] = []
        self._absent: list[int] = []
        self._failures: list[link_pb2.Failure] = []
        self._attempts: dict[int, int] = {}  # by index, those that are not 1
        self.size = 0

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, task_id: int, attempt: int, output: object) -> None:
        """What the handler returned. Anything but bytes and None is a failure, and so is too much."""
        if type(output) is bytes and len(output) <= self._parcel_from:
            self._add(task_id, attempt, output)
        elif output is None:
            self._absent.append(len(self._ids))
            self._add(task_id, attempt, b"")
        else:
            self._add_other(task_id, attempt, output)

    def _add(self, task_id: int, attempt: int, output: bytes) -> None:
        self.size += len(output)
        self._outputs.append(output)
        if attempt != 1:
            self._attempts[len(self._ids)] = attempt
        self._ids.append(task_id)

    def _add_other(self, task_id: int, attempt: int, output: object) -> None:
        """What is large, what is a subclass of bytes, and what is no output at all."""
        try:
            output = sendable(output, self._parcel_from)
        except Exception as error:
            self.fail_with(task_id, attempt, error)
            return
        fault = output_fault(output, self.max_payload)
        if fault:
            self.fail(task_id, attempt, fault)
        else:
            self._add(task_id, attempt, bytes(output))  # pyright: ignore[reportArgumentType] - it is bytes of some kind

    def fail(
        self,
        task_id: int,
        attempt: int,
        message: str,
        traceback: str = "",
        *,
        state: types_pb2.TaskState = FAILED,
        retryable: bool = False,
        details: bytes = b"",
    ) -> None:
        """The task failed or was cancelled; `retryable` when a further attempt may help."""
        index = len(self._ids)
        failure = link_pb2.Failure(
            index=index,
            state=state,
            code=CODE,
            message=message[:_MAX_TEXT],
            traceback=traceback[-_MAX_TEXT:],
            retryable=retryable,
            details=details if len(details) <= _MAX_DETAILS else b"",
        )
        self._failures.append(failure)
        self._absent.append(index)
        self._outputs.append(b"")
        if attempt != 1:
            self._attempts[index] = attempt
        self._ids.append(task_id)
        self.size += len(failure.message) + len(failure.traceback) + len(failure.details)

    def fail_with(self, task_id: int, attempt: int, error: BaseException) -> None:
        """The handler raised this."""
        if isinstance(error, TaskFailure):
            self.fail(task_id, attempt, error.message, error.traceback, details=error.details)
        else:
            self.fail(task_id, attempt, describe(error), format_traceback(error))

    def stop(self, task_id: int, attempt: int, reason: str, *, timed_out: bool) -> None:
        """The task ended because it was told to: its time was over, or it was cancelled."""
        if timed_out:
            self.fail(task_id, attempt, reason, retryable=True)
        else:
            self.fail(task_id, attempt, reason or "the task was cancelled", state=CANCELLED)

    def take(self, busy_us: int) -> bytes:
        """All of it as a wire Results, and start anew. `busy_us` is the run time of these tasks together."""
        results = link_pb2.Results(
            task_ids=self._ids,
            outputs=self._outputs,
            absent=self._absent,
            failures=self._failures,
            busy_us=busy_us,
        )
        if self._attempts:
            results.attempts.extend(self._attempts.get(index, 1) for index in range(len(self._ids)))
        self._clear()
        return results.SerializeToString()


def describe(error: BaseException) -> str:
    """The exception's text; its type's name when it has none, or when making the text fails."""
    try:
        return str(error) or type(error).__name__
    except Exception:
        return type(error).__name__


def format_traceback(error: BaseException) -> str:
    """The traceback as Python prints it, without the frame of our own that called the handler."""
    import traceback

    if error.__traceback__ is not None:
        error = error.with_traceback(error.__traceback__.tb_next or error.__traceback__)
    return "".join(traceback.format_exception(error))


def log_traceback(error: BaseException) -> None:
    """Write to the instance's log where an exception happened whose message alone is told."""
    sys.stderr.write(format_traceback(error))
    sys.stderr.flush()


def sendable(output: object, parcel_from: int) -> object:
    """What a handler returned, or a parcel for it if it is over `parcel_from` bytes and there is an object cache.

    Raises FlameError."""
    if isinstance(output, bytes) and len(output) > parcel_from and parcels.possible(_cluster()):
        return parcels.pack(os.environ.get("FLAME_SESSION_ID", ""), bytes(output), _cluster())
    return output


def _cluster() -> str:
    return os.environ.get("FLAME_ENDPOINT", "")


def output_fault(output: object, max_payload: int) -> str:
    """What is wrong with what on_task_invoke returned; empty when nothing is."""
    if output is None:
        return ""
    if isinstance(output, bytes):
        if len(output) <= max_payload:
            return ""
        return (
            f"the output of {len(output)} bytes is over the limit of {max_payload} bytes (cluster.limits.max_payload)"
        )
    kind = type(output).__name__
    if hasattr(output, "__await__"):
        return f"on_task_invoke returned a {kind} that nothing awaits; define the handler itself with `async def`"
    return f"on_task_invoke must return bytes or None, not {kind}"

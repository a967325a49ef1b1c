"""From a Results message to the values that futures and iterators get."""

from __future__ import annotations

from flame.client.futures import CancelledTaskError, Settled
from flame.client.gather import MISSING, Missing
from flame.model.errors import FlameError, TaskFailedError
from flame.model.states import EventCode, TaskState
from flame.model.task_options import after_attempts
from flame.proto import link_pb2
from flame.proto import types_pb2 as ty


def failure(message: link_pb2.Failure) -> FlameError:
    """The error for a task that did not succeed. A remote traceback shows where Python prints the error."""
    if message.state == TaskState.CANCELLED:
        return CancelledTaskError(message.message or "the task was cancelled")
    error = TaskFailedError(message.message or "the task failed without a message", retryable=message.retryable)
    error.traceback = message.traceback
    error.details = message.details
    if message.traceback:
        error.add_note(f"\nThe service's traceback:\n{message.traceback.rstrip()}")
    return error


def values_of(results: link_pb2.Results) -> tuple[list[Settled], bool]:
    """The values of a Results' tasks in its order, and whether all of them are outputs."""
    values: list[Settled] = list(results.outputs)
    missing = len(results.task_ids) - len(values)
    if missing > 0:
        values += [None] * missing
    for index in results.absent:
        values[index] = None
    for message in results.failures:
        if results.attempts and message.state != TaskState.CANCELLED:
            message.message = after_attempts(message.message, results.attempts[message.index])
        values[message.index] = failure(message)
    return values, not results.failures


def outcome_of(task: ty.Task) -> Settled | Missing:
    """The value of a task as GetTask and WatchTask show it; MISSING while it has not ended."""
    state = TaskState(task.status.state)
    if state is TaskState.SUCCEED:
        return task.spec.output if task.spec.HasField("output") else None
    if not state.terminal:
        return MISSING
    code = EventCode.CANCELLED if state is TaskState.CANCELLED else EventCode.FAILED
    texts = [event.message for event in task.status.events if event.code == code and event.message]
    return failure(link_pb2.Failure(state=ty.TaskState.Name(state), message=texts[-1] if texts else ""))

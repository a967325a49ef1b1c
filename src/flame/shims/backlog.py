"""Tasks of an instance that knows no queue of its own: those that wait for it, and what came of the others."""

from __future__ import annotations

from collections import deque
from itertools import repeat
from typing import NamedTuple

from flame.proto import link_pb2, types_pb2

FAILED = -1


class Waiting(NamedTuple):
    """A task that is not begun. `data` None = it has no input."""

    task_id: int
    data: bytes | None
    attempt: int


class Backlog:
    """What waits, in order. `size` is that of its inputs, in bytes."""

    def __init__(self) -> None:
        self._waiting: deque[Waiting] = deque()
        self.size = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, body: bytes) -> None:
        """All tasks of a wire Tasks."""
        tasks = link_pb2.Tasks.FromString(body)
        inputs: list[bytes | None] = list(tasks.inputs)
        for index in tasks.absent:
            inputs[index] = None
        self.size += sum(map(len, filter(None, inputs)))
        self._waiting.extend(map(Waiting, tasks.task_ids, inputs, tasks.attempts or repeat(1)))

    def take(self) -> Waiting:
        """The next one."""
        return self._left(self._waiting.popleft())

    def cancelled(self, cancel: link_pb2.Cancel) -> Answers:
        """Remove those that a Cancel names; their answers."""
        answers = Answers()
        kept: deque[Waiting] = deque()
        for task in self._waiting:
            if names(cancel, task.task_id):
                self._left(task)
                answers.stopped(task.task_id, task.attempt, cancel)
            else:
                kept.append(task)
        self._waiting = kept
        return answers

    def retracted(self, body: bytes, running: int) -> bytes:
        """Give back the last ones until no more than a wire Retract says are here, those that run included; a wire
        Retracted."""
        keep = link_pb2.Retract.FromString(body).keep
        given: list[int] = []
        while self._waiting and len(self._waiting) + running > keep:
            given.append(self._left(self._waiting.pop()).task_id)
        given.reverse()
        return link_pb2.Retracted(task_ids=given).SerializeToString()

    def clear(self) -> None:
        self._waiting.clear()
        self.size = 0

    def _left(self, task: Waiting) -> Waiting:
        self.size -= len(task.data or b"")
        return task


class Answers:
    """The columns of a wire Results while they are filled."""

    def __init__(self) -> None:
        self._results = link_pb2.Results()
        self._attempts: list[int] = []

    def __len__(self) -> int:
        return len(self._attempts)

    def succeeded(self, task_id: int, attempt: int, output: bytes | None, limit: int) -> None:
        """This came out, unless it is larger than `limit` bytes."""
        if output is not None and len(output) > limit:
            self.failed(task_id, attempt, FAILED, too_large(len(output), limit))
            return
        if output is None:
            self._results.absent.append(len(self._attempts))
        self._results.task_ids.append(task_id)
        self._results.outputs.append(output or b"")
        self._attempts.append(attempt)

    def failed(
        self, task_id: int, attempt: int, code: int, message: str, *, retryable: bool = False, traceback: str = ""
    ) -> None:
        self._fail(task_id, attempt, code, message, types_pb2.Failed, retryable=retryable).traceback = traceback

    def stopped(self, task_id: int, attempt: int, cancel: link_pb2.Cancel) -> None:
        """It ended as it was told to."""
        state = types_pb2.Failed if cancel.timed_out else types_pb2.Cancelled
        self._fail(task_id, attempt, FAILED, cancel.reason, state, retryable=cancel.timed_out)

    def _fail(
        self, task_id: int, attempt: int, code: int, message: str, state: types_pb2.TaskState, *, retryable: bool
    ) -> link_pb2.Failure:
        index = len(self._attempts)
        self._results.task_ids.append(task_id)
        self._results.outputs.append(b"")
        self._results.absent.append(index)
        self._attempts.append(attempt)
        return self._results.failures.add(index=index, state=state, code=code, message=message, retryable=retryable)

    def wire(self, busy_us: int = 0) -> bytes:
        """All of them as a wire Results; `busy_us` is their run time in microseconds."""
        if any(attempt != 1 for attempt in self._attempts):
            self._results.attempts.extend(self._attempts)
        self._results.busy_us = busy_us
        return self._results.SerializeToString()


def names(cancel: link_pb2.Cancel, task_id: int) -> bool:
    """Whether a Cancel names this task."""
    return any(wanted.first <= task_id <= wanted.last for wanted in cancel.task_ids)


def too_large(size: int, limit: int, *, at_least: bool = False) -> str:
    """Why an output of `size` bytes is not taken; `at_least`: more would have come."""
    beginning = f"the output is larger than {size} bytes, over" if at_least else f"the output of {size} bytes is over"
    return f"{beginning} the limit of {limit} bytes (cluster.limits.max_payload)"

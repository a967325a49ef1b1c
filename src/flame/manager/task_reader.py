"""Tasks as messages: what the engine knows of them, with payloads and failure texts from their bodies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence

from flame.engine.views import TaskView
from flame.manager import wire
from flame.manager.payloads import Bodies, Payloads
from flame.manager.turns import Turns
from flame.model.states import TaskState
from flame.proto import link_pb2, types_pb2

# Tasks are read in blocks: so many of them, or as many as lie in so many bodies, since each body may be large.
BLOCK_TASKS = 128
BLOCK_BODIES = 16


class TaskReader:
    """Builds Task messages. Nothing is shown as ended before that is durable."""

    def __init__(self, turns: Turns, payloads: Payloads) -> None:
        self._turns = turns
        self._payloads = payloads

    async def read(self, view: TaskView, *, payloads: bool = True) -> types_pb2.Task:
        """One task. Raises ReadOnlyError when its end could not be made durable, JournalError for damaged bodies."""
        (message,) = await self._messages([view], payloads)
        return message

    async def stream(self, views: Iterable[TaskView], *, payloads: bool = True) -> AsyncIterator[types_pb2.Task]:
        """Many tasks, a block at a time."""
        block: list[TaskView] = []
        bodies: set[int] = set()
        for view in views:
            block.append(view)
            if payloads:
                bodies.update((view.input_seq, view.output_seq))
            if len(block) >= BLOCK_TASKS or len(bodies) >= BLOCK_BODIES:
                for message in await self._messages(block, payloads):
                    yield message
                block, bodies = [], set()
                await asyncio.sleep(0)  # a long list must not hold up everybody else
        for message in await self._messages(block, payloads):
            yield message

    async def _messages(self, views: Sequence[TaskView], payloads: bool) -> list[types_pb2.Task]:
        await self._wait_until_durable(views)
        inputs = {view.input_seq for view in views} if payloads else set[int]()
        outputs = {view.output_seq for view in views if view.output_seq and (payloads or _unsuccessful(view))}
        bodies = await self._payloads.fetch(inputs | outputs)
        columns = _Columns(self._payloads, bodies)
        messages: list[types_pb2.Task] = []
        for view in views:
            task_input = columns.input_of(view) if payloads else None
            output, failure = columns.outcome_of(view) if view.output_seq in outputs else (None, "")
            if view.finish is not None:
                failure = view.finish.message
            message = wire.task_message(view, task_input, output if payloads else None, failure)
            if view.output_seq in outputs:
                columns.add_usage(message.status, view)
            messages.append(message)
        return messages

    async def _wait_until_durable(self, views: Sequence[TaskView]) -> None:
        last = max((view.output_seq for view in views), default=0)
        if self._turns.trouble is None and any(view.finish is not None for view in views):
            last = self._turns.engine.seq  # those ends have no record of their own to ask for
        await self._turns.durable(last)


class _Columns:
    """The columns of some bodies, found by task."""

    def __init__(self, payloads: Payloads, bodies: Bodies) -> None:
        self._payloads = payloads
        self._bodies = bodies
        self._absent: dict[int, frozenset[int]] = {}

    def input_of(self, view: TaskView) -> bytes | None:
        seq, index = view.input_seq, view.input_index
        submit = self._payloads.parsed_submit(seq, self._bodies.get(seq))
        if submit is None or self._is_absent(seq, submit, index):
            return None
        return submit.inputs[index]

    def outcome_of(self, view: TaskView) -> tuple[bytes | None, str]:
        """Output and failure text."""
        seq = view.output_seq
        results = self._payloads.parsed_results(seq, self._bodies.get(seq))
        index = _column_of(results, view.task_id) if results is not None else -1
        if results is None or index < 0:
            return None, ""
        output = None if self._is_absent(seq, results, index) else results.outputs[index]
        if _unsuccessful(view):
            failure = next((item.message for item in results.failures if item.index == index), "")
            return output, failure
        return output, ""

    def add_usage(self, status: types_pb2.TaskStatus, view: TaskView) -> None:
        """Its share of what its instance used, as far as that is known."""
        results = self._payloads.parsed_results(view.output_seq, self._bodies.get(view.output_seq))
        if results is None or not results.task_ids:
            return
        count = len(results.task_ids)
        status.cpu_us, status.peak_memory = results.cpu_us // count, results.peak_memory
        status.sent, status.received = results.sent // count, results.received // count

    def _is_absent(self, seq: int, message: link_pb2.Submit | link_pb2.Results, index: int) -> bool:
        if not message.absent:
            return False
        absent = self._absent.get(seq)
        if absent is None:
            absent = self._absent[seq] = frozenset(message.absent)
        return index in absent


def _unsuccessful(view: TaskView) -> bool:
    return view.state in (TaskState.FAILED, TaskState.CANCELLED)


def _column_of(results: link_pb2.Results, task_id: int) -> int:
    """The column of a task, -1 when it is not there. Ids are mostly neighbours."""
    ids = results.task_ids
    guess = task_id - ids[0] if ids else -1
    if 0 <= guess < len(ids) and ids[guess] == task_id:
        return guess
    return next((index for index, other in enumerate(ids) if other == task_id), -1)

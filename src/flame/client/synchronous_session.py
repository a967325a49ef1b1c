"""A session of the synchronous SDK, and the iterations over its tasks."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, Unpack

from flame.client.async_session import AsyncSession, check_window
from flame.client.background import Pull
from flame.client.feeding import Feeder
from flame.client.freeing import free
from flame.client.futures import TaskFuture
from flame.client.gather import MISSING, Gather
from flame.client.snapshot import SessionSnapshot, TaskArguments, payload_of
from flame.client.stream import TaskStream
from flame.client.values import Explanation, LogChunk, SessionUpdate, Task
from flame.model.errors import FlameError, TimedOutError
from flame.model.states import TaskState
from flame.objects.parcels import MARK, SIZE, opened

if TYPE_CHECKING:
    from flame.client.synchronous import Connection

_FETCH_AHEAD = 256


class Session(SessionSnapshot):
    """A session: where tasks are submitted. As a context manager it is closed at the end, after its tasks.

    Its state and counters are those of the moment when it was asked for; `refresh()` reads them anew.
    """

    def __init__(self, connection: Connection, session: AsyncSession) -> None:
        super().__init__(session.message)
        self.connection = connection
        self.asynchronous = session
        self._thread = connection.thread
        self._run = connection.thread.run
        self._stream: TaskStream | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.wait()
            self.close()
            return
        try:
            self.close(force=True)
        except FlameError:
            pass  # what ended the block is the news

    def refresh(self) -> None:
        """Read state and counters anew."""
        self._run(self.asynchronous.refresh())
        self._load(self.asynchronous.message)

    def close(self, *, force: bool = False) -> None:
        """Close the session for everybody; see Connection.close_session."""
        self._run(self.asynchronous.close(force=force))
        self._load(self.asynchronous.message)

    def wait(self) -> None:
        """Wait until all tasks that this connection submitted to the session have ended."""
        self._run(self.asynchronous.wait())

    # --- submitting --------------------------------------------------------------------------------------------------

    def _open_stream(self) -> TaskStream:
        async def find() -> TaskStream:
            return self.asynchronous.stream

        self._stream = self._run(find())
        return self._stream

    def task_stream(self) -> TaskStream:
        """What carries this session's tasks, for who makes futures of a type of his own."""
        stream = self._stream
        if stream is None or stream.error is not None:
            stream = self._open_stream()
        return stream

    def submit(self, input: bytes | None = None, **options: Unpack[TaskArguments]) -> TaskFuture:  # noqa: A002
        """Submit one task; never waits for the cluster. Raises TooLargeError, InvalidArgumentError."""
        stream = self.task_stream()
        future = TaskFuture(stream)
        if not options:
            stream.submit(payload_of(input), future, None)
        elif options.get("idempotency_key"):
            payload, made = payload_of(input), self.options(**options)
            self._thread.loop.call_soon_threadsafe(self.asynchronous.submit_keyed, future, payload, made)
        else:
            stream.submit(payload_of(input), future, self.options(**options))
        return future

    def run(self, input_data: bytes | None = None, **options: Unpack[TaskArguments]) -> TaskFuture:
        """The same as submit."""
        return self.submit(input_data, **options)

    def invoke(
        self,
        input_data: bytes | None = None,
        timeout: float | None = None,
        **options: Unpack[TaskArguments],
    ) -> bytes | None:
        """Submit one task and wait for its output; after `timeout` seconds the task is cancelled.

        Raises TaskFailedError, TaskCancelledError, TimedOutError.
        """
        future = self.submit(input_data, **options)
        try:
            return future.result(timeout)
        finally:
            future.cancel()  # does nothing when it has ended

    def map(
        self,
        inputs: Iterable[bytes | None],
        *,
        timeout: float | None = None,
        window: int | None = None,
        return_exceptions: bool = False,
        **options: Unpack[TaskArguments],
    ) -> Iterator[Any]:
        """Outputs of tasks with these inputs, in their order, as they come; the first tasks are submitted at once.

        The inputs may be endless: at most `window` tasks are submitted ahead of what was taken (fewer when they are
        large). `timeout` seconds after the call, results that are missing raise TimedOutError. A failed task raises
        its error, or with `return_exceptions` it is given in place of the output. When the iteration ends early, the
        tasks that have not ended are cancelled.
        """
        stream = self.task_stream()
        progress = threading.Event()
        gather = Gather(progress.set, check_window(window))
        feeder = Feeder(stream, gather, iter(inputs), self.options(**options))
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            feeder.feed(gather.room)
        except BaseException:
            stream.abandon(gather)
            raise
        results = _results(feeder, progress, deadline, return_exceptions)
        next(results)  # so that closing it does its work even when nobody ever takes a result
        return results

    def as_completed(self, futures: Iterable[TaskFuture], timeout: float | None = None) -> Iterator[TaskFuture]:
        """The futures in the order in which they end. Raises TimedOutError `timeout` seconds after the first step."""
        return as_completed(futures, timeout)

    # --- tasks -------------------------------------------------------------------------------------------------------

    def create_task(self, input_data: bytes | None, **options: Unpack[TaskArguments]) -> Task:
        """Make a task and do not wait for it; `watch_task` and `get_task` tell what becomes of it."""
        return self._run(self.asynchronous.create_task(input_data, **options))

    def get_task(self, task_id: str | int) -> Task:
        """A task with its input and output. Raises NotFoundError."""
        return self._run(self.asynchronous.get_task(task_id))

    def list_tasks(self, states: Sequence[TaskState] = (), *, without_payloads: bool = False) -> TaskIterator:
        """The session's tasks by id, all or those in one of the states."""
        tasks = self.asynchronous.list_tasks(states, without_payloads=without_payloads)
        return TaskIterator(self._thread, tasks, _FETCH_AHEAD)

    def watch_task(self, task_id: str | int, timeout: float | None = None) -> TaskWatcher:
        """The task now and after each change, until it has ended. Raises NotFoundError, TimedOutError."""
        return TaskWatcher(self._thread, self.asynchronous.watch_task(task_id, timeout))

    def watch(self) -> Pull[SessionUpdate]:
        """State and counters of the session now and after each change, until it is closed."""
        return Pull(self._thread, self.asynchronous.watch())

    def cancel(self, task_ids: Iterable[str | int] | None = None, *, reason: str = "") -> list[str]:
        """Cancel these tasks, or all of the session; answers the ids of those that had not ended."""
        return self._run(self.asynchronous.cancel(task_ids, reason=reason))

    def logs(
        self, *, executor_id: str = "", stream: str = "", follow: bool = False, tail_bytes: int = 0
    ) -> Pull[LogChunk]:
        """What the session's instances printed, also those that have ended: all of it or the last `tail_bytes` of each.

        `stream` is "stdout", "stderr" or empty for both; with `follow` it goes on until the session is closed.
        """
        return self.connection.logs(
            self.id, executor_id=executor_id, stream=stream, follow=follow, tail_bytes=tail_bytes
        )

    def explain(self, task_id: str | int = "") -> Explanation:
        """Why the session gets no (further) executor, or what happened to one of its tasks."""
        return self.connection.explain(self.id, str(task_id))


class TaskIterator(Pull[Task]):
    """The tasks of a session, fetched while they are iterated over."""


class TaskWatcher(Pull[Task]):
    """One task after each of its changes."""


def _results(
    feeder: Feeder, progress: threading.Event, deadline: float | None, return_exceptions: bool
) -> Generator[Any, None, None]:
    gather = feeder.gather
    take = gather.take
    try:
        yield None
        while True:
            value = take()
            if value is not MISSING:
                if isinstance(value, FlameError) and not return_exceptions:
                    raise value
                if type(value) is bytes and value[:SIZE] == MARK:
                    parcel, value = value, opened(value)
                    free(parcel)
                yield value
                if not feeder.exhausted and gather.room > 0:
                    feeder.feed(1)
                continue
            if feeder.exhausted and gather.consumed == gather.submitted:
                return
            if gather.error is not None:
                raise gather.error
            room = gather.room
            if room > 0 and feeder.feed(room):
                continue
            _wait(feeder, progress, deadline)
    finally:
        if gather.consumed < gather.submitted:
            feeder.stream.abandon(gather)


def _wait(feeder: Feeder, progress: threading.Event, deadline: float | None) -> None:
    """Wait for the next result, an error, or (while there are inputs left) for room."""
    gather = feeder.gather
    progress.clear()
    gather.starved = not feeder.exhausted
    gather.wanted = gather.consumed
    # Whoever announced itself looks again: what came in between did not wake it.
    if gather.consumed in gather.results or gather.error is not None:
        return
    if not feeder.exhausted and gather.room > 0:
        return
    if not progress.wait(None if deadline is None else max(0.0, deadline - time.monotonic())):
        raise feeder.stream.timed_out(f"the result of task {gather.consumed + 1} is missing when the time is over")


def as_completed(futures: Iterable[TaskFuture], timeout: float | None = None) -> Iterator[TaskFuture]:
    """The futures in the order in which they end. Raises TimedOutError when that takes more than `timeout` seconds."""
    ended: queue.SimpleQueue[TaskFuture] = queue.SimpleQueue()
    waiting = set(futures)
    tell: Callable[[Any], object] = ended.put
    for future in waiting:
        future.add_done_callback(tell)
    deadline = None if timeout is None else time.monotonic() + timeout
    for left in range(len(waiting), 0, -1):
        try:
            yield ended.get(timeout=None if deadline is None else max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            raise TimedOutError(f"{left} of {len(waiting)} tasks did not end within {timeout:g} s") from None

"""`AsyncSession`: tasks of one session for asyncio."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

from google.protobuf.message import Message

from flame.client import wire
from flame.client.feeding import Feeder
from flame.client.freeing import free
from flame.client.futures import TaskFuture, settle
from flame.client.gather import DEFAULT_WINDOW, MISSING, Gather, Missing
from flame.client.outcomes import outcome_of
from flame.client.snapshot import SessionSnapshot, TaskArguments, payload_of
from flame.client.stream import TaskStream
from flame.client.values import Explanation, LogChunk, SessionUpdate, Task, short_name
from flame.model.errors import (
    FlameError,
    InvalidArgumentError,
    InvalidStateError,
    NotFoundError,
    TimedOutError,
    UnavailableError,
)
from flame.model.states import TaskState
from flame.objects import parcels
from flame.proto import frontend_pb2 as fe
from flame.proto import types_pb2 as ty

if TYPE_CHECKING:
    from flame.client.async_connection import AsyncConnection

M = TypeVar("M", bound=Message)
_YIELD_EVERY = 512


class AsyncSession(SessionSnapshot):
    """A session: where tasks are submitted. As an async context manager it is closed at the end, after its tasks."""

    def __init__(self, connection: AsyncConnection, message: ty.Session) -> None:
        super().__init__(message)
        self.connection = connection
        self._stream: TaskStream | None = None
        self._keyed: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            await self.wait()
            await self.close()
            return
        try:
            await self.close(force=True)
        except FlameError:
            pass  # what ended the block is the news

    async def refresh(self) -> None:
        """Read state and counters anew."""
        request = fe.GetSessionRequest(session_id=self.id)
        self._load(await self._call("GetSession", request, ty.Session))

    async def close(self, *, force: bool = False) -> None:
        """Close the session for everybody; see AsyncConnection.close_session."""
        request = fe.CloseSessionRequest(session_id=self.id, force=force)
        self._load(await self._call("CloseSession", request, ty.Session))
        stream = self._stream
        if stream is not None:
            stream.when_idle(lambda: self.connection.uplink.release(stream))
        if parcels.had(self.id):
            await asyncio.to_thread(parcels.session_closed, self.id)

    async def wait(self) -> None:
        """Wait until all tasks that this connection submitted to the session have ended."""
        if self._keyed:
            await asyncio.wait(self._keyed)
        if self._stream is not None:
            ended = asyncio.Event()
            self._stream.when_idle(ended.set)
            await ended.wait()

    # --- submitting --------------------------------------------------------------------------------------------------

    @property
    def stream(self) -> TaskStream:
        """The stream that carries this session's tasks."""
        stream = self._stream
        if stream is None or stream.error is not None:
            stream = self._stream = self.connection.uplink.task_stream(self.id)
        return stream

    def submit(self, input: bytes | None = None, **options: Unpack[TaskArguments]) -> TaskFuture:  # noqa: A002
        """Submit one task; the future can be awaited. Raises TooLargeError, InvalidArgumentError."""
        stream = self.stream
        future = TaskFuture(stream)
        if options.get("idempotency_key"):
            self.submit_keyed(future, payload_of(input), self.options(**options))
        else:
            stream.submit(payload_of(input), future, self.options(**options) if options else None)
        return future

    run = submit

    async def invoke(
        self,
        input: bytes | None = None,  # noqa: A002
        timeout: float | None = None,
        **options: Unpack[TaskArguments],
    ) -> bytes | None:
        """Submit one task and wait for its output; after `timeout` seconds the task is cancelled.

        Raises TaskFailedError, TaskCancelledError, TimedOutError.
        """
        future = self.submit(input, **options)
        try:
            async with asyncio.timeout(timeout):
                return await future
        except TimeoutError as error:
            if isinstance(error, FlameError):
                raise
            text = f"the task did not end within {timeout:g} s and was cancelled"
            raise future._stream.timed_out(text) from None  # pyright: ignore[reportPrivateUsage]

    def map(
        self,
        inputs: Iterable[bytes | None] | AsyncIterable[bytes | None],
        *,
        timeout: float | None = None,
        window: int | None = None,
        return_exceptions: bool = False,
        **options: Unpack[TaskArguments],
    ) -> AsyncIterator[Any]:
        """Outputs of tasks with these inputs, in their order, as they come.

        The inputs may be endless: at most `window` tasks are submitted ahead of what was taken (fewer when they are
        large). `timeout` seconds after the call, results that are missing raise TimedOutError. A failed task raises
        its error, or with `return_exceptions` it is given in place of the output. When the iteration ends early, the
        tasks that have not ended are cancelled.
        """
        return self._map(inputs, timeout, window, return_exceptions, self.options(**options))

    async def _map(
        self,
        inputs: Iterable[bytes | None] | AsyncIterable[bytes | None],
        timeout: float | None,
        window: int | None,
        return_exceptions: bool,
        options: ty.TaskOptions | None,
    ) -> AsyncIterator[Any]:
        deadline = None if timeout is None else time.monotonic() + timeout
        progress = asyncio.Event()  # a result, or an error
        space = asyncio.Event()
        gather = Gather(lambda: (progress.set(), space.set()), check_window(window))
        stream = self.stream
        feeding = asyncio.get_running_loop().create_task(_feed(inputs, stream, gather, options, space))
        feeding.add_done_callback(lambda _: progress.set())
        try:
            while True:
                value = gather.take()
                if value is not MISSING:
                    if gather.room > 0:
                        space.set()
                    if isinstance(value, FlameError) and not return_exceptions:
                        raise value
                    if type(value) is bytes and value[: parcels.SIZE] == parcels.MARK:
                        parcel, value = value, await asyncio.to_thread(parcels.opened, value)
                        free(parcel)
                    yield value
                    continue
                if feeding.done():
                    feeding.result()  # raises what the inputs raised
                    if gather.consumed == gather.submitted:
                        return
                if gather.error is not None:
                    raise gather.error
                progress.clear()
                gather.wanted = gather.consumed
                try:
                    async with asyncio.timeout_at(_in_loop_time(deadline)):
                        await progress.wait()
                except TimeoutError:
                    raise stream.timed_out(f"results were missing after {timeout:g} s") from None
        finally:
            feeding.cancel()
            if gather.consumed < gather.submitted:
                stream.abandon(gather)

    async def as_completed(
        self, futures: Iterable[TaskFuture], timeout: float | None = None
    ) -> AsyncIterator[TaskFuture]:
        """The futures in the order in which they end. Raises TimedOutError `timeout` seconds after the first step."""
        async for future in as_completed(futures, timeout):
            yield future

    def submit_keyed(self, future: TaskFuture, payload: bytes | None, options: ty.TaskOptions | None) -> None:
        """A task with an idempotency key: it may be another client's, so its end is watched instead of delivered."""
        task = asyncio.get_running_loop().create_task(self._follow(future, payload, options))
        self._keyed.add(task)
        task.add_done_callback(self._keyed.discard)

    async def _follow(self, future: TaskFuture, payload: bytes | None, options: ty.TaskOptions | None) -> None:
        stream = self.stream
        stream.elsewhere(1)
        try:
            made = await self._create(payload, options)
            future._id = int(made.metadata.id)  # pyright: ignore[reportPrivateUsage]
            if future._cancel_wanted:  # pyright: ignore[reportPrivateUsage]
                stream.cancel(future)
            async for message in self._watch_messages(made.metadata.id):
                value = outcome_of(message)
                if not isinstance(value, Missing):
                    settle(stream.lock, (future,), (value,), plain=False)
                    return
            raise UnavailableError("the cluster stopped telling about the task")
        except FlameError as error:
            settle(stream.lock, (future,), (error,), plain=False)
        except asyncio.CancelledError:
            settle(stream.lock, (future,), (InvalidStateError("the connection was closed"),), plain=False)
            raise
        finally:
            stream.elsewhere(-1)

    # --- tasks -------------------------------------------------------------------------------------------------------

    async def create_task(self, input_data: bytes | None, **options: Unpack[TaskArguments]) -> Task:
        """Make a task and do not wait for it; `watch_task` and `get_task` tell what becomes of it."""
        options.setdefault("idempotency_key", short_name("once", 20))  # makes it safe to repeat
        payload = payload_of(input_data)
        address = self.connection.addr
        if payload and parcels.wanted(len(payload), self.connection.max_payload, address):
            payload = await asyncio.to_thread(parcels.pack, self.id, payload, address)
        message = await self._create(payload, self.options(**options))
        task = wire.task_from(message)
        task.session_id, task.input = self.id, input_data
        return task

    async def _create(self, payload: bytes | None, options: ty.TaskOptions | None) -> ty.Task:
        request = fe.CreateTaskRequest(task=ty.TaskSpec(session_id=self.id, input=payload, options=options))
        uplink = self.connection.uplink
        while True:
            try:
                return await self._call("CreateTask", request, ty.Task)
            except UnavailableError as error:
                if not uplink.broken(error):
                    raise

    async def get_task(self, task_id: str | int) -> Task:
        """A task with its input and output. Raises NotFoundError."""
        request = fe.GetTaskRequest(session_id=self.id, task_id=str(task_id))
        task = wire.task_from(await self._call("GetTask", request, ty.Task))
        task.input = await _opened(task.input)
        task.output = await _opened(task.output)
        return task

    async def list_tasks(
        self, states: Sequence[TaskState] = (), *, without_payloads: bool = False
    ) -> AsyncIterator[Task]:
        """The session's tasks by id, all or those in one of the states."""
        after = 0
        broke = False
        uplink = self.connection.uplink
        while True:
            request = fe.ListTaskRequest(
                session_id=self.id,
                states=[ty.TaskState.Name(state) for state in states],
                after_task_id=after,
                without_payloads=without_payloads,
            )
            try:
                async for message in uplink.stream("ListTask", request, ty.Task, again=broke):
                    after = int(message.metadata.id)
                    yield wire.task_from(message)
                return
            except UnavailableError as error:
                if not uplink.broken(error):
                    raise
                broke = True

    async def watch_task(self, task_id: str | int, timeout: float | None = None) -> AsyncIterator[Task]:
        """The task now and after each change, until it has ended. Raises NotFoundError, TimedOutError."""
        deadline = None if timeout is None else time.monotonic() + timeout
        messages = self._watch_messages(str(task_id))
        try:
            while True:
                try:
                    # Around each step: a deadline must not strike while the caller is at something else.
                    async with asyncio.timeout_at(_in_loop_time(deadline)):
                        message = await anext(messages, None)
                except TimeoutError as error:
                    if isinstance(error, FlameError):
                        raise
                    raise TimedOutError(f"task {task_id} did not end within {timeout:g} s") from None
                if message is None:
                    return
                yield wire.task_from(message)
        finally:
            await messages.aclose()

    async def _watch_messages(self, task_id: str) -> AsyncGenerator[ty.Task]:
        request = fe.WatchTaskRequest(session_id=self.id, task_id=task_id)
        uplink = self.connection.uplink
        last: tuple[int, int] | None = None
        broke = False
        while True:
            try:
                async for message in uplink.stream("WatchTask", request, ty.Task, again=broke):
                    now = (message.status.state, message.status.attempt)
                    if now != last:
                        yield message
                    last = now
                if last is not None and TaskState(last[0]).terminal:
                    return
            except UnavailableError as error:
                if not uplink.broken(error):
                    raise
                broke = True

    async def watch(self) -> AsyncIterator[SessionUpdate]:
        """State and counters of the session now and after each change, until it is closed."""
        request = fe.WatchSessionRequest(session_id=self.id)
        uplink = self.connection.uplink
        broke = False
        while True:
            try:
                async for message in uplink.stream("WatchSession", request, fe.SessionUpdate, again=broke):
                    yield wire.update_from(message)
                return
            except UnavailableError as error:
                if not uplink.broken(error):
                    raise
                broke = True

    async def cancel(self, task_ids: Iterable[str | int] | None = None, *, reason: str = "") -> list[str]:
        """Cancel these tasks, or all of the session; answers the ids of those that had not ended."""
        request = fe.CancelTaskRequest(session_id=self.id, reason=reason)
        if task_ids is not None:
            request.task_ids.extend(int(task_id) for task_id in task_ids)
            if not request.task_ids:
                return []
        answer = await self._call("CancelTask", request, fe.CancelTaskResponse)
        return [str(task_id) for task_id in answer.task_ids]

    def logs(
        self, *, executor_id: str = "", stream: str = "", follow: bool = False, tail_bytes: int = 0
    ) -> AsyncIterator[LogChunk]:
        """What the session's instances printed, also those that have ended: all of it or the last `tail_bytes` of each.

        `stream` is "stdout", "stderr" or empty for both; with `follow` it goes on until the session is closed.
        """
        return self.connection.logs(
            self.id, executor_id=executor_id, stream=stream, follow=follow, tail_bytes=tail_bytes
        )

    async def explain(self, task_id: str | int = "") -> Explanation:
        """Why the session gets no (further) executor, or what happened to one of its tasks."""
        return await self.connection.explain(self.id, str(task_id))

    async def _call(self, method: str, request: Message, reply: type[M]) -> M:
        return await self.connection.uplink.call(method, request, reply, self.connection.call_timeout)


async def as_completed(futures: Iterable[TaskFuture], timeout: float | None = None) -> AsyncIterator[TaskFuture]:
    """The futures in the order in which they end. Raises TimedOutError when that takes more than `timeout` seconds."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Queue[TaskFuture] = asyncio.Queue()

    def tell(future: TaskFuture) -> None:
        try:
            loop.call_soon_threadsafe(ended.put_nowait, future)
        except RuntimeError:
            pass  # the loop is closed, nobody waits

    waiting = set(futures)
    for future in waiting:
        future.add_done_callback(tell)
    deadline = None if timeout is None else time.monotonic() + timeout
    for left in range(len(waiting), 0, -1):
        try:
            async with asyncio.timeout_at(_in_loop_time(deadline)):
                future = await ended.get()
        except TimeoutError:
            raise TimedOutError(f"{left} of {len(waiting)} tasks did not end within {timeout:g} s") from None
        yield future


async def _opened(payload: bytes | None) -> bytes | None:
    """What a parcel stands for, if it is one; the parcel where that is gone: the task can be looked at all the same."""
    if payload is None or payload[: parcels.SIZE] != parcels.MARK:
        return payload
    try:
        return await asyncio.to_thread(parcels.opened, payload)
    except NotFoundError:
        return payload


def _in_loop_time(deadline: float | None) -> float | None:
    """A time of the monotonic clock as the running loop counts it."""
    return None if deadline is None else asyncio.get_running_loop().time() + deadline - time.monotonic()


async def _feed(
    inputs: Iterable[bytes | None] | AsyncIterable[bytes | None],
    stream: TaskStream,
    gather: Gather,
    options: ty.TaskOptions | None,
    space: asyncio.Event,
) -> None:
    """Submit the inputs as far as there is room, and wait for room."""

    async def wait_for_room() -> None:
        while gather.room <= 0:
            space.clear()
            gather.starved = True
            await space.wait()

    if isinstance(inputs, AsyncIterable):
        feeder = Feeder(stream, gather, iter(()), options)
        async for value in inputs:
            await wait_for_room()
            feeder.submit(value)
        return
    feeder = Feeder(stream, gather, iter(inputs), options)
    while not feeder.exhausted:
        await wait_for_room()
        feeder.feed(_YIELD_EVERY)
        await asyncio.sleep(0)


def check_window(window: int | None) -> int:
    """Raises InvalidArgumentError."""
    if window is None:
        return DEFAULT_WINDOW
    if window < 1:
        raise InvalidArgumentError(f"the window must be at least 1, not {window}")
    return window

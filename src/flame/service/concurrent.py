"""An instance that runs several tasks at once, or whose handlers are `async def`: an event loop in the main thread.

Coroutines run in the loop; ordinary handlers run in as many threads as tasks are allowed at once. A coroutine can be
cancelled; a handler in a thread can't be interrupted, so cancelling one that does not end by itself within the
executor manager's grace time ends the instance (its other tasks are run again elsewhere).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, cast

from flame.proto import link_pb2, shim_pb2, types_pb2
from flame.service.api import FlameService, SessionContext, TaskContext
from flame.service.incoming import Queued, begin_session, is_coroutine, named_by, queued, take_out
from flame.service.outcome import CODE, FULL, Outcomes, describe, log_traceback
from flame.service.wire import Frame, LinkClosedError, Wire

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor


class Concurrent(asyncio.Protocol):
    """The run loop. `serve` returns when the session was left."""

    def __init__(
        self, service: FlameService, wire: Wire, concurrency: int, entered: SessionContext | None = None
    ) -> None:
        """`entered`: the session, when another loop has entered it already."""
        self._service = service
        self._wire = wire
        self._concurrency = concurrency
        self._pool: ThreadPoolExecutor | None = None  # for task handlers that are ordinary functions
        self._outcomes = Outcomes(wire.max_payload)
        self._queue: deque[Queued] = deque()
        self._running: dict[int, asyncio.Task[None]] = {}
        self._sentenced: dict[int, tuple[str, bool]] = {}  # running tasks that were told to stop: reason, timed out
        self._session = ""
        self._busy_ns = 0
        self._flushing = False
        self._leaving = False
        if entered is not None:
            self._adopt(entered)

    async def serve(self, frames: list[Frame]) -> None:
        """Serve the session, from these first frames on. Raises OSError when the link ends before the session."""
        self._loop = asyncio.get_running_loop()
        self._idle: asyncio.Future[None] = self._loop.create_future()  # done when the session may be left
        self._entering: set[asyncio.Task[None]] = set()
        self._wire.sock.setblocking(False)
        transport, _ = await self._loop.create_unix_connection(lambda: self, sock=self._wire.sock)
        self._transport = transport
        self._handle(frames)
        await self._idle
        self._flush()
        result = await _call(self._service.on_session_leave)
        self._write(link_pb2.LEFT, result.SerializeToString())
        transport.close()

    # --- asyncio.Protocol ----------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        try:
            self._handle(self._wire.buffer.feed(data))
        except LinkClosedError as error:
            self._end(error)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(LinkClosedError("the executor manager closed the link"))

    # --- frames --------------------------------------------------------------------------------------------------

    def _handle(self, frames: list[Frame]) -> None:
        for kind, body in frames:
            if kind == link_pb2.TASKS:
                self._queue.extend(queued(body))
            elif kind == link_pb2.CANCEL:
                self._cancel(link_pb2.Cancel.FromString(body))
            elif kind == link_pb2.RETRACT:
                self._retract(link_pb2.Retract.FromString(body).keep)
            elif kind == link_pb2.ENTER:
                task = self._loop.create_task(self._enter(body))
                self._entering.add(task)
                task.add_done_callback(self._entering.discard)
            elif kind == link_pb2.LEAVE:
                self._leaving = True
                self._queue.clear()
            elif kind == link_pb2.PING:
                self._write(link_pb2.PONG)
            elif kind == link_pb2.ERROR:
                raise LinkClosedError(link_pb2.Error.FromString(body).message)
        self._fill()

    async def _enter(self, body: bytes) -> None:
        context = begin_session(shim_pb2.SessionContext.FromString(body))
        result = await _call(self._service.on_session_enter, context)
        self._adopt(context)
        result.concurrency = context.concurrency
        self._write(link_pb2.ENTERED, result.SerializeToString())

    def _adopt(self, context: SessionContext) -> None:
        """Serve this session as its service wants it."""
        self._session = context.session_id
        self._service = context.service or self._service
        self._concurrency = context.concurrency or self._concurrency
        if not is_coroutine(self._service.on_task_invoke):
            from concurrent.futures import ThreadPoolExecutor

            self._pool = ThreadPoolExecutor(self._concurrency, "flame-task")

    def _cancel(self, cancel: link_pb2.Cancel) -> None:
        named = named_by(cancel)
        for task_id, _, attempt in take_out(self._queue, named):
            self._outcomes.stop(task_id, attempt, cancel.reason, timed_out=cancel.timed_out)
            self._flush_soon()
        for task_id, task in self._running.items():
            if named(task_id):
                self._sentenced[task_id] = (cancel.reason, cancel.timed_out)
                if self._pool is None:
                    task.cancel()

    def _retract(self, keep: int) -> None:
        given: list[int] = []
        while self._queue and len(self._queue) + len(self._running) > keep:
            given.append(self._queue.pop()[0])
        given.reverse()
        self._write(link_pb2.RETRACTED, link_pb2.Retracted(task_ids=given).SerializeToString())

    # --- tasks ---------------------------------------------------------------------------------------------------

    def _fill(self) -> None:
        """Start queued tasks where there is room."""
        while self._queue and len(self._running) < self._concurrency:
            task_id, data, attempt = self._queue.popleft()
            self._running[task_id] = self._loop.create_task(self._run(task_id, data, attempt))
        if self._leaving and not self._running:
            self._end(None)

    async def _run(self, task_id: int, data: bytes | None, attempt: int) -> None:
        started = time.monotonic_ns()
        outcomes = self._outcomes
        try:
            context = TaskContext(str(task_id), self._session, data, attempt)
            if self._pool is None:
                output = await cast(Awaitable[bytes | None], self._service.on_task_invoke(context))
            else:
                output = await self._loop.run_in_executor(self._pool, self._service.on_task_invoke, context)
        except (Exception, asyncio.CancelledError) as error:
            if task_id in self._sentenced or isinstance(error, asyncio.CancelledError):
                reason, timed_out = self._sentenced.get(task_id, ("", False))
                outcomes.stop(task_id, attempt, reason, timed_out=timed_out)
            else:
                outcomes.fail_with(task_id, attempt, error)
        else:
            outcomes.add(task_id, attempt, output)
        self._busy_ns += time.monotonic_ns() - started
        self._sentenced.pop(task_id, None)
        del self._running[task_id]
        if outcomes.size > FULL:
            self._flush()
        self._flush_soon()
        self._fill()

    # --- results -------------------------------------------------------------------------------------------------

    def _flush_soon(self) -> None:
        """Send what this turn of the loop brings, in one frame."""
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if self._outcomes:
            busy_us, self._busy_ns = self._busy_ns // 1000, 0
            self._write(link_pb2.RESULTS, self._outcomes.take(busy_us))

    def _write(self, kind: int, body: bytes = b"") -> None:
        self._transport.writelines(self._wire.parts(kind, body))

    def _end(self, error: OSError | None) -> None:
        if self._idle.done():
            return
        if error is None:
            self._idle.set_result(None)
        else:
            self._idle.set_exception(error)


async def _call(handler: Callable[..., Any], *arguments: object) -> types_pb2.Result:
    """Call a handler of the session, a coroutine or not, and say what came of it."""
    result = types_pb2.Result()
    try:
        returned = handler(*arguments)
        if hasattr(returned, "__await__"):
            await returned
    except Exception as error:
        result.return_code, result.message = CODE, describe(error)
        log_traceback(error)
    return result

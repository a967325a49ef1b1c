"""An instance that runs one task at a time, in the main thread, without an event loop.

While it is idle the main thread itself waits at the socket, so a lonely task meets no other thread on its way. While
tasks are short the main thread looks at the socket about once a millisecond. Only while one task runs for long does
the attendant (attendant.py) stand in: it sends the results that wait, takes in what arrives, and interrupts the task
when it is cancelled.

Both threads work on the same state; whoever holds `_turn` may touch it and the wire. The main thread holds it always
but during a handler's run.
"""

from __future__ import annotations

import signal
import threading
import time
from collections import deque

from flame.proto import link_pb2, shim_pb2, types_pb2
from flame.service.api import FlameService, SessionContext, TaskCancelled, TaskContext
from flame.service.attendant import Attendant
from flame.service.incoming import Queued, begin_session, is_coroutine, named_by, queued, take_out
from flame.service.outcome import CODE, FULL, Outcomes, describe, log_traceback
from flame.service.wire import Frame, LinkClosedError, Wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

# The attendant's signal to the main thread. Its default action is to be ignored, so that nothing dies when a service
# resets the handlers.
STRIKE = signal.SIGURG
LONG_NS = 5_000_000  # a task that runs longer is attended
_FLUSH_NS = 1_000_000


class Sequential:
    """The run loop. `serve` returns when the session was left, or could not be served here."""

    def __init__(self, service: FlameService, wire: Wire) -> None:
        self.entered: SessionContext | None = None
        self._service = service
        self._wire = wire
        self._outcomes = Outcomes(wire.max_payload)
        self._queue: deque[Queued] = deque()
        self._turn = threading.Lock()
        self._session = ""
        self._leaving = False
        self._deaf = False  # the link ended while a task ran
        self._busy_ns = 0  # run time of the tasks in _outcomes
        self._flushed = 0  # when results were sent last; monotonic ns
        # What the attendant looks at without `_turn`; the main thread writes it.
        self.busy = False
        self.bursts = 0  # grows whenever the main thread begins to work
        self._current = 0  # id of the task whose handler runs, else 0
        self._attempt = 0
        self._started = 0  # of the current task; monotonic ns
        # What the attendant leaves for the main thread, under `_turn`.
        self._attended = False  # it waits for frames
        self._condemned = 0  # the task that the next STRIKE ends
        self._sentenced: tuple[int, str, bool] = (0, "", False)  # task id, reason, timed out
        self._main = 0
        self._attendant = Attendant(self, wire.sock.fileno())

    def serve(self, frames: list[Frame]) -> list[Frame] | None:
        """Serve the session, from these first frames on. Raises OSError when the link ends before the session.

        Answers None when it was left. A session that was entered and wants another loop, for more tasks at once or a
        service whose handlers are `async def`, is left to the caller, with the frames that came behind its beginning.
        """
        self._main = threading.get_ident()
        signal.signal(STRIKE, self._strike)
        with self._turn:
            frames = self._until_entered(frames)
            if self._wants_another_loop():
                return frames
            self._attendant.begin()
            self._handle(frames)
            while not self._leaving:
                if self._queue:
                    try:
                        self._work()
                    except TaskCancelled:
                        # It struck while the task's own exception was on its way through _work.
                        self._turn.acquire()
                        task_id, self._current = self._current, 0
                        self._stop(task_id, self._attempt)
                else:
                    self._handle(self._wire.read(wait=True))
            self._flush(time.monotonic_ns())
            self._leave()
        self._attendant.end()
        return None

    def _until_entered(self, frames: list[Frame]) -> list[Frame]:
        """Handle frames until the session is entered; gives those behind."""
        while True:
            for place, (kind, body) in enumerate(frames, 1):
                if kind == link_pb2.ENTER:
                    self._enter(body)
                    return frames[place:]
                self._handle([(kind, body)])
            if self._leaving:
                return []
            frames = self._wire.read(wait=True)

    def _wants_another_loop(self) -> bool:
        context = self.entered
        return context is not None and (context.concurrency > 1 or is_coroutine(self._service.on_task_invoke))

    # --- the main thread -----------------------------------------------------------------------------------------

    def _work(self) -> None:
        """Run tasks until none is queued, then send the results."""
        queue, outcomes, turn = self._queue, self._outcomes, self._turn
        invoke, session, clock = self._service.on_task_invoke, self._session, time.monotonic_ns
        self.bursts += 1
        self.busy = True
        if self._attendant.resting:
            self._attendant.wake()
        now = clock()
        while queue:
            task_id, data, attempt = queue.popleft()
            context = TaskContext(str(task_id), session, data, attempt)
            self._attempt = attempt
            self._started = started = now
            turn.release()
            try:
                self._current = task_id
                output = invoke(context)
                self._current = 0
            except BaseException as error:
                self._current = 0
                turn.acquire()
                self._failed(task_id, attempt, error)
            else:
                turn.acquire()
                outcomes.add(task_id, attempt, output)
            now = clock()
            self._busy_ns += now - started
            # An attendant that waits for frames looks at nothing else: no result may be left for it to send.
            if now - self._flushed > _FLUSH_NS or self._attended or outcomes.size > FULL:
                self._flush(now)
                if self._attended and now - started < LONG_NS:
                    self._relieve()
                self._handle(self._wire.read(wait=False))
                now = clock()
        self.busy = False
        self._flush(now)
        if self._attended:
            self._relieve()

    def _relieve(self) -> None:
        """Let the attendant watch again instead of waiting for frames. As long as tasks are long it may wait on: waking
        it costs as much as everything else that is done between two tasks."""
        self._attended = False
        self._attendant.wake()

    def _failed(self, task_id: int, attempt: int, error: BaseException) -> None:
        """Note why a handler did not return. Raises what shall end the instance, SystemExit for one."""
        if self._sentenced[0] == task_id or isinstance(error, TaskCancelled):
            self._stop(task_id, attempt)
        elif isinstance(error, Exception):
            self._outcomes.fail_with(task_id, attempt, error)
        else:
            self._flush(time.monotonic_ns())
            raise error

    def _stop(self, task_id: int, attempt: int) -> None:
        """The task ended because it was told to."""
        sentenced, reason, timed_out = self._sentenced
        if sentenced != task_id:
            reason, timed_out = "", False
        self._outcomes.stop(task_id, attempt, reason, timed_out=timed_out)

    def _strike(self, signum: int, frame: FrameType | None) -> None:
        """The signal handler: raise in the task that was cancelled, if it still runs."""
        if self._current and self._current == self._condemned:
            self._condemned = 0
            raise TaskCancelled(self._sentenced[1])

    def _enter(self, body: bytes) -> None:
        context = begin_session(shim_pb2.SessionContext.FromString(body))
        self._session = context.session_id
        result = types_pb2.Result()
        try:
            self._service.on_session_enter(context)
            self._service = context.service or self._service
            self.entered = context
            result.concurrency = context.concurrency
        except Exception as error:
            result.return_code, result.message = CODE, describe(error)
            log_traceback(error)
        self._wire.write(link_pb2.ENTERED, result.SerializeToString())

    def _leave(self) -> None:
        result = types_pb2.Result()
        try:
            self._service.on_session_leave()
        except Exception as error:
            result.return_code, result.message = CODE, describe(error)
            log_traceback(error)
        self._wire.write(link_pb2.LEFT, result.SerializeToString())

    # --- whoever has the turn ------------------------------------------------------------------------------------

    def _handle(self, frames: list[Frame]) -> None:
        for kind, body in frames:
            if kind == link_pb2.TASKS:
                self._queue.extend(queued(body))
            elif kind == link_pb2.CANCEL:
                self._cancel(link_pb2.Cancel.FromString(body))
            elif kind == link_pb2.RETRACT:
                self._retract(link_pb2.Retract.FromString(body).keep)
            elif kind == link_pb2.LEAVE:
                self._leaving = True
                self._queue.clear()
            elif kind == link_pb2.PING:
                self._wire.write(link_pb2.PONG)
            elif kind == link_pb2.ERROR:
                raise LinkClosedError(link_pb2.Error.FromString(body).message)

    def _cancel(self, cancel: link_pb2.Cancel) -> None:
        """End the queued tasks that it names at once; the running one gets the signal."""
        named = named_by(cancel)
        for task_id, _, attempt in take_out(self._queue, named):
            self._outcomes.stop(task_id, attempt, cancel.reason, timed_out=cancel.timed_out)
        if self._current and named(self._current):
            self._condemned = self._current
            self._sentenced = (self._current, cancel.reason, cancel.timed_out)
            signal.pthread_kill(self._main, STRIKE)

    def _retract(self, keep: int) -> None:
        """Give back the last ones of the queue until no more than `keep` tasks are here, the running one included."""
        given: list[int] = []
        while self._queue and len(self._queue) + bool(self._current) > keep:
            given.append(self._queue.pop()[0])
        given.reverse()
        self._wire.write(link_pb2.RETRACTED, link_pb2.Retracted(task_ids=given).SerializeToString())

    def _flush(self, now: int) -> None:
        """Send the results that wait."""
        self._flushed = now
        if self._outcomes:
            busy_us, self._busy_ns = self._busy_ns // 1000, 0
            self._wire.write(link_pb2.RESULTS, self._outcomes.take(busy_us))

    # --- the attendant -------------------------------------------------------------------------------------------

    def overdue(self) -> bool:
        """Whether a task runs for so long that it must be attended."""
        return bool(self._current) and not self._deaf and time.monotonic_ns() - self._started > LONG_NS

    def attend(self) -> bool:
        """Stand in for the main thread once. False when it has taken over itself, or the link has ended."""
        if not self._turn.acquire(blocking=False):
            return False
        try:
            if not self._current:
                return False
            self._attended = True
            self._handle(self._wire.read(wait=False))
            self._flush(time.monotonic_ns())
        except OSError:
            self._deaf = True  # the main thread finds out the same way after the task
            return False
        finally:
            self._turn.release()
        return True

"""The future of one task: lean until somebody looks at it.

It is a `concurrent.futures.Future` that `wait` and `as_completed` accept, and it can be awaited in any event loop. A
condition variable, which costs more than all the rest, is made only when a thread waits.

Who may change what: only the thread of the stream's event loop settles futures. `stream.lock` guards `_watch` and the
step from "not done" to "done" of futures that nobody watches; the condition of a watched future guards its own step.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import CancelledError, Future
from typing import Any, Protocol

from flame.model.errors import FlameError, InvalidStateError, TaskCancelledError, TimedOutError
from flame.objects.parcels import MARK, SIZE, opened

logger = logging.getLogger("flame.client")

Settled = bytes | None | FlameError
_PENDING, _FINISHED, _CANCELLED = "PENDING", "FINISHED", "CANCELLED_AND_NOTIFIED"  # the words of concurrent.futures


class CancelledTaskError(TaskCancelledError, CancelledError):
    """The task was cancelled; also caught by who expects the error of `concurrent.futures`."""


class Stream(Protocol):
    """What a future needs of the stream that it belongs to."""

    session_id: str
    thread_id: int
    lock: threading.Lock

    def cancel(self, future: TaskFuture) -> None: ...
    def timed_out(self, text: str) -> TimedOutError: ...


class _Watch:
    """Who looks at a future that is not done."""

    __slots__ = ("callbacks", "condition", "waiters")

    def __init__(self) -> None:
        self.condition: threading.Condition | None = None
        self.waiters: list[Any] = []
        self.callbacks: list[Callable[[Any], object]] = []


class TaskFuture(Future["bytes | None"]):
    """The result of one task.

    `result()` gives the output (None when the task has none) or raises TaskFailedError, TaskCancelledError or what
    else kept the task from ending. `await future` does the same in an event loop; when the waiting is cancelled, so is
    the task.
    """

    # Defaults of the class: a future that nobody looked at has one attribute of its own.
    _state: str = _PENDING
    _value: Settled = None
    _watch: _Watch | None = None
    _id: int = 0
    _cancel_wanted: bool = False
    _parcel: bytes | None = None  # its output that was taken from the object cache

    def __init__(self, stream: Stream) -> None:  # not the base's, which makes a condition variable at once
        self._stream = stream

    # --- what a user calls -----------------------------------------------------------------------------------------

    @property
    def task_id(self) -> str | None:
        """The task's id in its session, None until the cluster has accepted it."""
        return str(self._id) if self._id else None

    @property
    def session_id(self) -> str:
        """The session that the task belongs to."""
        return self._stream.session_id

    def done(self) -> bool:
        """Whether the task has ended."""
        return self._state is not _PENDING

    def cancelled(self) -> bool:
        """Whether the task has been cancelled (not merely asked to be)."""
        return self._state is _CANCELLED

    def running(self) -> bool:
        """Always False: the client does not know. `session.get_task` does."""
        return False

    def cancel(self) -> bool:
        """Ask the cluster to cancel the task, also when it runs. False when it has ended already.

        The future is done when the cluster has answered: cancelled, or with the result that came first.
        """
        if self._state is not _PENDING:
            return False
        if not self._cancel_wanted:
            self._cancel_wanted = True
            self._stream.cancel(self)
        return True

    def result(self, timeout: float | None = None) -> bytes | None:
        """The task's output; waits up to `timeout` seconds. Raises TimedOutError or why there is no output."""
        self._wait(timeout)
        value = self._value
        if isinstance(value, FlameError):
            raise value
        return value if value is None or value[:SIZE] != MARK else self._taken(value)

    def exception(self, timeout: float | None = None) -> FlameError | None:
        """Why there is no output, or None; waits like `result`. Raises TimedOutError, TaskCancelledError."""
        self._wait(timeout)
        if self._state is _CANCELLED:
            assert isinstance(self._value, FlameError)
            raise self._value
        return self._value if isinstance(self._value, FlameError) else None

    def add_done_callback(self, fn: Callable[[Any], object]) -> None:
        """Call `fn(self)` once when it is done, in the thread of the connection; at once when it is done already."""
        with self._stream.lock:
            if self._state is _PENDING:
                if self._watch is None:
                    self._watch = _Watch()
                self._watch.callbacks.append(fn)
                return
        self._call(fn)

    def __await__(self) -> Generator[Any, None, bytes | None]:
        if self._state is _PENDING:
            loop = asyncio.get_running_loop()
            waiter: asyncio.Future[None] = loop.create_future()
            home = self._stream.thread_id == threading.get_ident()

            def wake(_: object) -> None:
                if home:
                    _resolve(waiter)
                    return
                try:
                    loop.call_soon_threadsafe(_resolve, waiter)
                except RuntimeError:
                    pass  # that loop is closed, nobody waits any more

            self.add_done_callback(wake)
            try:
                yield from waiter
            except asyncio.CancelledError:
                self.cancel()
                raise
        value = self._value
        if isinstance(value, FlameError):
            raise value
        if value is not None and value[:SIZE] == MARK:
            return (yield from asyncio.to_thread(self._taken, value).__await__())
        return value

    def _taken(self, parcel: bytes) -> bytes:
        """A large output from the object cache, where it is for as long as this future is here."""
        output = opened(parcel)
        if self._parcel is None:
            from flame.client.freeing import free

            self._parcel = parcel
            weakref.finalize(self, free, parcel).atexit = False
        return output

    def __repr__(self) -> str:
        state = {_PENDING: "pending", _CANCELLED: "cancelled"}.get(
            self._state, "failed" if isinstance(self._value, FlameError) else "done"
        )
        return f"<{type(self).__name__} {self.session_id}/{self.task_id or '?'} {state}>"

    # --- what concurrent.futures looks at --------------------------------------------------------------------------

    @property
    def _condition(self) -> threading.Condition:  # pyright: ignore[reportIncompatibleVariableOverride]
        with self._stream.lock:
            if self._watch is None:
                self._watch = _Watch()
            if self._watch.condition is None:
                self._watch.condition = threading.Condition()
            return self._watch.condition

    @property
    def _waiters(self) -> list[Any]:  # pyright: ignore[reportIncompatibleVariableOverride]
        assert self._watch is not None, "concurrent.futures takes the condition first"
        return self._watch.waiters

    @property
    def _result(self) -> bytes | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        return None if isinstance(self._value, FlameError) else self._value

    @property
    def _exception(self) -> FlameError | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._value if isinstance(self._value, FlameError) else None

    # --- inside ----------------------------------------------------------------------------------------------------

    def _wait(self, timeout: float | None) -> None:
        if self._state is not _PENDING:
            return
        if self._stream.thread_id == threading.get_ident():
            raise InvalidStateError(
                "waiting here would wait for ever: this is the thread that the result comes in",
                remedy="await the future, or use another thread",
            )
        deadline = None if timeout is None else time.monotonic() + timeout
        condition = self._condition
        with condition:
            while self._state is _PENDING:
                left = None if deadline is None else deadline - time.monotonic()
                if (left is not None and left <= 0) or not condition.wait(left):
                    if self._state is not _PENDING:
                        break
                    name = f"task {self.task_id or '?'} of session {self.session_id}"
                    raise self._stream.timed_out(f"{name} did not end within {timeout:g} s")

    def _announce(self, condition: threading.Condition | None, state: str) -> None:
        """Tell who watched. `condition` is the one that existed while the future was pending."""
        watch = self._watch
        assert watch is not None
        if condition is not None:
            with condition:
                self._state = state
                for waiter in watch.waiters:
                    if state is _CANCELLED:
                        waiter.add_cancelled(self)
                    elif isinstance(self._value, FlameError):
                        waiter.add_exception(self)
                    else:
                        waiter.add_result(self)
                condition.notify_all()
        with self._stream.lock:
            callbacks, watch.callbacks = watch.callbacks, []
        for fn in callbacks:
            self._call(fn)

    def _call(self, fn: Callable[[Any], object]) -> None:
        try:
            fn(self)
        except Exception:
            logger.exception("a callback of %r failed", self)


def settle(
    lock: threading.Lock, futures: Iterable[TaskFuture | None], values: Sequence[Settled], *, plain: bool
) -> int:
    """Give each future its value (None entries are skipped); answers how many there were.

    `plain`: all values are outputs, none is an error. Called by the stream's thread only.
    """
    watched: list[tuple[TaskFuture, threading.Condition | None, str]] = []
    count = 0
    state = _FINISHED
    with lock:
        for future, value in zip(futures, values, strict=True):
            if future is None:
                continue
            count += 1
            if not plain:
                state = _CANCELLED if isinstance(value, TaskCancelledError) else _FINISHED
            future._value = value  # pyright: ignore[reportPrivateUsage]
            watch = future._watch  # pyright: ignore[reportPrivateUsage]
            if watch is None:
                future._state = state  # pyright: ignore[reportPrivateUsage]
            else:
                if watch.condition is None:
                    future._state = state  # pyright: ignore[reportPrivateUsage]
                watched.append((future, watch.condition, state))
    for future, condition, state in watched:
        future._announce(condition, state)  # pyright: ignore[reportPrivateUsage]
    return count


def _resolve(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)

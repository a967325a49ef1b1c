"""Calls that wait for other calls, in a cluster that has no room left for those.

An instance that waits keeps its executor. Where all executors wait like that nothing would ever end, so a call that
nobody else can begin with is taken back and run by who waits for it. A service with a state moves to who waits for it
(host.py). What this process must not answer fails with the reason after a while.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from flame.client.futures import TaskFuture, settle
from flame.model.errors import FlameError, TaskCancelledError, TaskFailedError, TimedOutError
from flame.runner.failures import failure_of
from flame.service.api import TaskCancelled

if TYPE_CHECKING:
    from flame.client.synchronous_session import Session

Patience = Callable[[], float]  # seconds, which may change meanwhile

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0  # seconds between two looks at the session


def wait_or_run(
    future: TaskFuture, help_it: Callable[[], object], session: Session, timeout: float | None, patience: Patience
) -> float | None:
    """Wait for a future, and when its session gets no executor at all for so many seconds, help it. Answers
    what is left of `timeout`, in seconds."""
    deadline = None if timeout is None else time.monotonic() + timeout
    pause = _FIRST_PAUSE
    since: float | None = None
    while not future.done():
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= pause:
            return max(0.0, left)
        try:
            TaskFuture._wait(future, pause)  # pyright: ignore[reportPrivateUsage]
        except TimedOutError:
            pass
        if future.done():
            break
        since = _stuck_since(session, since)
        if since is not None and time.monotonic() >= since + patience():
            help_it()
            break
        pause = min(2 * pause, _LONGEST_PAUSE)
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def _stuck(session: Session) -> bool:
    """Whether nobody can begin with the tasks of a session."""
    session.refresh()
    return bool(session.pending and not session.executors and session.pending_reason)


def _stuck_since(session: Session, since: float | None) -> float | None:
    """Since when, by the monotonic clock; None = somebody can."""
    if not _stuck(session):
        return None
    return time.monotonic() if since is None else since


class _Awaited:
    """A future that is waited for without a thread."""

    def __init__(self, future: TaskFuture, help_it: Callable[[], object], session: Session, patience: Patience) -> None:
        self.future = future
        self.help_it = help_it
        self.session = session
        self.patience = patience
        self.since: float | None = None


class _Lookout:
    """Does the same for futures that are waited for in ways in which no thread is at hand: `await`, callbacks,
    `concurrent.futures.wait`. A thread looks at their sessions as long as there are any; calls get a thread each."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process = 0
        self._looking = False
        self._awaited: list[_Awaited] = []
        self._ended = threading.Event()

    def add(self, awaited: _Awaited) -> None:
        """Look after one more."""
        with self._lock:
            if self._process != os.getpid():  # a fork has no threads of its parent
                self._process, self._awaited, self._ended = os.getpid(), [], threading.Event()
                self._looking = False
            self._awaited.append(awaited)
            if not self._looking:
                self._looking = True
                threading.Thread(target=self._run, name="flame-nesting", daemon=True).start()

    def _run(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            pause = _FIRST_PAUSE if self._ended.wait(pause) else min(2 * pause, _LONGEST_PAUSE)
            self._ended.clear()
            with self._lock:
                left = [one for one in self._awaited if not one.future.done()]
                self._awaited = left
                if not left:
                    self._looking = False
                    return
            for one in {one.session.id: one for one in reversed(left)}.values():  # the oldest of each session
                self._help(one)

    def _help(self, one: _Awaited) -> None:
        try:
            one.since = _stuck_since(one.session, one.since)
            if one.since is None or time.monotonic() < one.since + one.patience():
                return
        except FlameError:
            return  # the future learns it, too
        with self._lock:
            self._awaited.remove(one)
        threading.Thread(target=self._take_back, args=(one,), name="flame-nested", daemon=True).start()

    def _take_back(self, one: _Awaited) -> None:
        try:
            one.help_it()
        finally:
            self._ended.set()


_lookout = _Lookout()


def look_after(future: TaskFuture, help_it: Callable[[], object], session: Session, patience: Patience) -> None:
    """Help a future as soon as its session got no executor at all for so many seconds."""
    _lookout.add(_Awaited(future, help_it, session, patience))


def take_back(future: TaskFuture, answer: Callable[[], bytes], session: Session) -> None:
    """Cancel the task, and give the future what running its call here comes to; or what the task did come to."""
    stream = session.task_stream()
    stand_in = TaskFuture(stream)

    async def hand_over() -> None:
        stream.hand_over(future, stand_in)

    session.connection.thread.run(hand_over())
    if future.done():
        return
    stand_in.cancel()
    try:
        value: Any = stand_in.result()
    except TaskCancelledError:
        value = future._value if future.cancelled() else answered(answer)  # pyright: ignore[reportPrivateUsage]
    except FlameError as error:
        value = error

    async def give() -> None:
        settle(stream.lock, (future,), (value,), plain=False)

    session.connection.thread.run(give())


def answered(answer: Callable[[], bytes]) -> bytes | FlameError:
    """What a call comes to that is run here: a result, or its failure."""
    try:
        return answer()
    except (TaskCancelled, KeyboardInterrupt):
        raise
    except BaseException as error:
        told = failure_of(error, hidden=2)
        failure = TaskFailedError(told.message)
        failure.traceback, failure.details = told.traceback, told.details
        return failure

"""Calls that wait for other calls, in a cluster that has no room left for those.

An instance that waits keeps its executor. Where all executors wait like that nothing would ever end, so a call that
nobody else can begin with is taken back and run by who waits for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from flame.client.futures import TaskFuture, settle
from flame.model.errors import FlameError, TaskCancelledError, TaskFailedError, TimedOutError
from flame.runner.failures import failure_of

if TYPE_CHECKING:
    from flame.client.synchronous_session import Session

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0  # seconds between two looks at the session


def wait_or_run(
    future: TaskFuture, answer: Callable[[], bytes], session: Session, timeout: float | None
) -> float | None:
    """Wait for a future, and when its session gets no executor at all, run its call here. Answers what is left of
    `timeout`, in seconds."""
    deadline = None if timeout is None else time.monotonic() + timeout
    pause = _FIRST_PAUSE
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
        session.refresh()
        if session.pending and not session.executors and session.pending_reason:
            _take_back(future, answer, session)
            break
        pause = min(2 * pause, _LONGEST_PAUSE)
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def _take_back(future: TaskFuture, answer: Callable[[], bytes], session: Session) -> None:
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
        value = future._value if future.cancelled() else _run(answer)  # pyright: ignore[reportPrivateUsage]
    except FlameError as error:
        value = error

    async def give() -> None:
        settle(stream.lock, (future,), (value,), plain=False)

    session.connection.thread.run(give())


def _run(answer: Callable[[], bytes]) -> bytes | FlameError:
    try:
        return answer()
    except Exception as error:
        told = failure_of(error, hidden=2)
        failure = TaskFailedError(told.message)
        failure.traceback, failure.details = told.traceback, told.details
        return failure

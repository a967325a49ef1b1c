"""Futures that wait in vain are explained: the user reads why nothing runs, and what would help.

Each session with unfinished tasks has one timer, however many tasks there are. When a whole period went by without a
result, the cluster is asked what the session waits for, and the answer goes to the log as a warning. It is asked again
after pauses that double, for as long as nothing comes.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from types import EllipsisType
from typing import TYPE_CHECKING, NamedTuple, Protocol

from flame.model.errors import FlameError, InvalidArgumentError, InvalidConfigError, TimedOutError
from flame.model.states import SessionState
from flame.proto import frontend_pb2 as fe

if TYPE_CHECKING:
    from flame.client.uplink import Uplink

logger = logging.getLogger("flame.client")

VARIABLE = "FLAME_PENDING_WARNING"
PENDING_WARNING = 5.0  # seconds
LONGEST_PAUSE = 300.0
_LONGEST_PERIOD = 86400.0
_HARMLESS = frozenset({"", "starting", "order"})  # rules that will be over by themselves: no reason to worry


class Wait(NamedTuple):
    """Why none of a session's tasks runs, or (`unaccepted`) why so many are not even accepted.

    `rule` is empty where none says no; `since` in Unix seconds, 0 = unknown.
    """

    message: str
    remedy: str = ""
    rule: str = ""
    object: str = ""
    since: float = 0.0
    unaccepted: int = 0

    def __str__(self) -> str:
        rule = f" (rule {self.rule}{f': {self.object}' if self.object else ''})" if self.rule else ""
        return f"{self.message}{rule}{f'; {self.remedy}' if self.remedy else ''}"


class Patience:
    """When to ask: after one tick without news, then two ticks later, four, eight, until something comes."""

    def __init__(self, longest: int) -> None:
        """`longest`: ticks between two questions at most."""
        self._longest = longest
        self.restart(0)

    @property
    def fresh(self) -> bool:
        """Whether no time has passed since it was started or something came."""
        return self._pause == 1

    def restart(self, news: int) -> None:
        """Something is waited for from now on; `news` counts what came."""
        self._news = news
        self._left = self._pause = 1

    def tick(self, news: int) -> bool:
        """A period is over; whether it is time to ask."""
        if news != self._news:
            self.restart(news)
            return False
        self._left -= 1
        if self._left > 0:
            return False
        self._pause = min(2 * self._pause, self._longest)
        self._left = self._pause
        return True


class Waiting(Protocol):
    """What is watched: a stream of tasks."""

    session_id: str
    news: int  # grows with each answer

    @property
    def waits(self) -> bool: ...
    def unfinished(self) -> int: ...
    def refused(self) -> Wait | None: ...
    def learn(self, wait: Wait | None) -> None: ...


class PendingWatch:
    """The timer of one stream. Used in the thread of the loop only."""

    def __init__(self, stream: Waiting, uplink: Uplink, period: float, loop: asyncio.AbstractEventLoop) -> None:
        """`period` in seconds."""
        self._stream = stream
        self._uplink = uplink
        self._period = period
        self._loop = loop
        self._patience = Patience(max(1, int(LONGEST_PAUSE / period)))
        self._timer: asyncio.TimerHandle | None = None
        self._looking: asyncio.Task[None] | None = None
        self._due = asyncio.Event()  # it is time to ask, and nobody has begun to
        self._since = 0.0
        self._stopped = False

    def arm(self) -> None:
        """Tasks are under way. Does nothing while the timer runs."""
        if self._timer is None and not self._stopped:
            self._patience.restart(self._stream.news)
            self._since = time.time()
            self._timer = self._loop.call_later(self._period, self._tick)
            if self._looking is None:
                self._looking = self._loop.create_task(self._look_when_due())
                # A program that never ends its loop properly has left it, and knows nothing of this task.
                self._looking._log_destroy_pending = False  # pyright: ignore[reportAttributeAccessIssue]

    def stop(self) -> None:
        """Say no more."""
        self._end()
        if self._looking is not None:
            self._looking.cancel()

    def _end(self) -> None:
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tick(self) -> None:
        self._timer = None
        stream = self._stream
        if not stream.waits:
            return  # the next task arms it
        self._timer = self._loop.call_later(self._period, self._tick)
        ask = self._patience.tick(stream.news)
        if not ask and self._patience.fresh:
            self._since = time.time()
        if ask and self._uplink.link is not None:
            self._due.set()

    async def _look_when_due(self) -> None:
        # One task from the first tick on, not one for each question: asyncio.run cancels the tasks that it finds at the
        # end of a program, and a timer that makes another one after that leaves it in a closed loop.
        try:
            while True:
                await self._due.wait()
                self._due.clear()
                await self._look()
        finally:
            self._end()

    async def _look(self) -> None:
        stream = self._stream
        news = stream.news
        wait = stream.refused()
        if wait is None:
            try:
                wait = await why_nothing_runs(self._uplink, stream.session_id)
            except FlameError as error:
                logger.debug("session %s can't be asked what it waits for: %s", stream.session_id, error)
                return
        if self._stopped or stream.news != news or not stream.waits:
            return
        stream.learn(wait)
        if wait is not None:
            level = logging.INFO if wait.rule in _HARMLESS else logging.WARNING
            logger.log(level, "%s", told(stream.session_id, stream.unfinished(), wait, self._since, time.time()))


async def why_nothing_runs(uplink: Uplink, session_id: str) -> Wait | None:
    """What keeps all of the session's tasks from running; None = one runs, or nothing is known. Raises FlameError."""
    status = (await uplink.session(session_id)).status
    if status.running or not status.pending or status.state != SessionState.OPEN:
        return None
    explained = await uplink.call("Explain", fe.ExplainRequest(session_id=session_id), fe.Explanation)
    since = status.pending_since / 1000
    if explained.reasons:
        # While executors start, other rules only say why there are no more of them.
        first = next((reason for reason in explained.reasons if reason.rule == "starting"), explained.reasons[0])
        about = "" if first.object == session_id else first.object
        return Wait(first.message, first.remedy, first.rule, about, first.since / 1000 or since)
    return Wait(status.pending_reason, since=since) if status.pending_reason else None


def told(session_id: str, count: int, wait: Wait, since: float, now: float) -> str:
    """The warning's text. `since` (Unix seconds, as `now`) is used where the cluster does not say it."""
    begin = wait.since or since
    count = wait.unaccepted or count
    tasks = f"{count} tasks wait" if count != 1 else "1 task waits"
    what = f"{tasks} to be accepted" if wait.unaccepted else f"{tasks} and none runs"
    clock = datetime.fromtimestamp(begin).astimezone().isoformat(" ", "seconds")
    return f"session {session_id}: {what}, for {max(0.0, now - begin):.0f} s (since {clock}): {wait}"


def timed_out(text: str, wait: Wait | None) -> TimedOutError:
    """The error for who waited no longer, with what the session waits for when that is known."""
    if wait is None:
        return TimedOutError(text)
    return TimedOutError(f"{text}; it waits: {wait._replace(remedy='')}", remedy=wait.remedy)


def period_of(given: float | timedelta | EllipsisType | None) -> float | None:
    """Seconds until a warning, None = never: what was given, else what the environment says, else five.

    Raises InvalidArgumentError, InvalidConfigError.
    """
    if given is None:
        return None
    if isinstance(given, EllipsisType):
        return _from_environment(os.environ.get(VARIABLE, "").strip())
    seconds = given.total_seconds() if isinstance(given, timedelta) else given
    if not 0 < seconds <= _LONGEST_PERIOD:
        raise InvalidArgumentError(
            f"pending_warning must be over 0 and at most {_LONGEST_PERIOD:.0f} seconds, not {given!r}",
            remedy="None means never",
        )
    return float(seconds)


def _from_environment(text: str) -> float | None:
    if not text:
        return PENDING_WARNING
    if text.lower() == "never":
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= _LONGEST_PERIOD:
        raise InvalidConfigError(
            f"{VARIABLE} is {text!r}, not seconds over 0 and at most {_LONGEST_PERIOD:.0f}", remedy="or write never"
        )
    return seconds


Later = Callable[[float, Callable[[], object]], asyncio.TimerHandle]

"""Waiting for something to happen, for a while; and times that stand still while the sandbox is paused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from flame.sandbox.wire import POLL_S


class Bell:
    """Wakes whoever waits for it."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[None]] = set()

    @property
    def waiters(self) -> int:
        return len(self._waiting)

    def ring(self) -> None:
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)
        self._waiting.clear()

    async def wait_until(self, condition: Callable[[], object], seconds: float = POLL_S) -> bool:
        """Wait until the condition, looked at after each ring, is true; False when the time is over before."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while not condition():
            waiter: asyncio.Future[None] = loop.create_future()
            self._waiting.add(waiter)
            alarm = loop.call_at(until, self._give_up, waiter)
            try:
                await waiter
            finally:
                alarm.cancel()
                self._waiting.discard(waiter)
            if loop.time() >= until:
                return bool(condition())
        return True

    @staticmethod
    def _give_up(waiter: asyncio.Future[None]) -> None:
        if not waiter.done():
            waiter.set_result(None)


class Timer:
    """One alarm of a Clock."""

    def __init__(self, clock: Clock, seconds: float, ring: Callable[[], None]) -> None:
        self._clock = clock
        self._left = seconds
        self._ring = ring
        self._handle: asyncio.TimerHandle | None = None
        self._began = 0.0

    def go(self) -> None:
        loop = asyncio.get_running_loop()
        self._began = loop.time()
        self._handle = loop.call_later(self._left, self._over)

    def stop(self) -> None:
        """Stand still until `go`."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
            self._left = max(0.0, self._left - (asyncio.get_running_loop().time() - self._began))

    def cancel(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        self._clock.timers.discard(self)

    def _over(self) -> None:
        self._handle = None
        self._clock.timers.discard(self)
        self._ring()


class Clock:
    """The time that runs and commands have: it stands still while they do."""

    def __init__(self) -> None:
        self.timers: set[Timer] = set()
        self._stopped = False

    def after(self, seconds: float | None, ring: Callable[[], None]) -> Timer | None:
        """Call `ring` in so many seconds; None = never."""
        if seconds is None:
            return None
        timer = Timer(self, seconds, ring)
        self.timers.add(timer)
        if not self._stopped:
            timer.go()
        return timer

    def stop(self) -> None:
        self._stopped = True
        for timer in self.timers:
            timer.stop()

    def go(self) -> None:
        self._stopped = False
        for timer in list(self.timers):
            timer.go()

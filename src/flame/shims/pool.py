"""The pool of instances that were started ahead and wait for a session: started, given away, ended.

One is in it only until it is given to an executor; none ever comes back. What is decided here by itself is little:
warm.py has the rules.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Generic, TypeVar

from flame.model.errors import ProtocolError
from flame.shims.shim import BindError, Instance, Launch, Owner
from flame.shims.warm import WarmLimits, ahead, allot, pause_after, recipe

logger = logging.getLogger("flame.node")

# Started at the same time: they shall not take the processors from instances that work.
_AT_ONCE = max(1, len(os.sched_getaffinity(0)) // 2)
_EXIT_S = 1.0  # between the end of an instance's connection and the end of the instance

I = TypeVar("I", bound=Instance)  # noqa: E741


class _Waiting(Generic[I]):
    """One instance that waits, or is about to: the owner that it has until it is taken."""

    def __init__(self) -> None:
        self.instance: I | None = None  # once its process runs
        self.ready = False
        self.broken_down = False
        self.life: asyncio.Task[None]  # until it is ready
        self.lose: Callable[[str], None]

    def results(self, body: bytes) -> None:
        raise ProtocolError("an instance that has entered no session has no results")

    def retracted(self, body: bytes) -> None:
        raise ProtocolError("an instance that has entered no session has no tasks")

    def broken(self, why: str) -> None:
        self.broken_down = True
        # Most often it just died, and its exit status, which is on its way, says more.
        asyncio.get_running_loop().call_later(_EXIT_S, self.lose, f"it broke its contract: {why}")

    def on_ended(self, instance: I, ended: asyncio.Future[str]) -> None:
        self.lose(f"it {ended.result()}{instance.last_words()}")


class _Stock(Generic[I]):
    """What waits for one application. `resting` after a death: until the timer `rest`, or, when there is none, until
    the application is used again."""

    def __init__(self, name: str, recipe: bytes, launch: Launch) -> None:
        self.name = name
        self.recipe = recipe
        self.launch = launch  # of which all are copies
        self.wish = 0
        self.waiting: list[_Waiting[I]] = []
        self.expiry: asyncio.TimerHandle | None = None
        self.rest: asyncio.TimerHandle | None = None
        self.resting = False
        self.deaths = 0  # one after another
        self.proven = False  # one became ready: the program can wait for a session

    def take(self) -> I | None:
        """The one that waits for longest; when none is ready, one that soon will be."""
        running = [waiting for waiting in self.waiting if waiting.instance is not None and not waiting.broken_down]
        ready = [waiting for waiting in running if waiting.ready]
        usable = ready or (running if self.proven else [])
        if not usable:
            return None
        chosen = usable[0]
        self.waiting.remove(chosen)
        if chosen.ready:
            self.deaths = 0
        else:
            chosen.life.cancel()  # who gets it waits for it
        return chosen.instance


class Pool(Generic[I]):
    """The instances started ahead on this node. `spawn` starts one process."""

    def __init__(self, spawn: Callable[[Launch, Owner], Awaitable[I]], limits: WarmLimits) -> None:
        self._spawn = spawn
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._stocks: dict[str, _Stock[I]] = {}  # by application, the one used last at the end
        self._starting: set[str] = set()  # executors that start: nothing is started ahead meanwhile
        self._beginning: set[asyncio.Task[None]] = set()
        self._ending: set[asyncio.Task[None]] = set()
        self._closed = False

    def starting(self, launch: Launch) -> I | None:
        """An executor is about to start. Gives the instance that waits for such a one, if there is."""
        self._starting.add(launch.executor_id)
        stock = self._stocks.get(launch.context.application.name)
        wanted = recipe(launch) if stock is not None else None
        if stock is None or wanted is None:
            return None
        if stock.recipe != wanted or not launch.application.warm_instances:
            self._drop(stock)
            return None
        self._use(stock)
        return stock.take()

    def entered(self, launch: Launch) -> None:
        """The executor has entered its session: its application works here, so some more may be started ahead."""
        worth = launch.application.warm_instances and self._limits.budget and not self._closed
        wanted = recipe(launch) if worth else None
        if wanted is not None:
            name = launch.context.application.name
            stock = self._stocks.get(name)
            if stock is None or stock.recipe != wanted:
                if stock is not None:
                    self._drop(stock)
                stock = self._stocks[name] = _Stock(name, wanted, ahead(launch, "", ""))
            stock.wish = launch.application.warm_instances
            if stock.rest is None:
                stock.resting = False  # it was given up: one more try
            self._use(stock)
        self.over(launch.executor_id)

    def over(self, executor_id: str) -> None:
        """This executor starts no more, whatever became of it."""
        self._starting.discard(executor_id)
        self._refill()

    async def close(self) -> None:
        """End all of them; returns when they are gone. No further ones are started."""
        self._closed = True
        for stock in list(self._stocks.values()):
            self._drop(stock)
        while self._beginning or self._ending:
            await asyncio.wait(self._beginning | self._ending)

    # --- how many --------------------------------------------------------------------------------------------------

    def _use(self, stock: _Stock[I]) -> None:
        self._stocks[stock.name] = self._stocks.pop(stock.name)
        if stock.expiry is not None:
            stock.expiry.cancel()
        stock.expiry = self._loop.call_later(self._limits.idle, self._drop, stock)

    def _drop(self, stock: _Stock[I]) -> None:
        """The application shall have none any more."""
        for timer in (stock.expiry, stock.rest):
            if timer is not None:
                timer.cancel()
        del self._stocks[stock.name]
        while stock.waiting:
            self._end(stock.waiting.pop())

    def _refill(self) -> None:
        """Bring each application to what it is allotted."""
        if self._closed or self._starting:
            return
        stocks = list(reversed(self._stocks.values()))
        shares = allot((stock.wish for stock in stocks), self._limits.budget)
        for stock, share in zip(stocks, shares, strict=True):
            while len(stock.waiting) > share:
                self._end(stock.waiting.pop())
        for stock, share in zip(stocks, shares, strict=True):
            while len(stock.waiting) < share and not stock.resting and len(self._beginning) < _AT_ONCE:
                waiting: _Waiting[I] = _Waiting()
                waiting.lose = partial(self._lose, stock, waiting)
                stock.waiting.append(waiting)
                waiting.life = self._background(self._beginning, self._begin(stock, waiting))

    # --- their lives -----------------------------------------------------------------------------------------------

    async def _begin(self, stock: _Stock[I], waiting: _Waiting[I]) -> None:
        launch = ahead(stock.launch, f"warm-{secrets.token_hex(16)}", secrets.token_urlsafe(32))
        allowed = launch.application.start_timeout_ms / 1000 or self._limits.start_timeout
        try:
            async with asyncio.timeout(allowed):
                instance = waiting.instance = await self._spawn(launch, waiting)
                if waiting not in stock.waiting:
                    self._end(waiting)  # it was not wanted any more before it ran
                    return
                await instance.ready()
        except TimeoutError:
            waiting.lose(f"it did not become ready within {allowed:g} s")
        except BindError as error:
            waiting.lose(error.message)
        except Exception as error:
            logger.exception("starting an instance of %s ahead failed", stock.name)
            waiting.lose(f"{type(error).__name__}: {error}")
        else:
            waiting.ready = stock.proven = True
            logger.debug("process %d waits for a session of %s", instance.pid, stock.name)
            instance.ended.add_done_callback(partial(waiting.on_ended, instance))

    def _lose(self, stock: _Stock[I], waiting: _Waiting[I], why: str) -> None:
        """It died before anybody wanted it."""
        if waiting not in stock.waiting:
            return  # it was taken, or is ended already
        stock.waiting.remove(waiting)
        logger.warning("an instance of %s that was started ahead is lost: %s", stock.name, why)
        if not stock.resting:  # those that die together have one cause
            stock.deaths += 1
            stock.resting = True
            pause = pause_after(stock.deaths)
            if pause is None:
                logger.warning("no further instance of %s is started ahead until it is used again", stock.name)
            else:
                stock.rest = self._loop.call_later(pause, self._rested, stock)
        self._end(waiting)

    def _rested(self, stock: _Stock[I]) -> None:
        stock.resting, stock.rest = False, None
        self._refill()

    def _end(self, waiting: _Waiting[I]) -> None:
        if waiting.instance is not None:
            self._background(self._ending, self._put_down(waiting.instance))

    async def _put_down(self, instance: I) -> None:
        if not instance.ended.done():
            instance.terminate()
            await asyncio.wait({instance.ended}, timeout=self._limits.terminate_grace)
        if not instance.ended.done():
            instance.kill()
            await instance.ended
        await instance.dispose()

    def _background(self, tasks: set[asyncio.Task[None]], work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        tasks.add(task)
        task.add_done_callback(partial(self._done, tasks))
        return task

    def _done(self, tasks: set[asyncio.Task[None]], task: asyncio.Task[None]) -> None:
        tasks.discard(task)
        if not task.cancelled():
            task.result()
        self._refill()

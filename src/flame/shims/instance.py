"""An instance that is one program with one way to talk to it. What is different between the shims is its door."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from typing import Protocol

from flame.model.states import BindCode
from flame.shims.processes import Program
from flame.shims.shim import BindError, Dialect, Owner, Usage
from flame.shims.workplace import Running, Workplace

_LAST_WORDS_S = 2.0


class Door(Protocol):
    """How a program is talked to. `over` is done when nothing more can come from it once it has ended."""

    over: asyncio.Future[None]

    @property
    def hint(self) -> str:
        """A clause that tells why it may never become ready."""
        ...

    async def ready(self) -> Dialect:
        """The dialect, once the program can be talked to. Raises BindError when it talks nonsense."""
        ...

    def bind(self, owner: Owner) -> None:
        """Who hears what comes before the dialect is there."""
        ...

    def last_call(self) -> None:
        """The program has ended: read what it left."""
        ...

    async def close(self) -> None:
        """Let go of what it is made of."""
        ...


class ProgramInstance:
    """One program in its place, behind a door."""

    def __init__(self, place: Workplace, door: Door, owner: Owner) -> None:
        self.pid = 0
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.place = place
        self.on_entered: Callable[[], None] = _nothing
        self.on_disposed: Callable[[], None] = _nothing
        self._door = door
        self._owner = owner
        self._dialect: Dialect | None = None
        self._running: Running | None = None
        self._ending: asyncio.Task[None] | None = None
        place.watch_output(self._flooded)

    async def run(self, program: Program, stdout: int | None = None, stdin: int | None = None) -> None:
        """Start it. Raises BindError."""
        self._running = await self.place.start(program, stdout, stdin)
        self.pid = self._running.pid
        self._running.ended.add_done_callback(self._on_exit)

    def bind(self, owner: Owner) -> None:
        """It waited for a session, and belongs to this owner from now on."""
        self._owner = owner
        self._door.bind(owner)
        if self._dialect is not None:
            self._dialect.owner = owner

    async def ready(self) -> Dialect:
        """Wait until it can be talked to. Raises BindError (11) when it ends before or talks nonsense."""
        if self._dialect is not None:
            return self._dialect
        becoming = asyncio.ensure_future(self._door.ready())
        try:
            await asyncio.wait({becoming, self.ended}, return_when=asyncio.FIRST_COMPLETED)
            if becoming.done():
                self._dialect = becoming.result()
                return self._dialect
        finally:
            becoming.cancel()
            await asyncio.wait({becoming})
        raise BindError(BindCode.START, f"the instance {self.ended.result()} before it was ready{self.last_words()}")

    def entered(self) -> None:
        self.on_entered()

    def last_words(self) -> str:
        return (self._door.hint if self._dialect is None else "") + self.place.last_words()

    def usage(self) -> Usage | None:
        return self.place.usage()

    def lap(self) -> Usage | None:
        return self.place.lap()

    def terminate(self) -> None:
        if self._running is not None:
            self._running.signal(signal.SIGTERM)

    def kill(self) -> None:
        if self._running is not None:
            self._running.signal(signal.SIGKILL)

    async def dispose(self) -> None:
        """Close its connection and its log, remove what it had."""
        if self._dialect is not None:
            self._dialect.close()
        await self._door.close()
        await self.place.close()
        self.on_disposed()

    def _flooded(self, why: str) -> None:
        self._owner.broken(why)

    def _on_exit(self, status: asyncio.Future[int]) -> None:
        self._door.last_call()
        if self._door.over.done():
            self._has_ended()
        else:
            self._ending = asyncio.get_running_loop().create_task(self._hear_out())

    async def _hear_out(self) -> None:
        """What it said before its end counts: it has ended when that is read."""
        # Somebody whom it gave its socket may keep it open.
        await asyncio.wait({self._door.over}, timeout=_LAST_WORDS_S)
        self._has_ended()

    def _has_ended(self) -> None:
        assert self._running is not None
        if not self.ended.done():
            self.ended.set_result(self._running.how())


def _nothing() -> None:
    """Nobody wants to know."""

"""The sandboxes of the clients of an MCP server: made at first use, closed when their client ends or is silent."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from flame.agents.toolbox import AsyncToolbox
from flame.model.errors import ExhaustedError, FlameError, InvalidStateError, NotFoundError
from flame.sandbox import AsyncSandbox

_LOG = logging.getLogger("flame.agents")
_REMEMBERED = 1000  # clients whose sandbox has ended and who were not told yet

Create = Callable[[], Awaitable[AsyncSandbox]]


@dataclass
class _Place:
    """One client's sandbox. `ended` says why there is none any more, until the client was told."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    sandbox: AsyncSandbox | None = None
    busy: int = 0
    timer: asyncio.TimerHandle | None = None
    ended: str = ""


class Clients:
    """Sandboxes by the key of their client.

    `create` makes one; `idle` seconds after the last call it is closed. At most `most` are open at once.
    """

    def __init__(self, create: Create, *, idle: float, most: int, timeout: float, limit: int) -> None:
        self._create = create
        self._idle = idle
        self._most = most
        self._timeout = timeout
        self._limit = limit
        self._places: dict[str, _Place] = {}
        self._closing: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def use(self, key: str, *, new: bool = True) -> AsyncGenerator[AsyncToolbox, None]:
        """The tools of the client's sandbox, which is made if there is none and `new` allows it.

        Raises InvalidStateError once when the sandbox has ended meanwhile, ExhaustedError, NotFoundError, and what
        making it raises.
        """
        if key not in self._places and not new:
            raise NotFoundError(f"there is no sandbox {key}", remedy="leave it out to get a new one")
        place = self._places.setdefault(key, _Place())
        place.busy += 1
        if place.timer is not None:
            place.timer.cancel()
        try:
            async with place.lock:
                if place.ended:
                    self._places.pop(key, None)
                    raise InvalidStateError(place.ended, remedy=_AGAIN)
                if place.sandbox is None:
                    place.sandbox = await self._made()
            if self._places.get(key) is not place:
                raise InvalidStateError("the sandbox was closed while it was made", remedy=_AGAIN)
            yield AsyncToolbox(place.sandbox, timeout=self._timeout, limit=self._limit)
        except InvalidStateError as error:
            if self._places.get(key) is not place or place.sandbox is None or await _alive(place.sandbox):
                raise
            await self.close(key)
            raise InvalidStateError(error.message, remedy=_AGAIN) from None
        finally:
            place.busy -= 1
            if not place.busy and self._places.get(key) is place:
                if place.sandbox is not None:
                    place.timer = asyncio.get_running_loop().call_later(self._idle, self._idled, key)
                elif not place.ended:
                    del self._places[key]

    async def close(self, key: str) -> bool:
        """Close the client's sandbox, also one that is being made. Whether there was one."""
        place = self._places.pop(key, None)
        if place is None:
            return False
        # Goes on when the caller is cancelled.
        await asyncio.wait({self._begin_to_close(place)})
        return place.sandbox is not None

    async def close_all(self) -> None:
        """Close all of them; returns when those are closed, too, whose closing somebody else began."""
        places, self._places = list(self._places.values()), {}
        for place in places:
            self._begin_to_close(place)
        while self._closing:
            await asyncio.wait(self._closing)

    def _begin_to_close(self, place: _Place) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(_close(place))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
        return task

    async def _made(self) -> AsyncSandbox:
        if sum(not place.ended for place in self._places.values()) > self._most:
            raise ExhaustedError(f"{self._most} sandboxes are open already", remedy="end other conversations first")
        return await self._create()

    def _idled(self, key: str) -> None:
        place = self._places[key]
        ended = _Place(ended=f"the sandbox was closed: nothing was asked of it for {self._idle:g} s")
        self._places[key] = ended
        waiting = [name for name, each in self._places.items() if each.ended]
        for name in waiting[:-_REMEMBERED]:
            del self._places[name]
        self._begin_to_close(place)


_AGAIN = "this call was not carried out; the next one begins with a new sandbox, without the files and variables"


async def _close(place: _Place) -> None:
    if place.timer is not None:
        place.timer.cancel()
    async with place.lock:  # it may be about to be made
        if place.sandbox is None:
            return
        try:
            await place.sandbox.close()
        except FlameError as error:
            _LOG.warning("a sandbox was left behind, and ends when it is idle: %s", error.message)


async def _alive(sandbox: AsyncSandbox) -> bool:
    try:
        await sandbox.files.exists(".")
    except FlameError:
        return False
    return True

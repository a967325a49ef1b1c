"""Programs that are talked to over their stdin and stdout, which are one socket."""

from __future__ import annotations

import asyncio
import socket
from typing import Protocol

from flame.shims.instance import ProgramInstance
from flame.shims.shim import Dialect, Owner
from flame.shims.workplace import Workplace


class Stream(Protocol):
    """One way to talk over the socket: a protocol of asyncio that becomes a dialect. `over` is done when nothing more
    can come from the program."""

    over: asyncio.Future[None]
    owner: Owner

    def make(self) -> asyncio.Protocol:
        """What the socket's transport is connected to."""
        ...

    async def ready(self) -> Dialect:
        """The dialect, once the program can be talked to. Raises BindError when it talks nonsense."""
        ...

    def last_call(self) -> None:
        """The program has ended: read what it left."""
        ...


class StreamDoor:
    """A socket whose other end is a program's stdin and stdout."""

    def __init__(self, stream: Stream) -> None:
        self.over = stream.over
        self._stream = stream
        self._transport: asyncio.Transport | None = None

    async def start(self, place: Workplace, owner: Owner) -> ProgramInstance:
        """The place's program, started behind this door. Raises BindError; then the place is closed."""
        instance = ProgramInstance(place, self, owner)
        ours, theirs = socket.socketpair()
        with theirs:
            ours.setblocking(False)
            try:
                loop = asyncio.get_running_loop()
                self._transport, _ = await loop.create_unix_connection(self._stream.make, sock=ours)
                await instance.run(place.program, theirs.fileno(), theirs.fileno())
            except BaseException:
                await instance.dispose()
                raise
        return instance

    @property
    def hint(self) -> str:
        return ""

    async def ready(self) -> Dialect:
        return await self._stream.ready()

    def bind(self, owner: Owner) -> None:
        self._stream.owner = owner

    def last_call(self) -> None:
        self._stream.last_call()

    async def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

"""A program that speaks the link over its stdin and stdout, or gRPC at a socket: whichever comes first. Where only
streams reach inside, nobody can tell before."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from flame.link import Kind
from flame.link.frames import HEADER, HEADER_SIZE
from flame.shims import grpc_dialect
from flame.shims.reception import Arrival, Reception
from flame.shims.shim import Dialect, ObjectDoor, Owner
from flame.shims.stdio_framed import FramedStream
from flame.shims.streams import StreamDoor

_NO_LINK = "; what it wrote to stdout is not the link, and went to its log"


class Sorter(asyncio.Protocol):
    """Gives what comes to `link` if it begins as the link does, else to `log`."""

    def __init__(self, link: asyncio.Protocol, log: Callable[[bytes], None]) -> None:
        self.transport: asyncio.WriteTransport | None = None
        self.prints: bool | None = None  # whether what comes is not the link; None = nobody knows
        self.printed = False
        self._link = link
        self._log = log
        self._held = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if isinstance(transport, asyncio.WriteTransport):
            self.transport = transport
        self._link.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if self.prints is None:
            self._held += data
            if len(self._held) < HEADER_SIZE:
                return
            _, kind, flags, zero, channel = HEADER.unpack_from(self._held)
            self.prints = kind != Kind.HELLO or bool(flags or zero or channel)
            data, self._held = self._held, b""
        if self.prints:
            self._print(data)
        else:
            self._link.data_received(data)

    def is_no_link(self) -> None:
        """It talks in another way: what comes is for the log."""
        self.prints = True
        if self._held:
            self._print(self._held)
            self._held = b""

    def eof_received(self) -> bool | None:
        return self._link.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.prints is None:
            self.is_no_link()
        self._link.connection_lost(exc)

    def _print(self, data: bytes) -> None:
        self.printed = True
        self._log(data)

    def pause_writing(self) -> None:
        self._link.pause_writing()

    def resume_writing(self) -> None:
        self._link.resume_writing()


class EitherStream(FramedStream):
    """The streams of a program that may talk in another way; then what it prints goes to `log`."""

    def __init__(
        self, owner: Owner, max_payload: int, objects: ObjectDoor | None, log: Callable[[bytes], None]
    ) -> None:
        super().__init__(owner, max_payload, objects)
        self._log = log
        self.sorter: Sorter | None = None

    def make(self) -> asyncio.Protocol:
        self.sorter = Sorter(super().make(), self._log)
        return self.sorter


class EitherDoor(StreamDoor):
    """Waits for both."""

    def __init__(
        self, stream: EitherStream, reception: Reception, arrival: Arrival, owner: Owner, max_payload: int
    ) -> None:
        super().__init__(stream)
        self._either = stream
        self._reception = reception
        self._arrival = arrival
        self._owner = owner
        self._max_payload = max_payload

    @property
    def hint(self) -> str:
        sorter = self._either.sorter
        return _NO_LINK if sorter is not None and sorter.printed else ""

    async def ready(self) -> Dialect:
        arrival = self._arrival
        greeted = asyncio.ensure_future(self._either.ready())
        try:
            await asyncio.wait({greeted, arrival.file}, return_when=asyncio.FIRST_COMPLETED)
            if greeted.done():
                dialect: Dialect = greeted.result()
            else:
                dialect = await self._connect()
        finally:
            greeted.cancel()
        self._reception.settled(arrival)
        return dialect

    def bind(self, owner: Owner) -> None:
        super().bind(owner)
        self._owner = owner

    async def close(self) -> None:
        await super().close()
        await self._reception.forget(self._arrival)

    async def _connect(self) -> Dialect:
        sorter = self._either.sorter
        assert sorter is not None
        assert sorter.transport is not None
        sorter.is_no_link()
        sorter.transport.write_eof()
        return await grpc_dialect.connect(self._arrival, self._owner, self._max_payload)

"""Servers in a sandbox, made available on the loopback of its client."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from flame.client.background import LoopThread
from flame.client.values import short_name
from flame.model.errors import FlameError, InvalidArgumentError
from flame.sandbox import wire
from flame.sandbox.calling import AsyncCaller
from flame.sandbox.steps import ask, do

HOST = "127.0.0.1"


class AsyncExposedPort:
    """A listener on this machine's loopback, whose connections go on to a port in the sandbox.

    One that nobody listens for in the sandbox is closed at once. As an async context manager it is closed at the end.
    """

    def __init__(self, caller: AsyncCaller, port: int) -> None:
        self.host = HOST
        self.port = 0
        self.inside = port
        self._caller = caller
        self._connections: set[asyncio.Task[None]] = set()

    async def listen(self) -> Self:
        """Begin. Raises InvalidArgumentError, OSError, and InvalidStateError where the sandbox was closed."""
        if not (isinstance(self.inside, int) and 0 < self.inside < 65536):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidArgumentError(f"{self.inside!r} is no port")
        self._caller.check_open()
        self._server = await asyncio.start_server(self._accept, HOST, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    @property
    def url(self) -> str:
        """Where it listens, as an HTTP address."""
        return f"http://{self.host}:{self.port}"

    async def close(self) -> None:
        """Listen no more, and end the connections."""
        self._server.close()
        for task in list(self._connections):
            task.cancel()
        if self._connections:
            await asyncio.wait(self._connections)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        name = short_name("tunnel", 12)
        run = self._caller.run
        try:
            await run(do(wire.Connect(name, self.inside)))
            try:
                async with asyncio.TaskGroup() as both:
                    both.create_task(self._up(name, reader))
                    both.create_task(self._down(name, writer))
            finally:
                await run(do(wire.Disconnect(name)))
        except* (FlameError, OSError):
            pass  # the connection ends: all that its client can be told
        finally:
            writer.close()

    async def _up(self, name: str, reader: asyncio.StreamReader) -> None:
        """What our client sends."""
        while True:
            data = await reader.read(wire.PIECE)
            taken = 0
            while not taken:
                taken = (await self._caller.run(ask(wire.Send(name, data, not data), wire.Taken))).size or not data
            if not data:
                return

    async def _down(self, name: str, writer: asyncio.StreamWriter) -> None:
        """What the server inside answers."""
        while True:
            received = await self._caller.run(ask(wire.Receive(name), wire.Received))
            if received.data:
                writer.write(received.data)
                await writer.drain()
            if received.end:
                if writer.can_write_eof():
                    writer.write_eof()
                return


class ExposedPort:
    """A listener on this machine's loopback, whose connections go on to a port in the sandbox.

    One that nobody listens for in the sandbox is closed at once. As a context manager it is closed at the end.
    """

    def __init__(self, exposed: AsyncExposedPort, thread: LoopThread) -> None:
        self._exposed = exposed
        self._thread = thread
        self.host = exposed.host
        self.port = exposed.port
        self.url = exposed.url

    def close(self) -> None:
        """Listen no more, and end the connections."""
        self._thread.run(self._exposed.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<ExposedPort {self.url}>"

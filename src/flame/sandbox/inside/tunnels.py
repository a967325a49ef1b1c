"""Connections that a client makes to servers in the sandbox."""

from __future__ import annotations

import asyncio

from flame.model.errors import InvalidArgumentError, InvalidStateError, NotFoundError, UnavailableError
from flame.sandbox.wire import PIECE, POLL_S, Received

MAX_TUNNELS = 500
_PATIENCE_S = POLL_S + 40  # after which a client that does not come back has gone
_CONNECT_S = 10.0


class Tunnel:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.patience: asyncio.TimerHandle | None = None
        self.receiving = asyncio.Lock()


class Tunnels:
    """All of them, by id."""

    def __init__(self) -> None:
        self._tunnels: dict[str, Tunnel] = {}

    async def connect(self, name: str, port: int) -> None:
        """Raises UnavailableError when nobody listens there, InvalidArgumentError, InvalidStateError."""
        if not 0 < port < 65536:
            raise InvalidArgumentError(f"{port} is no port")
        if len(self._tunnels) >= MAX_TUNNELS:
            raise InvalidStateError(f"there are {MAX_TUNNELS} connections already", remedy="close some of them")
        try:
            async with asyncio.timeout(_CONNECT_S):
                reader, writer = await _connected(port)
        except OSError:
            raise UnavailableError(f"nothing listens on port {port} of the sandbox") from None
        tunnel = self._tunnels[name] = Tunnel(reader, writer)
        self._expect(name, tunnel)

    async def send(self, name: str, data: bytes, *, end: bool) -> int:
        """How many bytes were taken. Raises NotFoundError, OSError."""
        tunnel = self._named(name)
        try:
            async with asyncio.timeout(POLL_S):
                await tunnel.writer.drain()
        except TimeoutError:
            return 0
        tunnel.writer.write(data)
        if end and tunnel.writer.can_write_eof():
            tunnel.writer.write_eof()
        self._expect(name, tunnel)
        return len(data)

    async def receive(self, name: str) -> Received:
        """What came. Raises NotFoundError."""
        tunnel = self._named(name)
        async with tunnel.receiving:
            try:
                async with asyncio.timeout(POLL_S):
                    data = await tunnel.reader.read(PIECE)
            except TimeoutError:
                return Received(b"")
            except OSError:
                return Received(b"", end=True)
            finally:
                self._expect(name, tunnel)
        return Received(data, end=not data)

    def disconnect(self, name: str) -> None:
        """One that has ended is no error."""
        tunnel = self._tunnels.pop(name, None)
        if tunnel is not None:
            if tunnel.patience is not None:
                tunnel.patience.cancel()
            tunnel.writer.close()

    def close(self) -> None:
        for name in list(self._tunnels):
            self.disconnect(name)

    def _named(self, name: str) -> Tunnel:
        tunnel = self._tunnels.get(name)
        if tunnel is None:
            raise NotFoundError(f"connection {name} has ended")
        self._expect(name, tunnel)
        return tunnel

    def _expect(self, name: str, tunnel: Tunnel) -> None:
        if tunnel.patience is not None:
            tunnel.patience.cancel()
        if name in self._tunnels:
            tunnel.patience = asyncio.get_running_loop().call_later(_PATIENCE_S, self.disconnect, name)


async def _connected(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Raises OSError."""
    try:
        return await asyncio.open_connection("127.0.0.1", port)
    except ConnectionRefusedError:
        return await asyncio.open_connection("::1", port)

"""A listening socket for a few connections: of somebody who is not trusted, and could make them without end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable


class Doorway:
    """Accepts `most` connections, one in each turn of the loop; who comes then closes it, and `crowded` is called.

    What asyncio offers accepts as many as wait in one turn, and breaks those under way when it is closed.
    """

    def __init__(
        self, sock: socket.socket, make: Callable[[], asyncio.Protocol], most: int, crowded: Callable[[], None]
    ) -> None:
        self._sock = sock
        self._make = make
        self._left = most
        self._crowded = crowded
        self._loop = asyncio.get_running_loop()
        self._connecting: set[asyncio.Task[None]] = set()
        sock.setblocking(False)
        sock.listen(most)
        self._loop.add_reader(sock.fileno(), self._accept)

    def close(self) -> None:
        """Let nobody else in. Harmless when repeated."""
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock.fileno())
            self._sock.close()

    async def wait_closed(self) -> None:
        """Wait until those that were accepted have their carriers."""
        if self._connecting:
            await asyncio.wait(self._connecting)

    def _accept(self) -> None:
        try:
            sock, _ = self._sock.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError:  # no descriptor is left: this one would be tried again in every turn
            self.close()
            self._crowded()
            return
        if not self._left:
            sock.close()
            self.close()
            self._crowded()
            return
        self._left -= 1
        task = self._loop.create_task(self._connect(sock))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, sock: socket.socket) -> None:
        await self._loop.connect_accepted_socket(self._make, sock)

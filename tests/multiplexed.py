"""Both ends of what a virtual machine carries connections over, in one loop, for tests."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

from flame.shims.guest.pump import Loop

PATIENCE = 20.0


class Ends:
    """`ours` is the outer end of the stream, `port` the inner one. `clients` are both ends of who came."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.ours, self.port = socket.socketpair()
        self.ours.setblocking(False)
        self.port.setblocking(False)
        self.clients: list[socket.socket] = []
        self.others = [self.ours, self.port]  # closed at the end as well

    def until(self, done: Callable[[], object]) -> None:
        """Turn the loop until it is so."""
        deadline = time.monotonic() + PATIENCE
        while not done():
            assert time.monotonic() < deadline
            self.loop.turn(5)

    def hold(self, sock: socket.socket) -> socket.socket:
        """It does not wait, and is closed at the end."""
        sock.setblocking(False)
        self.clients.append(sock)
        return sock

    def send(self, sender: socket.socket, data: bytes, receiver: socket.socket) -> None:
        """All of it, and it comes as it was sent."""
        came = bytearray()
        sent = 0

        def arrived() -> bool:
            nonlocal sent
            try:
                sent += sender.send(data[sent : sent + 65536]) if sent < len(data) else 0
            except BlockingIOError:
                pass
            came.extend(received(receiver) or b"")
            return len(came) >= len(data)

        self.until(arrived)
        assert came == data

    def stuff(self, sender: socket.socket) -> int:
        """Send to somebody who does not read, until no more is taken; gives how much was."""
        sent, still = 0, 0
        while still < 20:
            try:
                sent += sender.send(bytes(65536))
                still = 0
            except BlockingIOError:
                still += 1
            self.loop.turn(5)
        return sent

    def close(self) -> None:
        for sock in (*self.others, *self.clients):
            sock.close()


def received(sock: socket.socket) -> bytes | None:
    """What is there now, None = nothing is; b"" = it has ended."""
    try:
        return sock.recv(1 << 20)
    except BlockingIOError:
        return None

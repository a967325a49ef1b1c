"""The outer end of the way out of a virtual machine whose network is a list: each connection that comes from inside
(guest/bridge.py) is one to the proxy. Runs below the executor's limits, in front of the machine. What comes from inside
is not trusted: what makes no sense raises ValueError. Only the standard library: the runner uses it."""

from __future__ import annotations

import os
import socket

from flame.shims.guest.multiplex import MAX_CONNECTIONS, OPEN, START, STOP, STOPPED, Multiplex
from flame.shims.guest.pump import Loop


class WayOut:
    """`connections` is how many there were. `stopped`: nothing is under way, and nothing comes any more."""

    def __init__(self, loop: Loop, port: int, proxy: str) -> None:
        """`port` stays the caller's, non-blocking; `proxy` is the path of a socket. Connections may come from now on.
        Raises OSError."""
        folder, self._name = os.path.split(proxy)
        self._folder = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self.connections = 0
        self.stopped = False
        self._multiplex = Multiplex(loop, port, self._on_frame, trusting=False)
        self._multiplex.tell(START)

    @property
    def size(self) -> int:
        """How many connections there are."""
        return self._multiplex.size

    @property
    def unsent(self) -> int:
        """Bytes that the machine does not take at the moment."""
        return self._multiplex.unsent

    def stop(self) -> None:
        """Let nothing be under way: the machine is saved."""
        self._multiplex.drop()
        self._multiplex.ignoring = True
        self._multiplex.tell(STOP)

    def close(self) -> None:
        """The machine has ended."""
        self._multiplex.close()
        os.close(self._folder)

    def _on_frame(self, kind: int, number: int) -> None:
        if kind == STOPPED and self._multiplex.ignoring:
            self.stopped = True
        elif kind == OPEN and number == self.connections + 1 and self._multiplex.size < MAX_CONNECTIONS:
            self.connections = number
            if not self._multiplex.ignoring:
                # Many that it ended itself may still wait for the proxy to read what they sent.
                few = self._multiplex.lingering < MAX_CONNECTIONS
                self._multiplex.add(number, self._connection() if few else None)
        else:
            raise ValueError(f"a frame of kind {kind} for connection {number} comes out of turn")

    def _connection(self) -> socket.socket | None:
        """One to the proxy, None = it takes none."""
        connection = socket.socket(socket.AF_UNIX)
        connection.setblocking(False)
        try:
            connection.connect(f"/proc/self/fd/{self._folder}/{self._name}")  # the whole path may be too long for one
        except OSError:
            connection.close()
            return None
        return connection

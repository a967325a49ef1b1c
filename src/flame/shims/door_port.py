"""The outer end of the way into a virtual machine: each connection to a socket here is one to the socket that the
machine's program listens at (guest/door.py). Ours is there from when theirs is. Runs below the executor's limits, in
front of the machine. What comes from inside is not trusted: it can answer where somebody connected, and open nothing;
what makes no sense raises ValueError. Only the standard library: the runner uses it."""

from __future__ import annotations

import os
import select
import socket

from flame.shims.guest.multiplex import MAX_CONNECTIONS, OPEN, START, Multiplex
from flame.shims.guest.pump import Loop

_AT_ONCE = 16


class WayIn:
    """`connections` is how many there were."""

    def __init__(self, loop: Loop, port: int, path: str) -> None:
        """`port` stays the caller's, non-blocking; at `path` is the socket made, whose folder is there. Raises
        OSError."""
        self._folder, self._name = os.path.split(path)
        self._loop = loop
        self._listening: socket.socket | None = None
        self.connections = 0
        self._multiplex = Multiplex(loop, port, self._on_frame, trusting=False)

    @property
    def size(self) -> int:
        """How many connections have something to say, or to be told."""
        return self._multiplex.size + self._multiplex.lingering

    @property
    def unsent(self) -> int:
        """Bytes that the machine does not take at the moment."""
        return self._multiplex.unsent

    def stop(self) -> None:
        """Take no further connection."""
        if self._listening is not None:
            self._loop.watch(self._listening.fileno(), 0, self._on_come)
            self._listening.close()
            self._listening = None

    def close(self) -> None:
        """The machine has ended."""
        self.stop()
        self._multiplex.close()

    def _on_frame(self, kind: int, number: int) -> None:
        if kind != START or number or self._listening is not None:
            raise ValueError(f"a frame of kind {kind} for connection {number} comes out of turn")
        self._listening = listening = socket.socket(socket.AF_UNIX)
        listening.setblocking(False)
        # Listens before it has its name: who sees it may connect.
        made = f"{self._folder}/new"
        listening.bind(made)
        listening.listen(MAX_CONNECTIONS)
        os.rename(made, f"{self._folder}/{self._name}")  # noqa: PTH104 - the rest of pathlib costs too much
        self._loop.watch(listening.fileno(), select.POLLIN, self._on_come)

    def _on_come(self, events: int) -> None:
        for _ in range(_AT_ONCE):
            if self._listening is None:
                return
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            if self.size >= MAX_CONNECTIONS:
                connection.close()
                continue
            self.connections += 1
            self._multiplex.tell(OPEN, self.connections)
            self._multiplex.add(self.connections, connection)

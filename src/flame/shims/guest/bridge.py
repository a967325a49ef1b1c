"""The way out of a virtual machine whose network is a list: a port of its loopback, whose connections go over one port
of the machine to the proxy outside. A process apart, as a user of its own: what the program does to it, and what it
does to the program, goes through its socket only.

It listens from START on. At STOP it closes all it has and says STOPPED: nothing is under way in a machine that is
saved. Who comes meanwhile waits for the next START.
"""

from __future__ import annotations

import os
import select
import socket

from flame.shims.guest.apart import leave
from flame.shims.guest.multiplex import MAX_CONNECTIONS, OPEN, START, STOP, STOPPED, WINDOW, Multiplex
from flame.shims.guest.pump import Loop

USER = 1001
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
_OWN = "localhost,127.0.0.1,::1"
_BACKLOG = 128
_AT_ONCE = 16


class Bridge:
    """Passes on who comes to `listening`, by `port`."""

    def __init__(self, loop: Loop, port: int, listening: socket.socket) -> None:
        self._loop = loop
        self._listening = listening
        self._last = 0  # number of a connection
        self._multiplex = Multiplex(loop, port, self._on_frame, trusting=True)

    @property
    def size(self) -> int:
        """How many connections there are."""
        return self._multiplex.size

    def close(self) -> None:
        """Of no use any more."""
        self._multiplex.close()

    def _on_frame(self, kind: int, number: int) -> None:
        if kind == START:
            self._last = 0
            self._loop.watch(self._listening.fileno(), select.POLLIN, self._on_come)
        elif kind == STOP:
            self._loop.watch(self._listening.fileno(), 0, self._on_come)
            self._multiplex.drop()
            self._multiplex.tell(STOPPED)

    def _on_come(self, events: int) -> None:
        for _ in range(_AT_ONCE):
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            if self._multiplex.size + self._multiplex.lingering >= MAX_CONNECTIONS:
                connection.close()
                continue
            self._last += 1
            self._multiplex.tell(OPEN, self._last)
            self._multiplex.add(self._last, connection)


def leave_behind(port: int, user: int) -> dict[str, str]:
    """Start the process that serves, not as `user`, who is the program's; `port` is its own from now on. Gives the
    variables by which programs know it."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=_BACKLOG)
    listening.setblocking(False)
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):  # those that come have them too
        listening.setsockopt(socket.SOL_SOCKET, option, WINDOW)
    address = f"http://127.0.0.1:{listening.getsockname()[1]}"
    own = USER + (user == USER)
    kept = (port, listening.fileno())
    leave(own, own, kept, lambda loop: Bridge(loop, port, listening), "the way to the network")
    listening.close()
    os.close(port)
    variables = {"NO_PROXY": _OWN, "no_proxy": _OWN}
    for name in _PROXIES:
        variables[name] = variables[name.lower()] = address
    return variables

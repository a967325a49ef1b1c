"""The way into a virtual machine: connections that come over one port of it are made to the socket that its program
listens at. A process apart, as the program's user, who alone may connect there.

It says START when there is a socket, once. From then on each OPEN is a connection that somebody outside has made; it
opens none itself.
"""

from __future__ import annotations

import ctypes
import os
import select
import socket
from collections.abc import Callable

from flame.shims.guest.apart import leave
from flame.shims.guest.multiplex import OPEN, START, Multiplex
from flame.shims.guest.pump import Loop

_IN_MOVED_TO, _IN_CREATE = 0x80, 0x100
_EVENTS = 4096  # bytes of them that are read at once


class Watch:
    """Calls `made` once, when something is at `path`; its folder is there already."""

    def __init__(self, loop: Loop, path: str, made: Callable[[], None]) -> None:
        self._loop = loop
        self._path = path
        self._made = made
        libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        folder = os.path.dirname(path).encode()
        if self._descriptor < 0 or libc.inotify_add_watch(self._descriptor, folder, _IN_CREATE | _IN_MOVED_TO) < 0:
            raise OSError(ctypes.get_errno(), "can't watch the folder of the program's socket")
        loop.watch(self._descriptor, select.POLLIN, self._look)

    def close(self) -> None:
        """Call nobody any more."""
        if self._descriptor >= 0:
            self._loop.watch(self._descriptor, 0, self._look)
            os.close(self._descriptor)
            self._descriptor = -1

    def _look(self, events: int) -> None:
        os.read(self._descriptor, _EVENTS)
        if os.path.lexists(self._path):
            self.close()
            self._made()


class Door:
    """Makes connections to what listens at `path`, as they come by `port`."""

    def __init__(self, loop: Loop, port: int, path: str) -> None:
        self._path = path
        self._multiplex = Multiplex(loop, port, self._on_frame, trusting=True)
        self._watch = Watch(loop, path, self._on_made)

    def close(self) -> None:
        """Of no use any more."""
        self._watch.close()
        self._multiplex.close()

    def _on_made(self) -> None:
        self._multiplex.tell(START)

    def _on_frame(self, kind: int, number: int) -> None:
        if kind == OPEN:
            self._multiplex.add(number, self._connection())

    def _connection(self) -> socket.socket | None:
        """One to the program, None = it takes none."""
        connection = socket.socket(socket.AF_UNIX)
        connection.setblocking(False)
        try:
            connection.connect(self._path)
        except OSError:
            connection.close()
            return None
        return connection


def make_folder(path: str, user: int, group: int) -> None:
    """The one in which the program makes its socket."""
    folder = os.path.dirname(path)
    os.mkdir(folder, 0o700)
    os.chown(folder, user, group)


def leave_door(port: int, path: str, user: int, group: int) -> int:
    """Start the process that makes the connections, as the program's user; `port` is its own from now on. Gives its
    number."""
    pid = leave(user, group, (port,), lambda loop: Door(loop, port, path), "the way to the program")
    os.close(port)
    return pid

"""The kernel seen from the service: a process that is started, asked, interrupted, ended."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
from collections.abc import Callable, Mapping
from typing import Any

from flame.sandbox.inside.kernel_start import Started
from flame.sandbox.inside.kernel_words import Message, understood
from flame.sandbox.inside.processes import describe, when_ended
from flame.sandbox.wire import Shown

_MAX_MESSAGE = 64 * 1024**2
_CHUNK = 64 * 1024  # more at once would be mapped and unmapped for each message
_PIPE = 1024 * 1024  # what a pipe may hold
Answered = Callable[[Message | None], None]


class Kernel:
    """A kernel that is asked one thing at a time. `printed` gets (stderr?, text bytes), `told` what it shows."""

    def __init__(self, started: Started) -> None:
        self._started = started
        self._socket = started.socket
        self._loop = asyncio.get_running_loop()
        self._received = bytearray()
        self._unsent = bytearray()
        self._writing = False  # its socket is full
        self._answered: Answered | None = None  # who waits for its answer
        self.printed: Callable[[bool, bytes], None] = _ignored
        self.told: Callable[[Shown], None] = _nothing
        self.ended: asyncio.Future[str] = self._loop.create_future()  # in words
        self._pipes = {started.stdout: False, started.stderr: True}
        self._printing = select.poll()
        self._socket.setblocking(False)
        self._loop.add_reader(self._socket, self._on_message)
        self._unwatch = when_ended(started.pid, self._on_exit)
        for pipe in self._pipes:
            os.set_blocking(pipe, False)
            self._printing.register(pipe, select.POLLIN)
            self._loop.add_reader(pipe, self._on_output, pipe)

    @property
    def pid(self) -> int:
        return self._started.pid

    def take(self, env: Mapping[str, str]) -> bool:
        """These are its variables from now on, and its chance begins anew: it may be one of many copies. False when
        that takes a new kernel."""
        changed = self._started.learn(env)
        if changed is None:
            return False
        self._put({"do": "take", "env": changed})
        self._loop.call_later(0, self._send)  # after what is to be answered now
        return True

    def ask(self, request: dict[str, Any], answered: Answered) -> None:
        """`answered` is called with its answer, or with None when it ends instead. One thing at a time."""
        if self.ended.done():
            answered(None)
            return
        self._answered = answered
        self._put(request)
        self._send()

    def interrupt(self) -> None:
        """As Ctrl-C does."""
        if not self.ended.done():
            os.kill(self.pid, signal.SIGINT)

    def kill(self) -> None:
        """End it."""
        if not self.ended.done():
            self._started.kill()

    def release(self) -> None:
        """Have nothing more to do with it; it goes on."""
        if self.ended.done():
            return
        self._send()
        self._unwatch()
        self._loop.remove_reader(self._socket)
        for pipe in self._pipes:
            self._loop.remove_reader(pipe)

    def _put(self, request: dict[str, Any]) -> None:
        data = json.dumps(request).encode()
        self._unsent += len(data).to_bytes(4, "little") + data

    def _send(self) -> None:
        try:
            while self._unsent:
                del self._unsent[: self._socket.send(self._unsent[:_CHUNK])]
        except BlockingIOError:
            self._writing = True
            self._loop.add_writer(self._socket, self._send)
            return
        except OSError:
            self._unsent.clear()  # it has ended; its exit status is on its way
        if self._writing:
            self._writing = False
            self._loop.remove_writer(self._socket)

    def _on_message(self) -> None:
        try:
            data = self._socket.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._loop.remove_reader(self._socket)
            self.kill()  # it closed its socket: nobody can talk to it any more
            return
        self._received += data
        while len(self._received) >= 4:
            size = int.from_bytes(self._received[:4], "little")
            if size > _MAX_MESSAGE:
                self.kill()
                return
            if len(self._received) < 4 + size:
                return
            body = bytes(self._received[4 : 4 + size])
            del self._received[: 4 + size]
            try:
                message, shown = understood(body)
            except ValueError:
                self.kill()
                return
            self._take(message, shown)

    def _take(self, message: Message, shown: Shown | None) -> None:
        self.drain()  # what it printed before it said so
        if shown is not None:
            self.told(shown)
        if message.done:
            self._tell(message)

    def _tell(self, answer: Message | None) -> None:
        answered, self._answered = self._answered, None
        if answered is not None:
            answered(answer)

    def drain(self) -> None:
        """Take what is in the pipes now; others may go on writing to them for ever."""
        for _ in range(_PIPE // _CHUNK):
            ready = self._printing.poll(0)
            if not ready:
                return
            for pipe, _ in ready:
                self._on_output(pipe)

    def _on_output(self, pipe: int) -> None:
        try:
            data = os.read(pipe, _CHUNK)
        except BlockingIOError:
            return
        if data:
            self.printed(self._pipes[pipe], data)
        else:
            self._close(pipe)

    def _close(self, pipe: int) -> None:
        self._printing.unregister(pipe)
        self._loop.remove_reader(pipe)
        del self._pipes[pipe]
        os.close(pipe)

    def _on_exit(self) -> None:
        self._started.kill()  # what it left in its group
        status = self._started.wait()
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._socket.close()
        self.drain()
        for pipe in list(self._pipes):
            self._close(pipe)
        self.ended.set_result(describe(status))
        self._tell(None)


def _ignored(stderr: bool, data: bytes) -> None:
    """It prints while nothing runs."""


def _nothing(shown: Shown) -> None:
    """It shows something while nothing runs."""

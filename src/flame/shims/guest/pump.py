"""Bytes that go from one descriptor to another, and an event loop for a handful of descriptors.

Used on both sides of a virtual machine's wall. Only the standard library, and little of it.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable

CHUNK = 32 * 1024  # what a port of virtio takes at once

Ready = Callable[[int], None]


class Loop:
    """Calls who waits for a descriptor. One thread, level-triggered. One that is read by one and written by another has
    to be watched under two numbers (os.dup)."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._waiting: dict[int, tuple[int, Ready]] = {}

    def watch(self, descriptor: int, events: int, ready: Ready) -> None:
        """Call `ready` with what happened at the descriptor; 0 events = no more. Errors and hang-ups come as well."""
        known = self._waiting.get(descriptor)
        if not events:
            if known is not None:
                del self._waiting[descriptor]
                self._poll.unregister(descriptor)
        elif known is None or known != (events, ready):
            self._waiting[descriptor] = (events, ready)
            self._poll.register(descriptor, events)

    def turn(self, milliseconds: float | None = None) -> None:
        """Wait for something to happen, and tell who waits for it."""
        for descriptor, events in self._poll.poll(milliseconds):
            waiting = self._waiting.get(descriptor)
            if waiting is not None:
                waiting[1](events)


class Pump:
    """Moves what comes from `source` to `sink`, both non-blocking, and never holds more than one chunk.

    `ended`: nothing more comes. `idle`: all that came has been moved. `moved` counts bytes. `changed` is called when
    any of them has changed.
    """

    def __init__(self, loop: Loop, source: int, sink: int, changed: Callable[[], None] = lambda: None) -> None:
        self.ended = False
        self.moved = 0
        self._loop = loop
        self._source = source
        self._sink = sink
        self._held = b""
        self._changed = changed

    @property
    def idle(self) -> bool:
        return not self._held

    def begin(self) -> None:
        """Start moving."""
        self._loop.watch(self._source, select.POLLIN, self._readable)

    def stop(self) -> None:
        """Leave the source alone; what is held still goes out."""
        self._loop.watch(self._source, 0, self._readable)

    def drain(self) -> None:
        """Move what is there right now, as far as the sink takes it."""
        while not self.ended and not self._held:
            before = self.moved
            self._readable(select.POLLIN)
            if self.moved == before:
                return

    def _readable(self, events: int) -> None:
        try:
            data = os.read(self._source, CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""  # a pseudo-terminal or socket whose other end is gone
        if not data:
            self._end()
            return
        self._held = data
        self._write()
        if self._held:
            self.stop()
            self._loop.watch(self._sink, select.POLLOUT, self._writable)
        else:
            self._changed()

    def _writable(self, events: int) -> None:
        self._write()
        if not self._held:
            self._loop.watch(self._sink, 0, self._writable)
            if not self.ended:
                self.begin()
            self._changed()

    def _write(self) -> None:
        try:
            while self._held:
                written = os.write(self._sink, self._held)
                self.moved += written
                self._held = self._held[written:]
        except BlockingIOError:
            return
        except OSError:  # nobody reads any more: what comes is thrown away, so that who writes can end
            self.moved += len(self._held)
            self._held = b""

    def _end(self) -> None:
        self.ended = True
        self.stop()
        self._changed()


class Lines:
    """Finds lines in pieces of a stream. Raises ValueError for one that is longer than `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that are complete with these bytes, without their ends."""
        *lines, self._held = (self._held + data).split(b"\n")
        if any(len(line) > self._limit for line in (*lines, self._held)):
            raise ValueError(f"a line is longer than {self._limit} bytes")
        return lines

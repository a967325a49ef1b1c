"""Many connections over one stream, such as a port of a virtual machine; the same on both sides of its wall.

All that passes is frames: a kind, the number of a connection, a size, and with DATA so many bytes. A number is never
used again. Each side sends what the other one has ROOM for, so that a connection in which nobody reads stops nobody
else. A side that has nothing more to send says END, one that has nobody any more says GONE; when both have said one of
them, the number is forgotten. START, STOP, STOPPED and OPEN are left to who uses this.

A frame that makes no sense raises ValueError. Only the standard library, and little of it.
"""

from __future__ import annotations

import os
import select
import socket
import struct
from collections import deque
from collections.abc import Callable

from flame.shims.guest.pump import CHUNK, Loop

MAX_CONNECTIONS = 128
WINDOW = 64 * 1024  # bytes of a connection that may be under way, each way
START, STOP, STOPPED, OPEN, DATA, END, GONE, ROOM = range(1, 9)
FRAME = struct.Struct(">BII")  # kind, number, size
PAYLOAD = CHUNK - FRAME.size  # what one frame has at most
_FULL = 2 * CHUNK  # unsent bytes above which no connection is read
_DEAF = 2 * _FULL  # and above which nothing is: the other side makes us say so much, and does not listen
_AT_ALL = select.POLLIN | select.POLLHUP | select.POLLERR

Heard = Callable[[int, int], None]


class Multiplex:
    """One end."""

    def __init__(self, loop: Loop, port: int, heard: Heard, *, trusting: bool) -> None:
        """`port` stays the caller's, non-blocking. `heard` gets kind and number of the frames that are not about what
        a connection says. One that is `trusting` listens whatever it has still to say: of two ends one has to."""
        self.loop = loop
        self.ignoring = False  # what connections say
        self._port = port
        self._port_out = os.dup(port)
        self._heard = heard
        self._trusting = trusting
        self._strands: dict[int, Strand] = {}
        self._lingering: set[Strand] = set()  # forgotten, with something left to be written
        self._waiting: deque[Strand] = deque()  # to be read
        self._came = bytearray()
        self._out = bytearray()
        self._watch()

    @property
    def size(self) -> int:
        """How many connections have not been ended by both sides."""
        return len(self._strands)

    @property
    def lingering(self) -> int:
        """How many were, and still have something to be written."""
        return len(self._lingering)

    @property
    def unsent(self) -> int:
        """Bytes that the other end does not take at the moment."""
        return len(self._out)

    @property
    def full(self) -> bool:
        """Whether that is so much that no connection is read."""
        return len(self._out) >= _FULL

    def add(self, number: int, connection: socket.socket | None) -> None:
        """Carry this connection, which both sides know by this number from now on; None = there is none."""
        self._strands[number] = strand = Strand(self, number, connection)
        if connection is None:
            strand.give_up()
        else:
            connection.setblocking(False)
            strand.watch()

    def tell(self, kind: int, number: int = 0, size: int = 0, data: bytes = b"") -> None:
        """Send a frame."""
        self._out += FRAME.pack(kind, number, size)
        self._out += data
        self._flush()
        self._watch()

    def drop(self) -> None:
        """Close all connections, and say nothing of it."""
        for strand in (*self._strands.values(), *self._lingering):
            strand.close()
        for collection in (self._strands, self._lingering, self._waiting):
            collection.clear()

    def close(self) -> None:
        """Of no use any more."""
        self.drop()
        self.loop.watch(self._port, 0, self._readable)
        self.loop.watch(self._port_out, 0, self._writable)
        os.close(self._port_out)

    # --- for its strands -------------------------------------------------------------------------------------------

    def wait(self, strand: Strand) -> None:
        """It is read when there is room for what it says, after those that wait already."""
        strand.queued = True
        self._waiting.append(strand)
        self._watch()

    def forget(self, strand: Strand) -> None:
        """Both sides have ended it."""
        del self._strands[strand.number]
        if strand.unsent:
            self._lingering.add(strand)

    def let_go(self, strand: Strand) -> None:
        """It has nothing left to be written."""
        self._lingering.discard(strand)

    # --- the stream ------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        deaf = not self._trusting and len(self._out) >= _DEAF
        self.loop.watch(self._port, 0 if deaf else select.POLLIN, self._readable)
        self.loop.watch(self._port_out, select.POLLOUT if self._out or self._waiting else 0, self._writable)

    def _readable(self, events: int) -> None:
        try:
            data = os.read(self._port, CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:  # nobody is there any more
            self.drop()
            self._out.clear()
            self.loop.watch(self._port, 0, self._readable)
            return
        self._came += data
        begin = 0
        while len(self._came) - begin >= FRAME.size:
            kind, number, size = FRAME.unpack_from(self._came, begin)
            end = begin + FRAME.size
            if kind == DATA:
                if not 0 < size <= PAYLOAD:
                    raise ValueError(f"a frame has {size} bytes")
                end += size
                if end > len(self._came):
                    break
            self._take(kind, number, size, bytes(self._came[begin + FRAME.size : end]))
            begin = end
        del self._came[:begin]

    def _take(self, kind: int, number: int, size: int, data: bytes) -> None:
        if kind in (START, STOP, STOPPED, OPEN):
            self._heard(kind, number)
            return
        if self.ignoring:
            return
        strand = self._strands.get(number)
        if kind not in (DATA, END, GONE, ROOM) or (strand is None and kind in (DATA, END)):
            raise ValueError(f"a frame of kind {kind} came for connection {number}, which there is not")
        if strand is None:
            return  # it was said before our end was heard
        if kind == DATA:
            strand.on_data(data)
        elif kind == ROOM:
            strand.on_room(size)
        else:
            strand.on_end(gone=kind == GONE)

    def _writable(self, events: int) -> None:
        self._flush()
        while self._waiting and not self.full:
            strand = self._waiting.popleft()
            strand.queued = False
            strand.read()
        self._watch()

    def _flush(self) -> None:
        try:
            while self._out:
                del self._out[: os.write(self._port_out, bytes(self._out[:CHUNK]))]
        except BlockingIOError:
            pass
        except OSError:
            self._out.clear()  # nobody is there, which reading tells


class Strand:
    """One connection at one end. `unsent` came from the other end, and never is more than a window."""

    def __init__(self, owner: Multiplex, number: int, connection: socket.socket | None) -> None:
        self.number = number
        self.unsent = bytearray()
        self.queued = False  # waits to be read
        self._owner = owner
        self._connection = connection
        self._room = WINDOW  # bytes that may be sent to the other end
        self._promised = WINDOW  # that the other end may send
        self._taken = 0  # that were written, and not told yet
        self._ended = self._heard_end = False

    def watch(self) -> None:
        """Wait for what can be done next."""
        if self._connection is not None:
            reads = not self._ended and self._room and not self.queued
            events = (select.POLLOUT if self.unsent else 0) | (select.POLLIN if reads else 0)
            self._owner.loop.watch(self._connection.fileno(), events, self._ready)

    def read(self) -> None:
        """Send what is there, as far as it may be sent."""
        if self._connection is None or self._ended or not self._room:
            return
        if self._owner.full:
            self._owner.wait(self)
            return
        try:
            data = self._connection.recv(min(PAYLOAD, self._room))
        except BlockingIOError:
            pass
        except OSError:
            self.give_up()
        else:
            if data:
                self._room -= len(data)
                self._owner.tell(DATA, self.number, len(data), data)
            else:
                self._ended = True
                self._owner.tell(END, self.number)
                self._settle()
        self.watch()

    def give_up(self) -> None:
        """There is nobody any more."""
        self.close()
        self._ended = True
        self._owner.tell(GONE, self.number)
        self._settle()

    def close(self) -> None:
        """Without a word."""
        if self._connection is not None:
            self._owner.loop.watch(self._connection.fileno(), 0, self._ready)
            self._connection.close()
            self._connection = None
        self.unsent.clear()
        self._owner.let_go(self)

    # --- what the other end says -----------------------------------------------------------------------------------

    def on_room(self, size: int) -> None:
        """It took so many bytes more."""
        if self._room + size > WINDOW:
            raise ValueError(f"connection {self.number} has more room than there is")
        self._room += size
        self.watch()

    def on_data(self, data: bytes) -> None:
        """It sent these."""
        if self._heard_end or len(data) > self._promised:
            raise ValueError(f"{len(data)} bytes came for connection {self.number}, which has no room for them")
        self._promised -= len(data)
        if self._connection is not None:
            self.unsent += data
            self._write()
            self.watch()

    def on_end(self, *, gone: bool) -> None:
        """It sends nothing more, or is `gone` altogether."""
        if self._heard_end and not gone:
            raise ValueError(f"connection {self.number} ends twice")
        self._heard_end = True
        if gone:
            self.close()
            if not self._ended:
                self._ended = True
                self._owner.tell(END, self.number)
        elif not self.unsent:
            self._all_written()
        self._settle()

    # --- its connection --------------------------------------------------------------------------------------------

    def _ready(self, events: int) -> None:
        if self.unsent:
            self._write()
        if events & _AT_ALL:
            self.read()
        self.watch()

    def _write(self) -> None:
        if self._connection is None:
            return
        try:
            while self.unsent:
                written = self._connection.send(self.unsent)
                del self.unsent[:written]
                self._taken += written
        except BlockingIOError:
            pass
        except OSError:
            self._break()
            return
        if self._heard_end:
            if not self.unsent:
                self._all_written()
        elif self._taken >= WINDOW // 2:
            self._promised += self._taken
            self._owner.tell(ROOM, self.number, self._taken)
            self._taken = 0

    def _break(self) -> None:
        """Nobody reads any more."""
        if self._ended and self._heard_end:
            self.close()  # the number is forgotten
        else:
            self.give_up()

    def _all_written(self) -> None:
        """And the other end sends nothing more."""
        if self._ended:
            self.close()
        elif self._connection is not None:
            try:
                self._connection.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # it is gone, which reading tells

    def _settle(self) -> None:
        if self._ended and self._heard_end:
            self._owner.forget(self)
            if not self.unsent:
                self.close()

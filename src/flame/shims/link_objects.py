"""Connections to the object cache that an instance makes over its link, where no socket reaches it.

Each is a socket pair: the door of the instance serves one end in a thread of its own, this side moves bytes between the
other end and frames. Neither side sends more than `WINDOW` bytes ahead, so that no connection holds up what else the
link is for, and none fills memory.
"""

from __future__ import annotations

import asyncio
import socket

from flame.link import Frame, Kind, Link
from flame.model.errors import ProtocolError
from flame.proto import link_pb2
from flame.shims.shim import ObjectDoor

WINDOW = 256 * 1024  # bytes; part of the contract (link.proto)
_STEP = 64 * 1024
_MOST = 16  # connections at once


class ObjectStreams:
    """Those of one instance. `door` None: there is no cache, so nobody may open one."""

    def __init__(self, link: Link, door: ObjectDoor | None) -> None:
        self._link = link
        self._door = door
        self._streams: dict[int, _Stream] = {}
        self._last = 0  # their numbers grow

    def received(self, frame: Frame) -> None:
        """Take an OBJECTS or OBJECTS_TAKEN. Raises ProtocolError."""
        stream = self._streams.get(frame.channel)
        if frame.kind == Kind.OBJECTS_TAKEN:
            if stream is not None:
                stream.taken(link_pb2.Taken.FromString(frame.body).bytes)
            return
        if stream is None:
            if frame.channel <= self._last and frame.channel:
                return  # it crossed our closing
            stream = self._open(frame.channel)
        if frame.body:
            stream.write(frame.body)
        else:
            stream.close()

    def close(self) -> None:
        """End them all."""
        for stream in list(self._streams.values()):
            stream.close()

    def _open(self, number: int) -> _Stream:
        if self._door is None or not number:
            raise ProtocolError("an instance may not send objects here")
        self._last = number
        if len(self._streams) >= _MOST:
            raise ProtocolError(f"an instance may not have more than {_MOST} connections for objects")
        ours, theirs = socket.socketpair()
        self._door.adopt(theirs)
        stream = self._streams[number] = _Stream(number, ours, self._link, self._streams)
        return stream


class _Stream:
    """One connection. It is in `streams` as long as it is open."""

    def __init__(self, number: int, sock: socket.socket, link: Link, streams: dict[int, _Stream]) -> None:
        self._number = number
        self._socket = sock
        self._link = link
        self._streams = streams
        self._loop = asyncio.get_running_loop()
        self._unsent = bytearray()  # from the instance, that the door has not taken
        self._ahead = 0  # bytes to the instance that it has not taken
        sock.setblocking(False)
        self._loop.add_reader(sock.fileno(), self._readable)

    def write(self, data: bytes) -> None:
        """From the instance."""
        if len(self._unsent) + len(data) > WINDOW:
            self.close()
            raise ProtocolError(f"an instance sent more than {WINDOW} bytes ahead")
        self._unsent += data
        self._flush()

    def taken(self, count: int) -> None:
        """The instance has taken so many bytes."""
        if count > self._ahead:
            raise ProtocolError("an instance took more than it was sent")
        if self._ahead >= WINDOW:
            self._loop.add_reader(self._socket.fileno(), self._readable)
        self._ahead -= count

    def close(self) -> None:
        """End it; the instance is told."""
        if self._streams.pop(self._number, None) is None:
            return
        self._loop.remove_reader(self._socket.fileno())
        self._loop.remove_writer(self._socket.fileno())
        self._socket.close()
        self._link.send(Kind.OBJECTS, self._number)

    def _flush(self) -> None:
        count = 0
        try:
            while self._unsent:
                sent = self._socket.send(self._unsent)
                del self._unsent[:sent]
                count += sent
        except BlockingIOError:
            self._loop.add_writer(self._socket.fileno(), self._flush)
        except OSError:
            self.close()  # what it still wants to say comes to nothing
            return
        else:
            self._loop.remove_writer(self._socket.fileno())
        if count:
            self._link.send(Kind.OBJECTS_TAKEN, self._number, link_pb2.Taken(bytes=count).SerializeToString())

    def _readable(self) -> None:
        try:
            data = self._socket.recv(min(_STEP, WINDOW - self._ahead))
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        self._ahead += len(data)
        if self._ahead >= WINDOW:
            self._loop.remove_reader(self._socket.fileno())
        self._link.send(Kind.OBJECTS, self._number, data)

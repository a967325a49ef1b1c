"""The framed carrier: frames on a byte stream (a unix socket, TCP, TLS) of asyncio.

Reading slices each body straight out of what the socket gave; writing collects the frames of one loop iteration and
hands them over in one `writelines`, at most `_PORTION` bytes ahead of the kernel, so that a 64 MiB body is not copied
into the transport's buffer as a whole.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import Protocol, cast

from flame.link.frames import FIRST_KIND, HEADER, HEADER_SIZE, KNOWN_KINDS, MORE, Frame
from flame.link.peer import PeerInfo, peer_of
from flame.model.errors import FlameError, ProtocolError, UnauthenticatedError, UnavailableError

_PORTION = 1 << 20
_SOCKET_BUFFER = 4 << 20
_MERGE = 256  # so many small pieces of one long body become one, against a peer that sends single bytes
LINGER = 5.0  # seconds that a closing side waits for the peer to take what is still buffered


class Receiver(Protocol):
    """What a carrier needs of the link above it. All calls come from the event loop."""

    def connected(self, peer: PeerInfo) -> None: ...
    def received(self, frames: list[Frame], control: bool) -> None:
        """All frames of one read; `control` says that some of them have a kind below 16."""
        ...

    def failed(self, error: FlameError) -> None:
        """The peer broke the rules; nothing more is read."""
        ...

    def drained(self) -> None:
        """Nothing waits here any more; what the transport still holds is at most 1 MiB."""
        ...

    def lost(self, error: FlameError) -> None:
        """The connection is gone: the last call, exactly once."""
        ...


class FramedCarrier(asyncio.Protocol):
    """Frames over one asyncio transport."""

    def __init__(self, receiver: Receiver, max_frame: int) -> None:
        self.max_frame = max_frame  # longest body that the peer may send
        self.heard = False  # set by each read; the link above clears it
        self._receiver = receiver
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._deaf = False  # the peer broke the rules or the link is closed: what comes is dropped
        # reading: an incomplete header, or a header and the pieces of its body
        self._head: bytes = b""
        self._kind = self._flags = self._channel = 0
        self._missing = 0
        self._pieces: list[bytes] = []
        self._merged = 0
        # writing
        self._out: list[bytes | memoryview] = []
        self._out_size = 0
        self._flush_due = False
        self._blocked = True  # until connected
        self._finishing = False
        self._linger: asyncio.TimerHandle | None = None

    # --- asyncio.Protocol ----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are asyncio.Transports in all but inheritance.
        transport = self._transport = cast(asyncio.Transport, transport)
        # Blocked as soon as the kernel does not take everything, free again when it has: see flush().
        transport.set_write_buffer_limits(high=1, low=0)
        sock: socket.socket | None = transport.get_extra_info("socket")
        # TCP tunes its buffers itself, and better than a fixed size would.
        if sock is not None and sock.family == socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SOCKET_BUFFER)
        elif sock is not None:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._blocked = False
        self._receiver.connected(peer_of(transport))
        self.flush()

    def data_received(self, data: bytes) -> None:
        self.heard = True
        if self._deaf:
            return
        frames: list[Frame] = []
        control = False
        offset = 0
        end = len(data)
        if self._missing:
            if end < self._missing:
                self._keep(data)
                return
            offset = self._missing
            self._pieces.append(data if offset == end else data[:offset])
            frames.append(Frame(self._kind, self._channel, b"".join(self._pieces), self._flags))
            control = self._kind < FIRST_KIND
            self._pieces = []
            self._missing = self._merged = 0
        elif self._head:
            data = self._head + data
            self._head = b""
            end = len(data)
        fault = None
        unpack, limit = HEADER.unpack_from, self.max_frame
        while end - offset >= HEADER_SIZE:
            length, kind, flags, zero, channel = unpack(data, offset)
            if zero or length > limit or kind not in KNOWN_KINDS or flags > MORE:
                fault = _fault(length, kind, flags, zero, limit)
                break
            start = offset + HEADER_SIZE
            offset = start + length
            if offset <= end:
                if kind < FIRST_KIND:
                    control = True
                frames.append(Frame(kind, channel, data[start:offset], flags))
            else:
                self._kind, self._flags, self._channel = kind, flags, channel
                self._missing = offset - end
                self._pieces.append(data[start:])
                break
        else:
            self._head = data[offset:]
        if frames:
            self._receiver.received(frames, control)
        if fault is not None and not self._deaf:
            self._deaf = True
            self._receiver.failed(fault)

    def _keep(self, piece: bytes) -> None:
        self._missing -= len(piece)
        self._pieces.append(piece)
        if len(self._pieces) - self._merged >= _MERGE:
            self._pieces[self._merged :] = [b"".join(self._pieces[self._merged :])]
            self._merged += 1

    def pause_writing(self) -> None:
        self._blocked = True

    def resume_writing(self) -> None:
        self._blocked = False
        self.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self._deaf = self._blocked = True
        self._out.clear()
        self._out_size = 0
        if self._linger is not None:
            self._linger.cancel()
        self._receiver.lost(loss(exc))

    # --- for the link --------------------------------------------------------------------------------------------

    @property
    def buffered(self) -> int:
        """Bytes that wait here and in the transport."""
        return self._out_size + (self._transport.get_write_buffer_size() if self._transport is not None else 0)

    def write(self, kind: int, channel: int, body: bytes, flags: int) -> None:
        """Queue one frame; it leaves at the end of this loop iteration or when the kernel takes more."""
        size = len(body)
        self._out.append(HEADER.pack(size, kind, flags, 0, channel))
        if size:
            self._out.append(body)
        self._out_size += size + HEADER_SIZE
        if not self._flush_due and not self._blocked:
            self._flush_due = True
            self._loop.call_soon(self.flush)

    def pause_reading(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def finish(self) -> None:
        """End the connection once everything queued has left, or after LINGER seconds."""
        self._deaf = self._finishing = True
        if self._transport is None:
            # Never connected, as when the TLS handshake failed: asyncio will not call connection_lost.
            self._receiver.lost(UnavailableError("the connection was never made"))
            return
        self._linger = self._loop.call_later(LINGER, self._transport.abort)
        # The peer's unread bytes must not turn our closing into a reset that takes the last frames with it.
        self.resume_reading()
        self.flush()

    def abort(self) -> None:
        """End the connection at once."""
        self._deaf = True
        if self._transport is not None:
            self._transport.abort()

    def flush(self) -> None:
        """Hand over what is queued, as far as the kernel takes it."""
        self._flush_due = False
        transport = self._transport
        if transport is None:
            return
        while self._out and not self._blocked:
            portion = self._out
            if self._out_size <= _PORTION:
                self._out, self._out_size = [], 0
            else:
                portion = self._split()
            transport.writelines(portion)
        if not self._out:
            self._receiver.drained()
            if self._finishing:
                transport.close()

    def _split(self) -> list[bytes | memoryview]:
        """Take about _PORTION bytes from the front of the queue, part of a body if need be."""
        portion: list[bytes | memoryview] = []
        size = 0
        taken = 0
        for chunk in self._out:
            if size + len(chunk) > _PORTION:
                view = memoryview(chunk)
                portion.append(view[: _PORTION - size])
                self._out[taken] = view[_PORTION - size :]
                size = _PORTION
                break
            portion.append(chunk)
            size += len(chunk)
            taken += 1
        del self._out[:taken]
        self._out_size -= size
        return portion


def _fault(length: int, kind: int, flags: int, zero: int, limit: int) -> ProtocolError:
    if zero or flags > MORE or kind not in KNOWN_KINDS:
        return ProtocolError(f"what came is no frame of the link (kind {kind}, flags {flags}, reserved {zero})")
    return ProtocolError(f"a frame of {length} bytes is over the limit of {limit} bytes")


def loss(exc: BaseException | None) -> FlameError:
    """Why a connection ended, in the words of our errors."""
    if exc is None:
        return UnavailableError("the peer closed the connection")
    if isinstance(exc, FlameError):
        return exc
    if isinstance(exc, ssl.SSLError):
        remedy = "check the certificates of both sides and their CA"
        return UnauthenticatedError(f"TLS failed: {exc.reason or exc}", remedy=remedy)
    return UnavailableError(f"the connection broke: {exc}")

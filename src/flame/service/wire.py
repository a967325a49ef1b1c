"""The link as an instance speaks it: frames on a blocking unix socket, without an event loop.

The rules are those of `flame.link`; this side needs neither its carriers nor asyncio, whose import takes longer than
everything else at the start of an instance.
"""

from __future__ import annotations

import os
import socket
from struct import Struct

from flame.proto import link_pb2

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping

HEADER = Struct("<IBBHI")  # body length, kind, flags, zero, channel
HEADER_SIZE = HEADER.size
DEFAULT_MAX_PAYLOAD = 64 * 1024 * 1024
_CHUNK = 64 * 1024
_LARGE = 1024 * 1024
_VERSION = 1

Frame = tuple[int, bytes]  # kind and body; everything between an instance and its executor manager is on channel 0


class LinkClosedError(ConnectionError):
    """The executor manager closed the link or refused it. The text says why when it said so."""


class FrameBuffer:
    """Finds whole frames in pieces of a stream."""

    def __init__(self) -> None:
        self._pending = bytearray()
        self._needed = HEADER_SIZE

    @property
    def missing(self) -> int:
        """Bytes of a begun frame that have not come, 0 when none has begun."""
        return self._needed - len(self._pending) if self._pending else 0

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that are complete with these bytes."""
        frames: list[Frame] = []
        if self._pending:
            self._pending += data
            if len(self._pending) < self._needed:
                return frames
            source = self._pending
        else:
            source = data
        view = memoryview(source)
        start, end = 0, len(source)
        while end - start >= HEADER_SIZE:
            length, kind, _flags, _zero, _channel = HEADER.unpack_from(view, start)
            stop = start + HEADER_SIZE + length
            if stop > end:
                self._needed = HEADER_SIZE + length
                break
            frames.append((kind, bytes(view[start + HEADER_SIZE : stop])))
            start = stop
        else:
            self._needed = HEADER_SIZE
        self._pending = bytearray(view[start:end])
        return frames


class Wire:
    """The instance's end of its link. One thread at a time."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.max_payload = DEFAULT_MAX_PAYLOAD
        self.buffer = FrameBuffer()

    def read(self, *, wait: bool) -> list[Frame]:
        """The frames that are there; may be none. With `wait` blocks until something came. Raises LinkClosedError."""
        size = min(max(_CHUNK, self.buffer.missing), _LARGE)
        try:
            data = self.sock.recv(size, 0 if wait else socket.MSG_DONTWAIT)
        except BlockingIOError:
            return []
        if not data:
            raise LinkClosedError("the executor manager closed the link")
        return self.buffer.feed(data)

    def write(self, kind: int, body: bytes = b"") -> None:
        """Send one frame; blocks while the executor manager does not read. Raises OSError when it is gone."""
        for part in self.parts(kind, body):
            self.sock.sendall(part)

    @staticmethod
    def parts(kind: int, body: bytes = b"") -> list[bytes]:
        """One frame as the pieces to write: a large body is not copied behind its header."""
        header = HEADER.pack(len(body), kind, 0, 0, 0)
        return [header + body] if len(body) < _CHUNK else [header, body]

    def greet(self, hello: link_pb2.Hello) -> list[Frame]:
        """Say hello and wait for the welcome; gives the frames behind it. Raises LinkClosedError when refused."""
        self.write(link_pb2.HELLO, hello.SerializeToString())
        frames: list[Frame] = []
        while not frames:
            frames = self.read(wait=True)
        kind, body = frames[0]
        if kind == link_pb2.ERROR:
            raise LinkClosedError(link_pb2.Error.FromString(body).message)
        if kind != link_pb2.WELCOME:
            raise LinkClosedError(f"the executor manager answered with a frame of kind {kind} instead of a welcome")
        self.max_payload = link_pb2.Welcome.FromString(body).max_payload or self.max_payload
        return frames[1:]


def connect(path: str, concurrency: int, environ: Mapping[str, str] = os.environ) -> tuple[Wire, list[Frame]]:
    """The link of this instance, greeted, and the frames that came with the welcome.

    `concurrency` is the number of tasks that this instance wants at once. Raises OSError.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect(path)
    return _greeted(sock, concurrency, environ)


def over_stdio(concurrency: int, environ: MutableMapping[str, str] = os.environ) -> tuple[Wire, list[Frame]]:
    """Like `connect`, where the link is this process's stdin and stdout. What is printed goes to stderr from now on,
    and if the link is the way to the object cache too, `environ` says where that begins. Raises OSError."""
    sock = socket.socket(fileno=os.dup(1))
    os.dup2(2, 1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    if environ.get("FLAME_CACHE_ENDPOINT") == "relay:link":
        from flame.service import switch

        sock = switch.begin(sock, environ)
    return _greeted(sock, concurrency, environ)


def _greeted(sock: socket.socket, concurrency: int, environ: Mapping[str, str]) -> tuple[Wire, list[Frame]]:
    wire = Wire(sock)
    wire.max_payload = int(environ.get("FLAME_MAX_PAYLOAD") or DEFAULT_MAX_PAYLOAD)
    hello = link_pb2.Hello(
        version=_VERSION,
        role="instance",
        id=environ.get("FLAME_EXECUTOR_ID", ""),
        token=environ.get("FLAME_INSTANCE_TOKEN", ""),
        instance=link_pb2.InstanceHello(concurrency=concurrency, pid=os.getpid()),
    )
    return wire, wire.greet(hello)

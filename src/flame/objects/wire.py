"""Messages over a unix socket: four bytes of length (little endian), then msgpack."""

from __future__ import annotations

import socket
import time

import msgspec

from flame.objects.messages import Reply, Request

MAX_MESSAGE = 64 * 1024 * 1024
_READ = 128 * 1024
_encoder = msgspec.msgpack.Encoder()


class Channel:
    """A connected socket, and what was read of it too early. One thread at a time reads, and one writes."""

    def __init__(self, connection: socket.socket, longest: int = MAX_MESSAGE) -> None:
        """`longest`: bytes of one message from the other side."""
        self.socket = connection
        self._rest = b""
        self._longest = longest

    def send(self, message: Request | Reply) -> None:
        """Raises OSError."""
        self.socket.sendall(frame(message))

    def receive(self) -> bytes | None:
        """The body of the next message; None when the other side has closed. Raises OSError; EOFError in a message."""
        data = self._rest
        while len(data) < 4 or len(data) < 4 + int.from_bytes(data[:4], "little"):
            if len(data) >= 4 and int.from_bytes(data[:4], "little") > self._longest:
                raise OSError(f"a message of {int.from_bytes(data[:4], 'little')} bytes")
            more = self.socket.recv(_READ)
            if not more:
                if data:
                    raise EOFError("the connection ended inside a message")
                return None
            data = data + more if data else more
        end = 4 + int.from_bytes(data[:4], "little")
        self._rest = data[end:]
        return data[4:end]

    def read_into(self, view: memoryview, deadline: float | None = None) -> None:
        """Raw bytes that follow a message, as many as the view has. Raises OSError, which is TimeoutError when they are
        not all there at `deadline` (of the monotonic clock), and EOFError."""
        got = min(len(self._rest), len(view))
        view[:got] = self._rest[:got]
        self._rest = self._rest[got:]
        while got < len(view):
            if deadline is not None:
                self.socket.settimeout(max(deadline - time.monotonic(), 0.001))
            count = self.socket.recv_into(view[got:])
            if not count:
                raise EOFError(f"the connection ended after {got} of {len(view)} bytes")
            got += count

    def ended(self) -> bool:
        """Whether the other side has closed an idle connection."""
        try:
            return self.socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True


def frame(message: Request | Reply) -> bytearray:
    """A message as it travels."""
    buffer = bytearray(4)
    _encoder.encode_into(message, buffer, 4)
    buffer[:4] = (len(buffer) - 4).to_bytes(4, "little")
    return buffer

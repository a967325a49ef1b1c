"""The object cache where no socket reaches an instance: its link carries those connections besides.

A thread stands between the link and the run loop, which has one end of a socket pair in the link's place and notices
nothing. Whoever in the sandbox wants objects, other processes too, connects to a socket in its own files; what is said
there travels in frames of kind OBJECTS, a connection on each channel. Nobody sends more than `WINDOW` bytes ahead.
"""

from __future__ import annotations

import atexit
import os
import select
import signal
import socket
import tempfile
import threading
from collections import deque

from flame.proto import link_pb2
from flame.service.wire import HEADER, HEADER_SIZE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, MutableMapping

VARIABLE = "FLAME_CACHE_ENDPOINT"
WINDOW = 256 * 1024  # bytes; part of the contract (link.proto)
_STEP = 64 * 1024
_FULL = 1024 * 1024  # bytes that wait for the link; then nothing more is taken for it
_MOST = 12  # connections at once; others wait
_END_S = 10.0


def begin(link: socket.socket, environ: MutableMapping[str, str]) -> socket.socket:
    """Start the thread; gives what the run loop uses in the link's place. `environ` names the way afterwards. Raises
    OSError."""
    folder = tempfile.mkdtemp(prefix=".flame-", dir=environ.get("TMPDIR"))
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(f"{folder}/objects")
    listening.listen(128)
    ours, theirs = socket.socketpair()
    thread = threading.Thread(target=_Switch(link, theirs, listening).run, name="flame-switch", daemon=True)
    thread.start()
    process = os.getpid()

    def end() -> None:
        """What the run loop has said last has left before this process ends."""
        if os.getpid() == process:
            try:
                ours.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # it is closed already, which says the same
            thread.join(_END_S)

    atexit.register(end)
    environ[VARIABLE] = f"relay:{folder}/objects"
    return ours


class _Connection:
    """One connection: `unsent` bytes to it, and how many from it have not been `taken` at the other end."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.unsent = bytearray()
        self.ahead = 0
        self.closing = False  # when all is sent


class _Switch:
    """Moves bytes. One thread; none of its descriptors ever waits."""

    def __init__(self, link: socket.socket, loop: socket.socket, listening: socket.socket) -> None:
        self._link, self._loop, self._listening = link, loop, listening
        self._poll = select.poll()
        self._watched: dict[int, int] = {}
        self._connections: dict[int, _Connection] = {}  # by channel; below 0 those that have said nothing
        self._accepted = self._opened = 0
        self._from_link = bytearray()
        self._to_loop: deque[bytes] = deque()
        self._to_link: deque[bytes] = deque()
        self._waiting: deque[bytes] = deque()  # for the link, until the run loop's frame is whole
        self._head = b""  # of a frame of the run loop whose header is not whole
        self._inside = 0  # bytes of its frame that are missing
        self._loop_ended = self._link_ended = False

    def run(self) -> None:
        """Until both sides have ended."""
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # they are for the main thread
        for sock in (self._link, self._loop, self._listening):
            sock.setblocking(False)
        try:
            while not self._over():
                self._watch()
                self._turn({descriptor for descriptor, _ in self._poll.poll()})
        finally:
            for sock in (self._loop, self._listening, *(each.sock for each in self._connections.values())):
                sock.close()

    def _over(self) -> bool:
        """Whether nothing is left to do: the run loop has ended and was heard, or the link has and it was told."""
        return (self._loop_ended and not self._to_link) or (self._link_ended and not self._to_loop)

    def _watch(self) -> None:
        """For what to wait, seen from what there is."""
        full = sum(map(len, self._to_link)) > _FULL
        wanted: dict[int, int] = {}
        link = (0 if self._link_ended else select.POLLIN) | (select.POLLOUT if self._to_link else 0)
        loop = (0 if full or self._loop_ended else select.POLLIN) | (select.POLLOUT if self._to_loop else 0)
        wanted[self._link.fileno()], wanted[self._loop.fileno()] = link, loop
        if len(self._connections) < _MOST:
            wanted[self._listening.fileno()] = select.POLLIN
        for each in self._connections.values():
            readable = not full and each.ahead < WINDOW and not each.closing
            wanted[each.sock.fileno()] = (select.POLLIN if readable else 0) | (select.POLLOUT if each.unsent else 0)
        for descriptor in self._watched.keys() | wanted.keys():
            events = wanted.get(descriptor, 0)
            if events == self._watched.get(descriptor, 0):
                continue
            if events:
                self._poll.register(descriptor, events)
            else:
                self._poll.unregister(descriptor)
        self._watched = {descriptor: events for descriptor, events in wanted.items() if events}

    def _turn(self, ready: set[int]) -> None:
        if self._link.fileno() in ready:
            self._send(self._link, self._to_link)
            if not self._link_ended:
                self._read_link()
        if self._loop.fileno() in ready:
            self._send(self._loop, self._to_loop)
            if not self._loop_ended:
                self._read_loop()
        if self._listening.fileno() in ready:
            self._accept()
        for number, each in list(self._connections.items()):
            if each.sock.fileno() in ready:
                self._serve(number, each)

    # --- the link and the run loop ----------------------------------------------------------------------------------

    def _read_link(self) -> None:
        data = _received(self._link, _FULL)
        if data is None:
            return
        if not data:
            self._link_ended = True
        for kind, channel, body in self._frames(data):
            if kind == link_pb2.OBJECTS:
                self._to_connection(channel, body)
            elif kind == link_pb2.OBJECTS_TAKEN:
                each = self._connections.get(channel)
                if each is not None:
                    each.ahead -= link_pb2.Taken.FromString(body).bytes
            else:
                self._to_loop.append(HEADER.pack(len(body), kind, 0, 0, channel) + body)
        self._send(self._loop, self._to_loop)

    def _frames(self, data: bytes) -> Iterator[tuple[int, int, bytes]]:
        """Those that are whole with these bytes: kind, channel, body."""
        pending = self._from_link
        pending += data
        start = 0
        while len(pending) - start >= HEADER_SIZE:
            length, kind, _flags, _zero, channel = HEADER.unpack_from(pending, start)
            end = start + HEADER_SIZE + length
            if end > len(pending):
                break
            yield kind, channel, bytes(memoryview(pending)[start + HEADER_SIZE : end])
            start = end
        del pending[:start]

    def _read_loop(self) -> None:
        data = _received(self._loop, _STEP)
        if data is None:
            return
        if not data:
            self._loop_ended = True
            return
        self._to_link.append(data)
        self._follow(data)
        if not self._inside and not self._head:
            self._to_link.extend(self._waiting)
            self._waiting.clear()
        self._send(self._link, self._to_link)

    def _follow(self, data: bytes) -> None:
        """Where the run loop's frames end."""
        rest = self._head + data
        self._head = b""
        while rest:
            if self._inside:
                step = min(self._inside, len(rest))
                self._inside -= step
                rest = rest[step:]
            elif len(rest) < HEADER_SIZE:
                self._head, rest = rest, b""
            else:
                self._inside = HEADER.unpack_from(rest)[0]
                rest = rest[HEADER_SIZE:]

    def _say(self, kind: int, channel: int, body: bytes = b"") -> None:
        """To the link, between two frames of the run loop."""
        frame = HEADER.pack(len(body), kind, 0, 0, channel) + body
        (self._waiting if self._inside or self._head else self._to_link).append(frame)

    @staticmethod
    def _send(sock: socket.socket, waiting: deque[bytes]) -> None:
        while waiting:
            try:
                count = sock.send(waiting[0])
            except BlockingIOError:
                return
            except ConnectionError:
                waiting.clear()
                return
            if count == len(waiting[0]):
                waiting.popleft()
            else:
                waiting[0] = waiting[0][count:]

    # --- connections ------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        try:
            sock, _ = self._listening.accept()
        except OSError:
            return  # it is gone again
        sock.setblocking(False)
        self._accepted += 1
        self._connections[-self._accepted] = _Connection(sock)

    def _serve(self, number: int, each: _Connection) -> None:
        if each.unsent:
            self._pour(number, each)
        if each.closing or each.ahead >= WINDOW:
            return
        data = _received(each.sock, min(_STEP, WINDOW - each.ahead))
        if data is None:
            return
        if number < 0 and data:
            # Channels are opened in the order of their numbers.
            del self._connections[number]
            number = self._opened = self._opened + 1
            self._connections[number] = each
        if not data:
            self._end(number, each)
            return
        each.ahead += len(data)
        self._say(link_pb2.OBJECTS, number, data)

    def _to_connection(self, number: int, body: bytes) -> None:
        each = self._connections.get(number)
        if each is None:
            return  # it crossed our closing
        each.unsent += body
        each.closing = each.closing or not body
        self._pour(number, each)

    def _pour(self, number: int, each: _Connection) -> None:
        count = 0
        try:
            while each.unsent:
                sent = each.sock.send(each.unsent)
                del each.unsent[:sent]
                count += sent
        except BlockingIOError:
            pass
        except OSError:
            each.unsent.clear()
            each.closing = True
        if each.closing and not each.unsent:
            self._end(number, each)
        elif count:
            self._say(link_pb2.OBJECTS_TAKEN, number, link_pb2.Taken(bytes=count).SerializeToString())

    def _end(self, number: int, each: _Connection) -> None:
        if number > 0:
            self._say(link_pb2.OBJECTS, number)
        del self._connections[number]
        descriptor = each.sock.fileno()
        if self._watched.pop(descriptor, 0):
            self._poll.unregister(descriptor)
        each.sock.close()


def _received(sock: socket.socket, size: int) -> bytes | None:
    """What is there; empty = the other side has ended, None = nothing."""
    try:
        return sock.recv(size)
    except BlockingIOError:
        return None
    except ConnectionError:
        return b""

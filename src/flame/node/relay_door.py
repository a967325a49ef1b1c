"""Where one instance comes in that wants objects.

It finds a socket in its sandbox. What is spoken there is what clients elsewhere speak with a cache over TCP, and
actions besides; bytes go straight between the socket and the cache's shared memory, or in small pieces between it and a
cache elsewhere, so no object is ever whole in this process. Each connection has a thread: nothing here happens in the
node's loop.

Whoever is in the sandbox is not trusted. It has a few connections, short requests, and so much time for each transfer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec

from flame.model.errors import FlameError, InternalError, InvalidArgumentError
from flame.objects import messages as m
from flame.objects.rights import Visitor, check
from flame.objects.wire import Channel
from flame.security import Role

if TYPE_CHECKING:
    from flame.objects.codecs import Payload
    from flame.objects.fetched import Fetched
    from flame.objects.links import Link

logger = logging.getLogger("flame.node")

_REQUESTS = msgspec.msgpack.Decoder(m.Request)
_CONNECTIONS = 16  # of one instance at once; others wait for one to end, which those do that are idle
_STRANGERS = 64  # connections of one instance that did not begin as they should; then it gets no more
_LONGEST_REQUEST = 4 * 1024 * 1024  # bytes, of DELETE_MANY
_HELLO_S = 10.0
_STALL_S = 30.0  # for a transfer, and one second more for each _SLOWEST bytes
_SLOWEST = 256 * 1024
_LONGEST_S = 86_400.0
_STEP = 256 * 1024


class Way(Protocol):
    """The way of a node to its cache."""

    def cache(self) -> tuple[Link, str]:
        """The way to the cache, and what it calls itself. Blocks; raises FlameError."""
        ...

    def origin(self, endpoint: str) -> str:
        """Which cache to name to this node's own for an object at an endpoint: empty for that itself."""
        ...


class RelayDoor:
    """Where one instance comes in. Its loop's thread makes and closes it; the rest happens in threads of its own."""

    def __init__(self, relay: Way, path: Path, application: str) -> None:
        self.path = path
        self._relay = relay
        self._visitor = Visitor(Role.INSTANCE, application)
        self._changed = threading.Condition()
        # One object at a time: the cache lends memory for all of it at the beginning.
        self._storing = threading.Lock()
        self._open: set[socket.socket] = set()
        self._strangers = 0
        self._closed = False
        self._begun = False  # a thread listens, which also closes the socket
        self._listening = socket.socket(socket.AF_UNIX)
        try:
            self._listening.bind(str(path))
            path.chmod(0o600)
            self._listening.listen(_CONNECTIONS)
        except BaseException:
            self._listening.close()
            raise
        # Most instances never come: the first one who does starts the thread.
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._listening.fileno(), self._begin)

    def belongs_to(self, session_id: str, readable: Sequence[str] = ()) -> None:
        """The instance serves this session from now on, and may read what is `readable` besides."""
        self._visitor = msgspec.structs.replace(self._visitor, session_id=session_id, readable=tuple(readable))

    def close(self) -> None:
        """Nobody comes in any more, and who is in is thrown out."""
        with self._changed:
            if not self._closed and not self._begun:
                self._loop.remove_reader(self._listening.fileno())
                self._listening.close()
            self._closed = True
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            self._changed.notify_all()
        self._stop_listening()
        self.path.unlink(missing_ok=True)

    def adopt(self, connection: socket.socket) -> None:
        """Serve somebody who came another way."""
        with self._changed:
            admitted = not self._closed and len(self._open) < _CONNECTIONS
            if admitted:
                self._serve(connection)
        if not admitted:
            connection.close()

    def _begin(self) -> None:
        self._begun = True
        self._loop.remove_reader(self._listening.fileno())
        self._listening.setblocking(True)  # a loop that watches may change that
        threading.Thread(target=self._accept, name="objects-door", daemon=True).start()

    def _accept(self) -> None:
        while True:
            with self._changed:
                while len(self._open) >= _CONNECTIONS and not self._closed:
                    self._changed.wait()
            try:
                connection, _ = self._listening.accept()
            except OSError:
                break
            with self._changed:
                if self._closed:
                    connection.close()
                    break
                self._serve(connection)
        self._listening.close()  # with those who waited to come in

    def _serve(self, connection: socket.socket) -> None:
        self._open.add(connection)
        threading.Thread(target=self._run, args=(connection,), name="objects", daemon=True).start()

    def _run(self, connection: socket.socket) -> None:
        channel = Channel(connection, _LONGEST_REQUEST)
        try:
            if self._admit(channel):
                while (data := self._next(channel)) is not None:
                    self._answer(channel, data)
        except (OSError, EOFError):
            pass  # it is gone, too slow, or was thrown out
        finally:
            with self._changed:
                self._open.remove(connection)
                self._changed.notify_all()
                connection.close()

    @staticmethod
    def _next(channel: Channel) -> bytes | None:
        """The next request; None when the other side has closed, or has none for long."""
        channel.socket.settimeout(m.RELAY_IDLE)
        return channel.receive()

    def _admit(self, channel: Channel) -> bool:
        channel.socket.settimeout(_HELLO_S)
        data = None
        with contextlib.suppress(OSError, EOFError):
            data = channel.receive()
        try:
            hello = _REQUESTS.decode(data or b"")
        except msgspec.MsgspecError:
            hello = None
        if not isinstance(hello, m.Hello):
            self._strange()
            return False
        try:
            channel.send(m.Welcome(0, self._relay.cache()[1]))
        except FlameError as error:
            channel.send(m.Failure.of(error))
            return False
        return True

    def _strange(self) -> None:
        with self._changed:
            self._strangers += 1
            if self._strangers == _STRANGERS:
                logger.warning("an instance comes to its socket %s again and again and says nothing", self.path)
                self._stop_listening()

    def _stop_listening(self) -> None:
        with contextlib.suppress(OSError):  # it is closed already
            self._listening.shutdown(socket.SHUT_RDWR)

    # --- requests ---------------------------------------------------------------------------------------------------

    def _answer(self, channel: Channel, data: bytes) -> None:
        """Raises OSError and EOFError when the connection can't go on."""
        try:
            request = _REQUESTS.decode(data)
            check(self._visitor, request)
            channel.socket.settimeout(_STALL_S)
            match request:
                case m.Get():
                    self._give(channel, request)
                case m.Send():
                    with self._storing if request.options.size > m.INLINE else contextlib.nullcontext():
                        reply = self._take(channel, request)
                    channel.send(reply)
                case m.Call():
                    channel.send(m.Result(self._relay.cache()[0].call(request.action, request.body)))
                case _:
                    raise InvalidArgumentError(f"{type(request).__name__} is not for here")
        except FlameError as error:
            channel.send(m.Failure.of(error))
        except msgspec.MsgspecError as error:
            channel.send(m.Failure.of(InvalidArgumentError(f"not a request: {error}")))
        except (OSError, EOFError):
            raise
        except Exception as error:
            logger.exception("passing on to the object cache failed")
            channel.send(m.Failure.of(InternalError(f"passing on to the object cache failed: {error}")))

    def _give(self, channel: Channel, request: m.Get) -> None:
        link, _ = self._relay.cache()
        origin = self._relay.origin(request.origin)
        fetched = link.get_shared(request.key, request.version, request.born, origin)
        if fetched is not None:
            answer, pieces = _answer_of(fetched), iter([part.payload for part in fetched.parts])
        else:
            answer, pieces = link.remote().open(request.key, request.version, request.born, origin)
        channel.send(msgspec.structs.replace(answer, parts=tuple(m.Part(p.version, p.size) for p in answer.parts)))
        deadline = _deadline(sum(part.size for part in answer.parts))
        while True:
            try:
                piece = next(pieces, None)
            except FlameError as error:
                # The instance has the beginning, so all that is left to say is that there is no more.
                raise ConnectionError(error.message) from error
            if piece is None:
                return
            channel.socket.settimeout(_left(deadline))
            channel.socket.sendall(memoryview(piece).cast("B"))

    def _take(self, channel: Channel, request: m.Send) -> m.Reply:
        """Store what follows. It is asked for when there is room for it; from then on all of it is read, whatever goes
        wrong."""
        size = request.options.size
        if size < 0:
            raise InvalidArgumentError("the size of the payload is missing")
        link, _ = self._relay.cache()
        # The tenant is that of its session, which the cache knows.
        options = msgspec.structs.replace(request.options, tenant="", isolated=True)
        incoming = _Incoming(channel, size)
        try:
            stored = link.put_shared(request.key, incoming.payload(options.table), options, again=False)
            if stored is None:
                stored = link.remote().upload(request.key, incoming.pieces(), options)
            incoming.ask_for()  # if nothing had to be read
            return m.Stored(stored.key, stored.version)
        except FlameError as error:
            if incoming.broken is not None:
                raise incoming.broken from None
            incoming.drain()
            return m.Failure.of(error)


class _Incoming:
    """A payload that follows a request. `broken`: why it will not be whole."""

    def __init__(self, channel: Channel, size: int) -> None:
        self.broken: OSError | EOFError | None = None
        self._channel = channel
        self._asked_for = False
        self._size = size
        self._left = size
        self._deadline = _deadline(size)

    def payload(self, table: bool) -> Payload:
        """As something that is written to memory which is there already."""
        from flame.objects.codecs import Payload

        return Payload(self._size, self._read_into, table)

    def pieces(self) -> Iterator[bytes]:
        """Piece by piece."""
        while self._left:
            buffer = bytearray(min(_STEP, self._left))
            self._read_into(memoryview(buffer))
            yield bytes(buffer)

    def drain(self) -> None:
        """Read what is left, for nobody; nothing if it was not asked for."""
        if self._asked_for:
            for _ in self.pieces():
                pass

    def ask_for(self) -> None:
        """Let the instance send it, if it does not yet. Raises OSError."""
        if not self._asked_for:
            self._asked_for = True
            self._channel.send(m.Reserved(0, 0))

    def _read_into(self, view: memoryview) -> None:
        try:
            self.ask_for()
            self._channel.read_into(view, self._deadline)
        except (OSError, EOFError) as error:
            self.broken = error
            raise
        self._left -= len(view)


def _answer_of(fetched: Fetched) -> m.Answer:
    parts = tuple(m.Part(part.version, part.payload.size) for part in fetched.parts)
    return m.Answer(fetched.version, fetched.born, fetched.table, fetched.full, parts)


def _deadline(size: int) -> float:
    """When a transfer of so many bytes has to be over, by the monotonic clock."""
    return time.monotonic() + min(_STALL_S + size / _SLOWEST, _LONGEST_S)


def _left(deadline: float) -> float:
    return max(deadline - time.monotonic(), 0.001)

"""The door for clients elsewhere who may speak plain TCP: whole payloads, straight from and into shared memory."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections.abc import Callable

import msgspec

from flame.cache.cache import ObjectCache, Room
from flame.cache.disk import Draft
from flame.cache.local_server import writable_key
from flame.cache.payloads import Content
from flame.cache.visitors import Tokens
from flame.model.errors import FlameError, InternalError, InvalidArgumentError, PermissionDeniedError
from flame.objects import messages as m
from flame.objects.rights import Visitor, check
from flame.objects.wire import Channel

_log = logging.getLogger("flame.cache")
_REQUESTS = msgspec.msgpack.Decoder(m.Request)
_HELLO_TIMEOUT = 10.0
_STEP = 1024 * 1024


class StreamServer:
    """Listens at a free port of `host`. A connection has a thread."""

    def __init__(
        self, host: str, tokens: Tokens, endpoint: str, cache: ObjectCache, read: Callable[[m.GetTicket], Content]
    ) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.create_server((host, 0), family=family, backlog=128)
        self.port: int = self._socket.getsockname()[1]
        self._tokens = tokens
        self._endpoint = endpoint
        self._cache = cache
        self._read = read
        threading.Thread(target=self._accept, name="stream-door", daemon=True).start()

    def stop(self) -> None:
        """Listen no more; connections end with the process."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                channel = Channel(connection)
                visitor = self._admit(channel)
                if visitor is not None:
                    while (data := channel.receive()) is not None:
                        self._answer(channel, data, visitor)
            except (OSError, EOFError):
                pass  # it is gone

    def _admit(self, channel: Channel) -> Visitor | None:
        channel.socket.settimeout(_HELLO_TIMEOUT)
        data = channel.receive()
        try:
            hello = _REQUESTS.decode(data or b"")
        except msgspec.MsgspecError:
            return None
        visitor = self._tokens.visitor(hello.token) if isinstance(hello, m.Hello) else None
        if visitor is None:
            channel.send(m.Failure.of(PermissionDeniedError("ask the cache for its token first")))
            return None
        channel.socket.settimeout(None)
        channel.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        channel.send(m.Welcome(0, self._endpoint))
        return visitor

    def _answer(self, channel: Channel, data: bytes, visitor: Visitor) -> None:
        try:
            request = _REQUESTS.decode(data)
            check(visitor, request)
            answer = self._prepare(channel, request)
        except FlameError as error:
            channel.send(m.Failure.of(error))
            return
        except msgspec.MsgspecError as error:
            channel.send(m.Failure.of(InvalidArgumentError(f"not a request: {error}")))
            return
        except Exception as error:
            _log.exception("request_failed")
            channel.send(m.Failure.of(InternalError(f"the cache failed: {error}")))
            return
        answer()

    def _prepare(self, channel: Channel, request: m.Request) -> Callable[[], None]:
        """How a request is answered. Raises FlameError as long as nothing is sent."""
        if isinstance(request, m.Get):
            content = self._read(m.GetTicket(request.key, request.version, request.born, request.origin))
            return lambda: _give(channel, content)
        if isinstance(request, m.Send):
            payload = self._reserve(request)
            return lambda: channel.send(self._take(channel, request, payload))
        raise InvalidArgumentError(f"{type(request).__name__} is not for here")

    def _reserve(self, request: m.Send) -> Room | Draft:
        if request.options.size < 0:
            raise InvalidArgumentError("the size of the payload is missing")
        self._cache.check(writable_key(request.key, request.options), request.options.size, request.options)
        room = self._cache.reserve(request.options.size, table=request.options.table)
        return room or self._cache.draft(table=request.options.table)

    def _take(self, channel: Channel, request: m.Send, payload: Room | Draft) -> m.Reply:
        """Read the bytes and store them."""
        failure: FlameError | None = None
        try:
            channel.send(m.Reserved(0, 0))
            if isinstance(payload, Room):
                channel.read_into(self._cache.view(payload))
            else:
                failure = _read_to_disk(channel, payload, request.options.size)
        except BaseException:
            self._cache.discard(payload)
            _log.info("put_abandoned key=%s bytes=%d", request.key, payload.size)
            raise
        if failure is not None:
            self._cache.discard(payload)
            return m.Failure.of(failure)
        try:
            return m.Stored(*self._cache.commit(writable_key(request.key, request.options), payload, request.options))
        except FlameError as error:
            return m.Failure.of(error)


def _read_to_disk(channel: Channel, draft: Draft, size: int) -> FlameError | None:
    """Read a payload into a draft; all of it, also when the disk is full, since the client sends it anyway."""
    buffer = memoryview(bytearray(min(_STEP, size)))
    failure: FlameError | None = None
    for start in range(0, size, _STEP):
        step = buffer[: min(_STEP, size - start)]
        channel.read_into(step)
        if failure is None:
            try:
                draft.write(step)
            except FlameError as error:
                failure = error
    return failure


def _give(channel: Channel, content: Content) -> None:
    parts = tuple(m.Part(part.version, part.size) for part in content.parts)
    channel.send(m.Answer(content.version, content.born, content.table, content.full, parts))
    for part in content.parts:
        channel.socket.sendall(memoryview(part.buffer).cast("B"))

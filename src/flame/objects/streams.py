"""Objects over a plain connection: the messages of the unix socket, and payloads behind them as they are.

Over TCP it is quicker than Flight, which has to look at what it carries, and is only there where the cache has no
certificate, and so nothing to hide from those who reach it. Where the connection can't be made, Flight does. In a
sandbox it is the one way: the executor manager is at the other end.
"""

from __future__ import annotations

import contextlib
import math
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import TypeVar

import msgspec

from flame.model.errors import FlameError, error_of
from flame.objects import messages as m
from flame.objects.blocks import block
from flame.objects.codecs import Payload
from flame.objects.fetched import Fetched, FetchedPart
from flame.objects.wire import Channel

_REPLIES = msgspec.msgpack.Decoder(m.Reply)
_CONNECT_TIMEOUT = 2.0  # seconds; the port may be closed to us
_RELAY_TIMEOUT = 60.0  # seconds; the cache may have to start first
_IDLE = 4  # connections that are kept
_STEP = 1024 * 1024
R = TypeVar("R")


class UnsentError(ConnectionError):
    """There was no connection to send a request over: it did not happen."""


class StreamClient:
    """Connections to one address: (host, port) of a cache's door, with the token that the door wants, or the path of a
    unix socket. May be used by several threads; each has a connection of its own. `endpoint` is what the cache says
    of itself."""

    def __init__(self, address: tuple[str, int] | str, token: str = "") -> None:
        self.endpoint = ""
        self._address = address
        self._token = token
        # What may just be ended at the other end is not used again: one could not tell what became of a request.
        self._keep = math.inf if isinstance(address, tuple) else m.RELAY_IDLE / 10
        self._idle: deque[tuple[Channel, float]] = deque()  # and since when
        self._busy: set[Channel] = set()
        self._closed = False
        self._give(self._connect(), usable=True)

    def close(self) -> None:
        """End the connections, and what is under way there."""
        self._closed = True
        for channel in tuple(self._busy):
            with contextlib.suppress(OSError):  # it has just ended
                channel.socket.shutdown(socket.SHUT_RDWR)
        while self._idle:
            self._idle.pop()[0].socket.close()

    def get(self, key: str, version: int = 0, born: int = 0, origin: str = "") -> Fetched:
        """What the cache answers. Raises FlameError, OSError."""
        channel = self._take()
        try:
            answer = _ask(channel, m.Get(key, version, born, origin), m.Answer)
            parts: list[FetchedPart] = []
            for part in answer.parts:
                view, buffer = block(part.size)
                channel.read_into(view)
                parts.append(FetchedPart(part.version, buffer))
        except BaseException as error:
            self._give(channel, usable=isinstance(error, FlameError))
            raise
        self._give(channel, usable=True)
        return Fetched(answer.version, answer.born, answer.table, answer.full, tuple(parts))

    def download(self, key: str, write: Callable[[memoryview], object], origin: str = "") -> None:
        """Hand the base of an object to `write`, piece by piece. Raises FlameError, OSError."""
        channel = self._take()
        try:
            answer = _ask(channel, m.Get(key, origin=origin), m.Answer)
            buffer = memoryview(bytearray(_STEP))
            for number, part in enumerate(answer.parts):
                for start in range(0, part.size, _STEP):
                    piece = buffer[: min(_STEP, part.size - start)]
                    channel.read_into(piece)
                    if number == 0:  # patches are no part of a file
                        write(piece)
        except BaseException as error:
            self._give(channel, usable=isinstance(error, FlameError))
            raise
        self._give(channel, usable=True)

    def put(self, key: str, payload: Payload, options: m.Options) -> m.Stored:
        """Store a payload. Raises FlameError, OSError."""
        view, _ = block(payload.size)
        payload.write(view)
        return self.upload(key, (view,), msgspec.structs.replace(options, table=payload.table, size=payload.size))

    def upload(self, key: str, pieces: Iterable[bytes | memoryview], options: m.Options) -> m.Stored:
        """Store a payload of `options.size` bytes that comes in pieces. Raises FlameError, OSError."""
        channel = self._take()
        asked = True  # whether all that was sent is answered
        try:
            _ask(channel, m.Send(key, options), m.Reserved)
            asked = False
            for piece in pieces:
                channel.socket.sendall(piece)
            asked = True
            stored = _reply(channel, m.Stored)
        except BaseException as error:
            self._give(channel, usable=asked and isinstance(error, FlameError))
            raise
        self._give(channel, usable=True)
        return stored

    def call(self, action: str, body: bytes) -> bytes:
        """Run an action; only an executor manager does that here. Raises FlameError, OSError."""
        channel = self._take()
        try:
            result = _ask(channel, m.Call(action, body), m.Result)
        except BaseException as error:
            self._give(channel, usable=isinstance(error, FlameError))
            raise
        self._give(channel, usable=True)
        return result.body

    def _take(self) -> Channel:
        channel = self._idle_one()
        if channel is None:
            try:
                channel = self._connect()
            except OSError as error:
                raise UnsentError(str(error)) from error
        self._busy.add(channel)
        return channel

    def _idle_one(self) -> Channel | None:
        while self._idle:
            channel, since = self._idle.pop()
            if time.monotonic() - since < self._keep and not channel.ended():
                return channel
            channel.socket.close()
        return None

    def _give(self, channel: Channel, *, usable: bool) -> None:
        self._busy.discard(channel)
        if usable and len(self._idle) < _IDLE and not self._closed:
            self._idle.append((channel, time.monotonic()))
        else:
            channel.socket.close()

    def _connect(self) -> Channel:
        connection = self._open()
        try:
            channel = Channel(connection)
            channel.send(m.Hello(self._token))
            self.endpoint = _reply(channel, m.Welcome).endpoint
            connection.settimeout(None)
        except BaseException:
            connection.close()
            raise
        return channel

    def _open(self) -> socket.socket:
        if isinstance(self._address, tuple):
            connection = socket.create_connection(self._address, _CONNECT_TIMEOUT)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return connection
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.settimeout(_RELAY_TIMEOUT)
            connection.connect(self._address)
        except BaseException:
            connection.close()
            raise
        return connection


def _ask(channel: Channel, request: m.Request, kind: type[R]) -> R:
    channel.send(request)
    return _reply(channel, kind)


def _reply(channel: Channel, kind: type[R]) -> R:
    data = channel.receive()
    if data is None:
        raise ConnectionResetError("the cache has closed the connection")
    reply = _REPLIES.decode(data)
    if isinstance(reply, m.Failure):
        raise error_of(reply.code, reply.message, reply.remedy, reply.retryable)
    if not isinstance(reply, kind):
        raise ConnectionError(f"the cache answered with {type(reply).__name__}")
    return reply

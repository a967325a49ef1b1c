"""Objects over a plain TCP connection: the messages of the unix socket, and payloads behind them as they are.

It is quicker than Flight, which has to look at what it carries, and is only there where the cache has no certificate,
and so nothing to hide from those who reach it. Where the connection can't be made, Flight does.
"""

from __future__ import annotations

import socket
from collections import deque
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
_IDLE = 4  # connections that are kept
R = TypeVar("R")


class UnsentError(ConnectionError):
    """There was no connection to send a request over: it did not happen."""


class StreamClient:
    """Connections to the port that the cache's door names. May be used by several threads; each has one of its own."""

    def __init__(self, host: str, door: m.LocalDoor) -> None:
        self._address = (host, door.port)
        self._token = door.token
        self._idle: deque[Channel] = deque()
        self._idle.append(self._connect())

    def close(self) -> None:
        """End the connections."""
        while self._idle:
            self._idle.pop().socket.close()

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

    def put(self, key: str, payload: Payload, options: m.Options) -> m.Stored:
        """Store a payload. Raises FlameError, OSError."""
        options = msgspec.structs.replace(options, table=payload.table, size=payload.size)
        view, _ = block(payload.size)
        payload.write(view)
        channel = self._take()
        try:
            _ask(channel, m.Send(key, options), m.Reserved)
            channel.socket.sendall(view)
            stored = _reply(channel, m.Stored)
        except BaseException as error:
            self._give(channel, usable=isinstance(error, FlameError))
            raise
        self._give(channel, usable=True)
        return stored

    def _take(self) -> Channel:
        while self._idle:
            channel = self._idle.pop()
            if not channel.ended():
                return channel
            channel.socket.close()
        try:
            return self._connect()
        except OSError as error:
            raise UnsentError(str(error)) from error

    def _give(self, channel: Channel, *, usable: bool) -> None:
        if usable and len(self._idle) < _IDLE:
            self._idle.append(channel)
        else:
            channel.socket.close()

    def _connect(self) -> Channel:
        connection = socket.create_connection(self._address, _CONNECT_TIMEOUT)
        try:
            channel = Channel(connection)
            channel.send(m.Hello(self._token))
            _reply(channel, m.Welcome)
            connection.settimeout(None)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except BaseException:
            connection.close()
            raise
        return channel


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

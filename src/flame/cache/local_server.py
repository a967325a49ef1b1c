"""The door for clients of the same node: a unix socket that only the cache's user may open, and shared memory.

A connection has a thread. What it leased and what was lent to it is given back when it ends, however it ends.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec

from flame.cache.actions import Actions
from flame.cache.blobs import Pin
from flame.cache.cache import ObjectCache, Room
from flame.cache.payloads import Content, Loaded
from flame.cache.visitors import ANYBODY, Tokens
from flame.model.errors import FlameError, InternalError, InvalidArgumentError, NotFoundError, PermissionDeniedError
from flame.objects import messages as m
from flame.objects.keys import ObjectKey
from flame.objects.rights import check
from flame.objects.wire import Channel, frame

_log = logging.getLogger("flame.cache")
_REQUESTS = msgspec.msgpack.Decoder(m.Request)


class LocalServer:
    """Listens at `path`, whose folder is private. `listener`: a descriptor of that socket, if somebody else made it and
    goes on with it afterwards."""

    def __init__(
        self,
        path: Path,
        tokens: Tokens,
        endpoint: str,
        cache: ObjectCache,
        actions: Actions,
        read: Callable[[m.GetTicket], Content],
        listener: int | None = None,
    ) -> None:
        self._path = path
        self._tokens = tokens
        self._endpoint = endpoint
        self._cache = cache
        self._actions = actions
        self._read = read
        self._socket = socket.socket(socket.AF_UNIX, fileno=listener)
        self._borrowed = listener is not None
        self._socket.setblocking(True)  # event loops that watched it before may have changed that
        self._closed = False

    def start(self) -> None:
        """Listen. Raises OSError."""
        if not self._borrowed:
            self._path.unlink(missing_ok=True)
            self._socket.bind(str(self._path))
            self._path.chmod(0o600)
            self._socket.listen(128)
        threading.Thread(target=self._accept, name="local-door", daemon=True).start()

    def stop(self) -> None:
        """Listen no more; connections end with the process."""
        self._closed = True
        if self._borrowed:
            return
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._path.unlink(missing_ok=True)

    def _accept(self) -> None:
        while not self._closed:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            guest = _Guest(self._cache, self._actions, self._read)
            channel = Channel(connection)
            try:
                if self._admit(channel, guest):
                    while (data := channel.receive()) is not None:
                        reply = guest.answer(data)
                        if reply is not None:
                            channel.send(reply)
            except (OSError, EOFError):
                pass  # it is gone; so is what it had
            finally:
                guest.leave()

    def _admit(self, channel: Channel, guest: _Guest) -> bool:
        data = channel.receive()
        if data is None:
            return False
        try:
            hello = _REQUESTS.decode(data)
        except msgspec.MsgspecError:
            return False
        uid = struct.unpack("3i", channel.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]
        visitor = self._tokens.visitor(hello.token) if isinstance(hello, m.Hello) else None
        if visitor is None or uid != os.getuid():
            channel.send(m.Failure.of(PermissionDeniedError("this is the door of the cache's own user")))
            return False
        guest.visitor = visitor
        welcome = m.Welcome(self._cache.arena.size, self._endpoint)
        socket.send_fds(channel.socket, [frame(welcome)], [self._cache.arena.fd])
        return True


class _Guest:
    """One connection: its leases and the memory lent to it."""

    def __init__(self, cache: ObjectCache, actions: Actions, read: Callable[[m.GetTicket], Content]) -> None:
        self._cache = cache
        self._actions = actions
        self._read = read
        self._leases: dict[int, Pin] = {}
        self._lent: dict[int, Room] = {}
        self._last = 0
        self.visitor = ANYBODY

    def leave(self) -> None:
        """Give everything back."""
        leases, lent = len(self._leases), len(self._lent)
        for room in self._lent.values():
            self._cache.give_back(room)
        self._lent.clear()
        self._leases.clear()
        _log.debug("client_left leases=%d lent=%d", leases, lent)

    def answer(self, data: bytes) -> m.Reply | None:
        """The reply to a request."""
        try:
            request = _REQUESTS.decode(data)
        except msgspec.MsgspecError as error:
            return m.Failure.of(InvalidArgumentError(f"not a request: {error}"))
        try:
            return self._answer(request)
        except FlameError as error:
            return m.Failure.of(error)
        except Exception as error:
            _log.exception("request_failed request=%s", type(request).__name__)
            return m.Failure.of(InternalError(f"the cache failed: {error}"))

    def _answer(self, request: m.Request) -> m.Reply | None:
        if not isinstance(request, m.Commit):
            check(self.visitor, request)
        match request:
            case m.Get():
                ticket = m.GetTicket(request.key, request.version, request.born, request.origin)
                return self._give(self._read(ticket))
            case m.Put():
                stored = self._cache.put_bytes(
                    writable_key(request.key, request.options), request.data, request.options
                )
                return m.Stored(*stored)
            case m.Reserve():
                return self._lend(request)
            case m.Commit():
                return self._commit(request)
            case m.Cancel():
                room = self._lent.pop(request.number, None)
                if room is not None:
                    self._cache.give_back(room)
                return m.Stored("", 0)
            case m.Release():
                for lease in request.leases:
                    self._leases.pop(lease, None)
                return None
            case m.Call():
                return m.Result(self._actions.run(request.action, request.body, self.visitor))
            case m.Hello() | m.Send():
                raise InvalidArgumentError(f"{type(request).__name__} is not for here")

    def _lend(self, request: m.Reserve) -> m.Reserved:
        if request.size < 0:
            raise InvalidArgumentError(f"{request.size} bytes can't be lent")
        if request.options is not None:
            self._cache.check(writable_key(request.key, request.options), request.size, request.options)
        room = self._cache.reserve(request.size, table=request.table)
        if room is None:
            return m.Reserved(0, -1)
        self._last += 1
        self._lent[self._last] = room
        return m.Reserved(self._last, room.offset + room.lead)

    def _commit(self, request: m.Commit) -> m.Stored:
        room = self._lent.pop(request.number, None)
        if room is None:
            raise NotFoundError(f"no memory of number {request.number} was lent here")
        try:
            check(self.visitor, request)
            key = writable_key(request.key, request.options)
        except FlameError:
            self._cache.give_back(room)
            raise
        return m.Stored(*self._cache.commit(key, room, request.options))

    def _give(self, content: Content) -> m.Answer:
        streamed = any(part.offset is None and part.size > m.INLINE for part in content.parts)
        parts = () if streamed else tuple(self._part(part) for part in content.parts)
        return m.Answer(content.version, content.born, content.table, content.full, parts, streamed)

    def _part(self, part: Loaded) -> m.Part:
        size = part.size
        if size <= m.INLINE:
            return m.Part(part.version, size, data=part.to_bytes())
        self._last += 1
        self._leases[self._last] = part.pin
        return m.Part(part.version, size, offset=part.offset or 0, lease=self._last)


def writable_key(text: str, options: m.Options) -> ObjectKey:
    key = ObjectKey.from_key(text) if options.patch else ObjectKey.from_path(text)
    if key.is_all_sessions():
        raise InvalidArgumentError(f"can't store under {key}", remedy="'*' is for deleting and listing")
    return key

"""What clients may ask beside put and get, by name; the same over Flight and over the unix socket."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import msgspec

from flame.cache.cache import ObjectCache
from flame.cache.dropped import Dropped
from flame.cache.visitors import ANYBODY, Tokens
from flame.model.errors import InvalidArgumentError
from flame.objects.keys import ObjectKey
from flame.objects.messages import ACTIONS, MAX_LISTED, Call, KeyRequest, KeysRequest, LocalDoor, TtlRequest
from flame.objects.rights import Visitor, check

T = TypeVar("T")


class Actions:
    """The actions of a cache. `door`: where clients of this node connect, and `tokens`: what each says there;
    `dropped`: files that others wrote."""

    def __init__(
        self, cache: ObjectCache, endpoint: str, door: LocalDoor, tokens: Tokens, dropped: Dropped | None = None
    ) -> None:
        self._cache = cache
        self._endpoint = endpoint
        self._door = door
        self._tokens = tokens
        self._dropped = dropped
        self._table: dict[str, Callable[[bytes], bytes]] = {
            "DELETE": self._delete,
            "DELETE_MANY": self._delete_many,
            "EXISTS": self._exists,
            "LIST": self._list,
            "TTL": self._ttl,
            "END_SESSION": self._end_session,
            "STAT": self._stat,
        }

    def run(self, name: str, body: bytes, visitor: Visitor = ANYBODY) -> bytes:
        """The answer. Raises InvalidArgumentError for an unknown action or a body that it does not understand,
        PermissionDeniedError."""
        check(visitor, Call(name, body))
        action = self._table.get(name)
        if name == "LOCAL":
            return msgspec.json.encode(msgspec.structs.replace(self._door, token=self._tokens.of(visitor)))
        if action is None:
            raise InvalidArgumentError(f"unknown action {name[:40]!r}", remedy=f"there are {', '.join(ACTIONS)}")
        return action(body)

    def _delete(self, body: bytes) -> bytes:
        try:
            key = ObjectKey.from_path(body.decode())
        except UnicodeDecodeError:
            raise InvalidArgumentError("the key to delete is not UTF-8 text") from None
        self._cache.delete(key)
        if self._dropped is not None:
            self._dropped.forget(key)
        return b"OK"

    def _delete_many(self, body: bytes) -> bytes:
        for key in [ObjectKey.from_key(key) for key in _decoded(body, KeysRequest).keys]:
            self._cache.delete(key)
            if self._dropped is not None:
                self._dropped.forget(key)
        return b"null"

    def _exists(self, body: bytes) -> bytes:
        info = self._cache.info(ObjectKey.from_key(_decoded(body, KeyRequest).key))
        return msgspec.json.encode(info)

    def _list(self, body: bytes) -> bytes:
        request = _decoded(body, KeyRequest)
        limit = min(max(request.limit, 1), MAX_LISTED)
        return msgspec.json.encode(self._cache.list(ObjectKey.from_path(request.key), request.after, limit))

    def _ttl(self, body: bytes) -> bytes:
        request = _decoded(body, TtlRequest)
        self._cache.expire(ObjectKey.from_key(request.key), request.after)
        return b"null"

    def _end_session(self, body: bytes) -> bytes:
        request = _decoded(body, TtlRequest)
        self._cache.end_session(ObjectKey.from_prefix(request.key), request.after)
        return b"null"

    def _stat(self, body: bytes) -> bytes:
        del body
        return msgspec.json.encode(self._cache.status(self._endpoint))


def _decoded(body: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.MsgspecError as error:
        raise InvalidArgumentError(f"not a {kind.__name__}: {error}") from None

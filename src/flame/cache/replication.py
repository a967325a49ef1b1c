"""Copies of objects of other caches, for clients near this one.

A copy is asked for again at its own cache with every get, but travels only when it has changed: as patches if those
suffice. It is the first to go when memory is needed.
"""

from __future__ import annotations

import threading
from collections import deque

from flame.cache.blobs import Blob, Pin
from flame.cache.cache import ObjectCache
from flame.cache.disk import GoneError
from flame.cache.payloads import Content, Loaded
from flame.config import TlsConfig
from flame.model.errors import NotFoundError, PermissionDeniedError
from flame.objects.fetched import Fetched
from flame.objects.keys import ObjectKey
from flame.objects.links import Link
from flame.objects.messages import GetTicket
from flame.objects.remote import location

_STRIPES = 16
_ATTEMPTS = 3  # to keep a copy where memory is wanted by others all the time
_nobody: deque[Blob] = deque(maxlen=0)  # takes note of pins that keep nothing


class Replicas:
    """Fetches objects of `peers` (endpoints of caches) into a cache."""

    def __init__(self, cache: ObjectCache, peers: tuple[str, ...], tls: TlsConfig | None) -> None:
        self._cache = cache
        self._tls = tls
        self._clients: dict[str, Link | None] = {location(peer): None for peer in peers}
        self._lock = threading.Lock()
        self._copying = [threading.Lock() for _ in range(_STRIPES)]

    def read(self, ticket: GetTicket) -> Content:
        """The object of another cache. Raises PermissionDeniedError when that is no peer, NotFoundError."""
        origin = location(ticket.origin)
        key = str(ObjectKey.from_key(ticket.key))
        client = self._client(origin)
        for _ in range(_ATTEMPTS):
            with self._copying[hash((origin, key)) % _STRIPES]:
                fetched = self._refresh(client, origin, key)
                if fetched is not None:
                    return _passing(fetched)
                copy = self._cache.copies.find(origin, key)
            if copy is not None:
                try:
                    return self._cache.copies.read(copy, ticket.version, ticket.born)
                except GoneError:
                    pass  # evicted just now: fetch it anew
        return _passing(client.get(key))

    def _refresh(self, client: Link, origin: str, key: str) -> Fetched | None:
        """Make the copy current; what came, if there is no room for a copy."""
        copy = self._cache.copies.find(origin, key)
        try:
            fetched = client.get(key, *((copy.version, copy.born) if copy is not None else (0, 0)))
        except NotFoundError:
            self._cache.copies.drop(origin, key)
            raise
        if copy is not None and not fetched.full and not fetched.parts:
            return None
        if self._cache.copies.keep(origin, key, fetched) is not None:
            return None
        self._cache.copies.drop(origin, key)
        return fetched if fetched.full else client.get(key)

    def _client(self, origin: str) -> Link:
        with self._lock:
            if origin not in self._clients:
                raise PermissionDeniedError(
                    f"this cache does not fetch objects of {origin}", remedy="name it in cache.peers"
                )
            client = self._clients[origin]
            if client is None:
                client = self._clients[origin] = Link(origin, self._tls)
            return client


def _passing(fetched: Fetched) -> Content:
    """An object that is handed on without a copy."""
    parts = tuple(
        Loaded(
            part.version, part.payload.size, None, Pin(Blob(part.payload.size, 0, None, None), _nobody), part.payload
        )
        for part in fetched.parts
    )
    return Content(fetched.version, fetched.born, fetched.table, True, parts)

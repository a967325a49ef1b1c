"""Copies of objects of other caches, in memory only and the first to go."""

from __future__ import annotations

import threading
from collections.abc import Iterable

import pyarrow as pa

from flame.cache.blobs import Blob
from flame.cache.disk import GoneError
from flame.cache.eviction import Memory
from flame.cache.payloads import Content, Payloads
from flame.cache.store import Object, Versioned, reading
from flame.objects.fetched import Fetched
from flame.objects.messages import LEAD


class Copies:
    """The copies by the place of their cache and their key. `lock` is the one of the cache."""

    def __init__(self, memory: Memory, payloads: Payloads, lock: threading.Lock) -> None:
        self._memory = memory
        self._payloads = payloads
        self._lock = lock
        self._copies: dict[tuple[str, str], Object] = {}

    def find(self, origin: str, key: str) -> Object | None:
        """The copy of an object of another cache, if there is one."""
        with self._lock:
            copy = self._copies.get((origin, key))
            if copy is not None and any(blob.dropped for blob in copy.blobs()):
                self._forget(origin, key)  # memory was needed for something else
                return None
            return copy

    def read(self, copy: Object, known: int, born: int) -> Content:
        """What of a copy somebody lacks. Raises GoneError when it was evicted meanwhile."""
        with self._lock:
            wanted = reading(copy, known, born)
            if any(part.blob.dropped for part in wanted.parts):
                raise GoneError("the copy of an object left memory")
            pins = self._payloads.pin(wanted)
        return self._payloads.content(wanted, pins)

    def keep(self, origin: str, key: str, fetched: Fetched) -> Object | None:
        """Keep what came from another cache; a whole object, or patches of the copy there is. None: no room."""
        made: list[Versioned] = []
        for part in fetched.parts:
            blob = self._blob(part.payload, table=fetched.table and fetched.full and not made)
            if blob is None:
                with self._lock:
                    self._drop([one.blob for one in made])
                return None
            made.append(Versioned(part.version, blob))
        with self._lock:
            old = self._copies.get((origin, key))
            if not fetched.full:
                if old is None or old.born != fetched.born:
                    self._drop([one.blob for one in made])
                    return None
                old.patches.extend(made)
                return old
            copy = Object(key, fetched.born, fetched.table, "", made[0], made[1:], None, origin)
            self._forget(origin, key)
            self._copies[origin, key] = copy
            return copy

    def drop(self, origin: str, key: str) -> None:
        """The object is no more."""
        with self._lock:
            self._forget(origin, key)

    def _blob(self, payload: pa.Buffer, *, table: bool) -> Blob | None:
        lead = 0 if table else LEAD
        with self._lock:
            offset = self._memory.take(lead + payload.size)
        if offset is None:
            return None
        self._memory.arena.view(offset + lead, payload.size)[:] = memoryview(payload).cast("B")
        blob = Blob(payload.size, lead, offset, None, copy=True)
        with self._lock:
            self._memory.hold(blob)
        return blob

    def _drop(self, blobs: Iterable[Blob]) -> None:
        for blob in blobs:
            self._memory.drop(blob)

    def _forget(self, origin: str, key: str) -> None:
        old = self._copies.pop((origin, key), None)
        if old is not None:
            self._drop(old.blobs())

"""The memory of the cache: who may lie in it, and who leaves it for others.

The least recently used payload leaves first. A payload leaves only if it is on disk too, or is a copy of another
cache's; the last one there is never does, nor one that somebody reads.
"""

from __future__ import annotations

from collections import OrderedDict, deque

from flame.cache.arena import Arena, rounded
from flame.cache.blobs import Blob
from flame.model.errors import ExhaustedError


class Memory:
    """An arena and the payloads in it. Whoever calls holds the lock of the cache."""

    def __init__(self, arena: Arena, *, evict: bool = True, max_objects: int | None = None) -> None:
        self.arena = arena
        self.ended: deque[Blob] = deque()  # pins that ended wherever the collector ran
        self.used = 0
        self.takes = 0  # how often memory was asked for
        self._evict = evict
        self._max_objects = max_objects
        self._order: OrderedDict[Blob, None] = OrderedDict()

    @property
    def leased(self) -> int:
        """Bytes that somebody reads now."""
        return sum(blob.room for blob in self._order if blob.pins)

    def take(self, room: int) -> int | None:
        """Room for so many bytes; None when nothing can make it."""
        self.settle()
        self.takes += 1
        if room > self.arena.size:
            return None
        offset = self.arena.take(room)
        while offset is None and self._evict and (victims := self._victims(room)):
            for blob in victims:
                self.forget(blob)
            offset = self.arena.take(room)
        if offset is not None:
            self.used += rounded(room)
        return offset

    def give(self, offset: int, room: int) -> None:
        """Take back room that no payload has."""
        self.arena.give(offset, room)
        self.used -= rounded(room)

    def hold(self, blob: Blob) -> None:
        """A payload is in memory now. Others leave when there are too many."""
        self._order[blob] = None
        if self._evict and self._max_objects is not None and len(self._order) > self._max_objects:
            for other in list(self._order)[:-1]:
                if self._may_leave(other):
                    self.forget(other)
                if len(self._order) <= self._max_objects:
                    return

    def touch(self, blob: Blob) -> None:
        """It was used just now."""
        if blob in self._order:
            self._order.move_to_end(blob)

    def forget(self, blob: Blob) -> None:
        """It leaves memory."""
        if blob.offset is not None:
            self.arena.give(blob.offset, blob.room)
            self.used -= rounded(blob.room)
            blob.offset = None
        self._order.pop(blob, None)
        if blob.file is None:
            blob.dropped = True

    def drop(self, blob: Blob) -> None:
        """Nobody will ask for it again: it leaves now, or when the last reader is done."""
        blob.dropped = True
        if not blob.pins:
            self.forget(blob)

    def unpin(self, blob: Blob) -> None:
        """A reader is done."""
        blob.pins -= 1
        if not blob.pins and blob.dropped:
            self.forget(blob)

    def settle(self) -> None:
        """Take note of the readers that ended."""
        while self.ended:
            self.unpin(self.ended.popleft())

    def exhausted(self, room: int) -> ExhaustedError:
        """Why there is no room."""
        size = self.arena.size
        if room > size:
            return ExhaustedError(
                f"an object of {room} bytes is larger than the {size} bytes of the cache",
                remedy="raise cache.eviction.max_memory, or set cache.storage: larger objects go to disk",
                retryable=False,
            )
        return ExhaustedError(
            f"the cache is full: {self.used} of {size} bytes are used ({self.leased} of them by readers), "
            f"and nothing may leave",
            remedy="delete objects, raise cache.eviction.max_memory, or set cache.storage",
        )

    def _victims(self, room: int) -> list[Blob]:
        """Those that leave first, as many as have so many bytes together."""
        victims: list[Blob] = []
        for blob in self._order:
            if room <= 0:
                break
            if self._may_leave(blob):
                victims.append(blob)
                room -= rounded(blob.room)
        return victims

    def _may_leave(self, blob: Blob) -> bool:
        return not blob.pins and (blob.file is not None or blob.copy)

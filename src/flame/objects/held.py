"""What a client remembers of objects of other nodes: payloads, bounded in bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict

from flame.objects.fetched import Fetched
from flame.objects.keys import ObjectKey

DEFAULT_BYTES = 256 * 1024 * 1024


class Held:
    """The least recently used objects leave first. Payloads never change, so they are handed out as they are."""

    def __init__(self, max_bytes: int = DEFAULT_BYTES) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._objects: OrderedDict[tuple[str, str], Fetched] = OrderedDict()
        self.bytes = 0

    def find(self, place: str, key: str) -> Fetched | None:
        """What is remembered of an object at a cache."""
        with self._lock:
            found = self._objects.get((place, key))
            if found is not None:
                self._objects.move_to_end((place, key))
            return found

    def keep(self, place: str, key: str, fetched: Fetched) -> None:
        """Remember an object, in place of what was known of it."""
        with self._lock:
            self._drop((place, key))
            if fetched.size > self._max_bytes:
                return
            self._objects[place, key] = fetched
            self.bytes += fetched.size
            while self.bytes > self._max_bytes:
                self._drop(next(iter(self._objects)))

    def forget(self, key: ObjectKey) -> None:
        """Forget what a key or prefix means, at all caches."""
        with self._lock:
            for place in [place for place in self._objects if key.matches_key(place[1])]:
                self._drop(place)

    def _drop(self, place: tuple[str, str]) -> None:
        old = self._objects.pop(place, None)
        if old is not None:
            self.bytes -= old.size


def joined(known: Fetched | None, answer: Fetched) -> Fetched | None:
    """The whole object from what was known and what was lacking; None when they don't fit together."""
    if answer.full:
        return answer
    if known is None or known.born != answer.born:
        return None
    if not answer.parts:
        return known if known.version == answer.version else None
    if answer.parts[0].version != known.version + 1:
        return None
    return known._replace(version=answer.version, parts=(*known.parts, *answer.parts))

"""Payloads in the cache: immutable, in shared memory, on disk, or both.

Who reads one pins it; memory that is pinned is neither reused nor evicted. Pins that Python's collector ends are only
noted (`Pin`), since it may run anywhere, also under the lock of the cache.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flame.cache.disk import StoredFile


class Blob:
    """The payload of one version of an object.

    `offset` in the arena, None when it is not in memory; `file` None when it is not on disk. Invariant: one of both is
    there until the blob is dropped. `lead` bytes before it in its extent are unused. `copy`: the original is elsewhere.
    """

    __slots__ = ("copy", "dropped", "file", "lead", "offset", "pins", "size")

    def __init__(
        self, size: int, lead: int, offset: int | None, file: StoredFile | None, *, copy: bool = False
    ) -> None:
        self.size = size
        self.lead = lead
        self.offset = offset
        self.file = file
        self.pins = 0
        self.dropped = False
        self.copy = copy

    @property
    def room(self) -> int:
        """Bytes that it takes in memory."""
        return self.lead + self.size


class Pin:
    """Keeps a blob in memory as long as somebody refers to this object."""

    __slots__ = ("_ended", "blob")

    def __init__(self, blob: Blob, ended: deque[Blob]) -> None:
        self.blob = blob
        self._ended = ended

    def __del__(self) -> None:
        self._ended.append(self.blob)

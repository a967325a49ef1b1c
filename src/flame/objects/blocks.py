"""Memory for large payloads that come from elsewhere or go there. Blocks are used again: filling pages that the system
has just made costs several times as much as the copy itself.
"""

from __future__ import annotations

import mmap
from collections import deque

import pyarrow as pa

LARGE = 4 * 1024 * 1024  # below, the allocator's own memory is good enough
_KEEP = 2  # blocks; more are given back to the system, and so are larger ones
_LARGEST = 128 * 1024 * 1024

_free: deque[mmap.mmap] = deque(maxlen=_KEEP)  # its operations are atomic: blocks come back wherever the collector runs


class _Use:
    """One use of a block; with the last buffer over it the block is free again."""

    __slots__ = ("block",)

    def __init__(self, block: mmap.mmap) -> None:
        self.block = block

    def __del__(self) -> None:
        if len(self.block) <= _LARGEST:
            _free.append(self.block)


def block(size: int) -> tuple[memoryview, pa.Buffer]:
    """Memory of so many bytes: to be written now, and as a buffer that keeps it."""
    if size < LARGE:
        data = bytearray(size)
        return memoryview(data), pa.py_buffer(data)
    found = _take(size) or mmap.mmap(-1, -(-size // LARGE) * LARGE)
    view = memoryview(found)[:size]
    return view, pa.foreign_buffer(pa.py_buffer(found).address, size, _Use(found))


def _take(size: int) -> mmap.mmap | None:
    """A free block that is large enough and not much too large."""
    for _ in range(len(_free)):
        try:
            found = _free.popleft()
        except IndexError:
            return None
        if size <= len(found) <= 2 * size:
            return found
        _free.append(found)
    return None

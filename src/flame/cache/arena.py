"""Shared memory that objects lie in: one anonymous file, mapped here and by the clients of this node.

Memory that was used before is nine times quicker to fill than fresh pages, so extents are handed out from the low end,
where the used ones are, and the pages behind them are touched ahead once somebody writes large objects.
"""

from __future__ import annotations

import bisect
import errno
import fcntl
import mmap
import os
import threading

import pyarrow as pa

ALIGNMENT = 64
_PAGE = mmap.PAGESIZE
_POPULATE_WRITE = 23  # MADV_POPULATE_WRITE
_F_ADD_SEALS, _F_SEAL_SHRINK, _F_SEAL_GROW = 1033, 0x2, 0x4
AHEAD = 1024 * 1024  # bytes from which on an object makes the cache touch pages for the next one like it


class Free:
    """The free extents of `size` bytes. Pure: offsets only."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.free = size
        # Sorted by offset; neighbours are merged, so no two of them touch.
        self._offsets: list[int] = [0] if size else []
        self._sizes: dict[int, int] = {0: size} if size else {}

    def take(self, size: int) -> int | None:
        """The offset of the lowest free extent of that size; None when there is none. `size` is rounded up."""
        size = rounded(size)
        for index, offset in enumerate(self._offsets):
            room = self._sizes[offset]
            if room < size:
                continue
            del self._sizes[offset]
            if room == size:
                del self._offsets[index]
            else:
                self._offsets[index] = offset + size
                self._sizes[offset + size] = room - size
            self.free -= size
            return offset
        return None

    def give(self, offset: int, size: int) -> None:
        """Take an extent back."""
        size = rounded(size)
        self.free += size
        index = bisect.bisect(self._offsets, offset)
        if index < len(self._offsets) and self._offsets[index] == offset + size:
            size += self._sizes.pop(self._offsets.pop(index))
        if index and self._offsets[index - 1] + self._sizes[self._offsets[index - 1]] == offset:
            self._sizes[self._offsets[index - 1]] += size
            return
        self._offsets.insert(index, offset)
        self._sizes[offset] = size

    def extents(self) -> list[tuple[int, int]]:
        """Offsets and sizes of what is free."""
        return [(offset, self._sizes[offset]) for offset in self._offsets]


def rounded(size: int) -> int:
    """The size of the extent for so many bytes."""
    return max(ALIGNMENT, -(-size // ALIGNMENT) * ALIGNMENT)


class Arena:
    """`size` bytes of shared memory. Not safe for several threads, except `view` and `address`."""

    def __init__(self, size: int) -> None:
        size = -(-size // _PAGE) * _PAGE
        self.fd = os.memfd_create("flame-object-cache", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, size)
        fcntl.fcntl(self.fd, _F_ADD_SEALS, _F_SEAL_SHRINK | _F_SEAL_GROW)  # no client can pull it away under another
        self._map = mmap.mmap(self.fd, size)
        self._view = memoryview(self._map)
        self._address = pa.py_buffer(self._map).address
        self.extents = Free(size)
        self.touched = 0  # below are pages that were written before
        self._ahead = 0  # below are pages that were touched ahead
        self._toucher: threading.Thread | None = None

    @property
    def size(self) -> int:
        """Bytes in all."""
        return self.extents.size

    def take(self, size: int) -> int | None:
        """Room for so many bytes."""
        offset = self.extents.take(size)
        if offset is not None and offset + size > self.touched:
            self.touched = offset + size
            if size >= AHEAD:
                self._touch_ahead(min(size, self.size - self.touched))
        return offset

    def give(self, offset: int, size: int) -> None:
        """Take room back."""
        self.extents.give(offset, size)

    def view(self, offset: int, size: int) -> memoryview:
        """Writable bytes."""
        return self._view[offset : offset + size]

    def buffer(self, offset: int, size: int, base: object) -> pa.Buffer:
        """Bytes to read that keep `base` alive."""
        return pa.foreign_buffer(self._address + offset, size, base)

    def trim(self) -> int:
        """Give the pages of free extents back to the system; how many bytes that were at most."""
        given = 0
        reached = max(self.touched, self._ahead)
        self._ahead = 0
        for offset, size in self.extents.extents():
            start = -(-offset // _PAGE) * _PAGE
            end = min(offset + size, -(-reached // _PAGE) * _PAGE) // _PAGE * _PAGE
            if end > start:
                self._map.madvise(mmap.MADV_REMOVE, start, end - start)
                given += end - start
                if end >= self.touched:
                    self.touched = start
        return given

    def _touch_ahead(self, size: int) -> None:
        if size <= 0 or (self._toucher is not None and self._toucher.is_alive()):
            return
        start = self.touched // _PAGE * _PAGE
        length = min(-(-size // _PAGE) * _PAGE + _PAGE, self.size - start)
        self._ahead = max(self._ahead, start + length)
        self._toucher = threading.Thread(target=self._touch, args=(start, length), daemon=True)
        self._toucher.start()

    def _touch(self, start: int, length: int) -> None:
        try:
            self._map.madvise(_POPULATE_WRITE, start, length)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOMEM):  # an older kernel, or no memory: it is only a favour
                raise

"""Accepted tasks that wait for their results: runs of neighbouring task ids, as they were submitted."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Iterator, Sequence

from flame.client.futures import Settled, TaskFuture, settle
from flame.client.gather import Gather
from flame.model.errors import FlameError

Owner = list["TaskFuture | None"] | tuple[Gather, int]  # a future per task, or (who gathers, position of the first)


class FutureChunk:
    """Tasks with a future each. Invariant: left == number of owners that are not None."""

    __slots__ = ("first", "last", "left", "owners")

    def __init__(self, first: int, owners: list[TaskFuture | None]) -> None:
        self.first = first
        self.last = first + len(owners) - 1
        self.owners = owners
        self.left = sum(owner is not None for owner in owners)
        for task_id, owner in enumerate(owners, first):
            if owner is not None:
                owner._id = task_id  # pyright: ignore[reportPrivateUsage]

    def settle(self, task_id: int, values: Sequence[Settled], lock: threading.Lock, *, plain: bool) -> None:
        """Results of task_id, task_id + 1, ..., all in this chunk; those that came before are dropped."""
        start = task_id - self.first
        stop = start + len(values)
        futures = self.owners[start:stop]
        self.owners[start:stop] = [None] * len(values)
        self.left -= settle(lock, futures, values, plain=plain)

    def fail(self, error: FlameError, lock: threading.Lock) -> None:
        """None of the tasks will get a result."""
        self.settle(self.first, [error] * len(self.owners), lock, plain=False)

    def unresolved(self) -> Iterator[tuple[int, int]]:
        """Ranges of task ids without a result."""
        return _ranges(self.first, [owner is not None for owner in self.owners])

    def unwanted(self) -> Iterator[tuple[int, int]]:
        """Ranges of task ids whose cancellation was asked for and that have no result."""
        for first, last in unwanted(self.owners, len(self.owners)):
            yield self.first + first, self.first + last


class BulkChunk:
    """Tasks whose results go to one consumer. Invariant: left == number of zeros in done."""

    __slots__ = ("base", "done", "first", "gather", "last", "left")

    def __init__(self, first: int, count: int, gather: Gather, base: int) -> None:
        self.first = first
        self.last = first + count - 1
        self.gather = gather
        self.base = base  # position of the first task
        self.done = bytearray(count)
        self.left = count

    def settle(self, task_id: int, values: Sequence[Settled], lock: threading.Lock, *, plain: bool) -> None:
        """As FutureChunk.settle."""
        del lock, plain
        start = task_id - self.first
        stop = start + len(values)
        if self.done.find(1, start, stop) < 0:
            self.done[start:stop] = b"\x01" * len(values)
            self.left -= len(values)
            self.gather.put(self.base + start, values)
            return
        for index, value in enumerate(values, start):
            if not self.done[index]:
                self.done[index] = 1
                self.left -= 1
                self.gather.put(self.base + index, (value,))

    def fail(self, error: FlameError, lock: threading.Lock) -> None:
        """As FutureChunk.fail."""
        del lock
        self.left = 0
        self.done = bytearray(b"\x01") * len(self.done)
        self.gather.fail(error)

    def unresolved(self) -> Iterator[tuple[int, int]]:
        """Ranges of task ids without a result."""
        return _ranges(self.first, [not done for done in self.done])

    def unwanted(self) -> Iterator[tuple[int, int]]:
        """As FutureChunk.unwanted."""
        return self.unresolved() if self.gather.closed else iter(())


Chunk = FutureChunk | BulkChunk


class Chunks:
    """All chunks of one stream, by task id. Invariant: they ascend, and none of them is without unfinished tasks."""

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock
        self._chunks: list[Chunk] = []
        self._firsts: list[int] = []

    def __bool__(self) -> bool:
        return bool(self._chunks)

    def __iter__(self) -> Iterator[Chunk]:
        return iter(self._chunks)

    def add(self, chunk: Chunk) -> None:
        """Tasks were accepted."""
        place = bisect_right(self._firsts, chunk.first)
        self._firsts.insert(place, chunk.first)
        self._chunks.insert(place, chunk)

    def of(self, task_id: int) -> Chunk | None:
        """The chunk that the task is in."""
        place = bisect_right(self._firsts, task_id) - 1
        if place < 0 or task_id > self._chunks[place].last:
            return None
        return self._chunks[place]

    def settle(self, ids: Sequence[int], values: Sequence[Settled], *, plain: bool) -> None:
        """Results of these tasks, in any order; those that nobody waits for are dropped."""
        first, count = ids[0], len(ids)
        if ids[-1] - first == count - 1 and list(ids) == list(range(first, first + count)):
            self._settle_run(first, values, plain=plain)
            return
        start = 0
        for index in range(1, count + 1):
            if index == count or ids[index] != ids[index - 1] + 1:
                self._settle_run(ids[start], values[start:index], plain=plain)
                start = index

    def _settle_run(self, first: int, values: Sequence[Settled], *, plain: bool) -> None:
        """Results of neighbouring tasks, which may lie in several chunks or in none."""
        last = first + len(values) - 1
        task_id = first
        while task_id <= last:
            place = bisect_right(self._firsts, task_id) - 1
            chunk = self._chunks[place] if place >= 0 else None
            if chunk is None or task_id > chunk.last:
                if place + 1 >= len(self._firsts):
                    return
                task_id = max(task_id + 1, self._firsts[place + 1])
                continue
            stop = min(last, chunk.last)
            whole = task_id == first and stop == last
            part = values if whole else values[task_id - first : stop - first + 1]
            chunk.settle(task_id, part, self._lock, plain=plain)
            if not chunk.left:
                place = self._firsts.index(chunk.first)  # callbacks may have changed the list
                del self._chunks[place], self._firsts[place]
            task_id = stop + 1

    def fail(self, error: FlameError) -> None:
        """No further results will come."""
        chunks, self._chunks, self._firsts = self._chunks, [], []
        for chunk in chunks:
            chunk.fail(error, self._lock)


def unwanted(owner: Owner, count: int) -> Iterator[tuple[int, int]]:
    """Ranges of positions, among the `count` tasks of an owner, whose results nobody wants."""
    if isinstance(owner, list):
        flags = [future is not None and future._cancel_wanted for future in owner]  # pyright: ignore[reportPrivateUsage]
        return _ranges(0, flags)
    return iter(((0, count - 1),)) if owner[0].closed else iter(())


def _ranges(first: int, flags: Sequence[bool]) -> Iterator[tuple[int, int]]:
    """The runs of true flags, as (first, last) counted from `first`."""
    start = -1
    for index, flag in enumerate(flags):
        if flag and start < 0:
            start = index
        elif not flag and start >= 0:
            yield first + start, first + index - 1
            start = -1
    if start >= 0:
        yield first + start, first + len(flags) - 1

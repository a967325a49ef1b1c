"""Free extents, shared memory, and who leaves it for others."""

from __future__ import annotations

import itertools
import os
import random
from pathlib import Path

import pytest

from flame.cache.arena import Arena, Free
from flame.cache.blobs import Blob, Pin
from flame.cache.disk import Description, StoredFile
from flame.cache.eviction import Memory

FILE = StoredFile(Path("file"), Description("a/b/c", 1, 1, False, False, ""), 0, 0, 0)
PAGE = 4096


def test_extents_are_taken_from_the_low_end_and_merged() -> None:
    free = Free(640)
    a, b, c = free.take(60), free.take(64), free.take(65)
    assert (a, b, c) == (0, 64, 128)
    free.give(64, 64)
    assert free.take(128) == 256
    assert free.take(64) == 64
    free.give(0, 60)
    free.give(64, 64)
    free.give(128, 65)
    assert free.extents() == [(0, 256), (384, 256)]
    free.give(256, 128)
    assert free.extents() == [(0, 640)]
    assert free.free == 640


def test_what_does_not_fit_is_not_taken() -> None:
    free = Free(128)
    assert free.take(129) is None
    assert free.take(128) == 0
    assert free.take(0) is None
    assert Free(0).take(1) is None


@pytest.mark.parametrize("seed", range(5))
def test_extents_never_overlap(seed: int) -> None:
    chance = random.Random(seed)
    free = Free(64 * 500)
    taken: dict[int, int] = {}
    for _ in range(2000):
        if taken and chance.random() < 0.5:
            offset = chance.choice(list(taken))
            free.give(offset, taken.pop(offset))
        else:
            size = chance.randrange(1, 2000)
            offset = free.take(size)
            if offset is not None:
                taken[offset] = size
        spans = sorted((offset, offset + size) for offset, size in taken.items())
        assert all(first[1] <= second[0] for first, second in itertools.pairwise(spans))
    for offset, size in taken.items():
        free.give(offset, size)
    assert free.extents() == [(0, 64 * 500)]


def test_an_arena_gives_pages_back_and_reads_zero_then() -> None:
    arena = Arena(16 * PAGE)
    offset = arena.take(3 * PAGE)
    assert offset == 0
    arena.view(offset, 3 * PAGE)[:] = b"x" * (3 * PAGE)
    arena.give(offset, 3 * PAGE)
    assert arena.trim() == 3 * PAGE
    assert arena.touched == 0
    assert bytes(arena.view(0, 3 * PAGE)) == bytes(3 * PAGE)


def stored(memory: Memory, size: int, file: StoredFile | None = FILE, *, copy: bool = False) -> Blob:
    offset = memory.take(size)
    assert offset is not None
    blob = Blob(size, 0, offset, file, copy=copy)
    memory.hold(blob)
    return blob


def test_the_least_recently_used_leave_and_only_as_many_as_needed() -> None:
    memory = Memory(Arena(4 * PAGE))
    first, second, third = (stored(memory, PAGE) for _ in range(3))
    memory.touch(first)
    stored(memory, 2 * PAGE)
    assert [blob.offset is None for blob in (first, second, third)] == [False, True, True]
    assert not second.dropped


def test_the_last_payload_there_is_never_leaves() -> None:
    memory = Memory(Arena(2 * PAGE))
    only, copy = stored(memory, PAGE, None), stored(memory, PAGE, None, copy=True)
    assert memory.take(PAGE) is not None
    assert (only.dropped, copy.dropped) == (False, True)
    assert memory.take(PAGE) is None
    assert "cache.eviction.max_memory" in memory.exhausted(PAGE).remedy
    assert "larger than" in memory.exhausted(3 * PAGE).message


def test_what_is_read_does_not_leave() -> None:
    memory = Memory(Arena(2 * PAGE))
    blob = stored(memory, PAGE)
    blob.pins += 1
    pin = Pin(blob, memory.ended)
    assert memory.leased == PAGE
    assert memory.take(2 * PAGE) is None
    memory.drop(blob)
    assert blob.offset is not None
    del pin
    assert memory.take(2 * PAGE) == 0
    assert blob.offset is None


def test_without_eviction_nothing_leaves() -> None:
    memory = Memory(Arena(2 * PAGE), evict=False)
    stored(memory, PAGE)
    assert memory.take(2 * PAGE) is None


def test_a_number_of_payloads() -> None:
    memory = Memory(Arena(16 * PAGE), max_objects=2)
    blobs = [stored(memory, PAGE) for _ in range(4)]
    assert [blob.offset is not None for blob in blobs] == [False, False, True, True]
    assert memory.used == 2 * PAGE


def test_pages_that_were_touched_ahead_go_back_too() -> None:
    arena = Arena(16 << 20)
    offset = arena.take(4 << 20)
    assert offset is not None
    arena.view(offset, 4 << 20)[:] = bytes(4 << 20)
    assert arena._toucher is not None
    arena._toucher.join()
    assert os.fstat(arena.fd).st_blocks * 512 > 4 << 20
    arena.give(offset, 4 << 20)
    arena.trim()
    assert os.fstat(arena.fd).st_blocks == 0

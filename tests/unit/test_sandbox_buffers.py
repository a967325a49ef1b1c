"""What a command printed: kept, dropped, or waited for."""

from __future__ import annotations

import asyncio

import pytest

from flame.sandbox.inside import buffers
from flame.sandbox.inside.buffers import SIZE, Buffer


def nothing() -> None:
    """Nobody waits."""


async def test_without_a_reader_the_oldest_go_and_are_counted() -> None:
    buffer = Buffer(nothing)
    buffer.add(b"a" * SIZE)
    buffer.add(b"b" * 10)
    assert buffer.wants_more
    data, place, lost = buffer.take(0, 2 * SIZE)
    assert (len(data), place, lost) == (SIZE, SIZE + 10, 10)
    assert data.endswith(b"b" * 10)


async def test_while_somebody_reads_nothing_is_dropped_and_the_command_waits() -> None:
    buffer = Buffer(nothing)
    with buffer.followed(0):
        buffer.add(b"a" * SIZE)
        assert not buffer.wants_more
        buffer.add(b"b")  # was under way
        data, place, lost = buffer.take(0, SIZE + 1)
    assert (len(data), place, lost) == (SIZE + 1, SIZE + 1, 0)
    with buffer.followed(place):
        assert buffer.wants_more


async def test_the_slowest_of_several_readers_counts() -> None:
    buffer = Buffer(nothing)
    with buffer.followed(0), buffer.followed(SIZE):
        buffer.add(b"a" * SIZE)
        assert not buffer.wants_more
    assert buffer.take(0, 1) == (b"a", 1, 0)


async def test_a_reader_who_does_not_come_back_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "_PATIENCE_S", 0.0)
    freed = asyncio.Event()
    buffer = Buffer(freed.set)
    with buffer.followed(0):
        buffer.add(b"a" * SIZE)
    assert not buffer.wants_more
    await freed.wait()
    assert buffer.wants_more


async def test_places_beyond_the_end_and_before_the_start_are_taken_for_them() -> None:
    buffer = Buffer(nothing)
    buffer.add(b"abc")
    assert buffer.take(99, 10) == (b"", 3, 0)
    assert buffer.take(1, 1) == (b"b", 2, 0)

"""The writer groups what waits, keeps order, and never gives up on a record while it runs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from flame.engine.effects import Record
from flame.journal import JournalError, JournalWriter, MemoryJournal, SqliteJournal
from flame.testing.journal import record


class GatedJournal:
    """Keeps records in memory; a test holds its writes up with `gate` and makes them fail with `trouble`."""

    durable = True

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.trouble: Exception | None = None
        self.attempts: list[list[int]] = []
        self.written: list[int] = []
        self.bodies: dict[int, bytes] = {}
        self.purged: list[tuple[str, int]] = []
        self.closed = False

    def open(self) -> None: ...

    def replay(self) -> Iterator[Record]:
        return iter(())

    def append(self, records: Sequence[Record]) -> None:
        self.attempts.append([r.seq for r in records])
        self.entered.set()
        self.gate.wait()
        if self.trouble is not None:
            raise self.trouble
        self.written += [r.seq for r in records]
        self.bodies.update({r.seq: r.body for r in records})

    def load(self, seqs: Sequence[int]) -> dict[int, bytes]:
        return {seq: self.bodies[seq] for seq in seqs if seq in self.bodies}

    def purge(self, session: str, upto: int) -> None:
        self.purged.append((session, upto))

    def maintain(self) -> bool:
        return False

    def close(self) -> None:
        self.closed = True


class Harness:
    """A running writer over a gated journal, and what it called back."""

    def __init__(self) -> None:
        self.journal = GatedJournal()
        self.troubles: list[JournalError | None] = []
        self.troubled = asyncio.Event()
        self.recovered = asyncio.Event()
        self.writer = JournalWriter(self.journal, asyncio.get_running_loop(), self.on_failure)
        self.done: list[int] = []
        self.changed = asyncio.Condition()
        self.writer.start()

    def on_failure(self, error: JournalError | None) -> None:
        self.troubles.append(error)
        (self.troubled if error else self.recovered).set()

    def submit(self, *seqs: int, at_once: bool = False) -> asyncio.Event:
        event = asyncio.Event()

        def durable() -> None:
            self.done.extend(seqs)
            event.set()

        self.writer.submit([record(seq) for seq in seqs], durable, at_once=at_once)
        return event

    async def load(self, *seqs: int) -> dict[int, bytes]:
        loaded: asyncio.Future[dict[int, bytes]] = asyncio.get_running_loop().create_future()
        self.writer.load(seqs, lambda bodies, error: loaded.set_result(bodies))
        return await loaded

    async def close(self) -> bool:
        return await asyncio.to_thread(self.writer.close, 0.2)


async def test_what_waits_becomes_one_transaction() -> None:
    harness = Harness()
    harness.submit(1)
    await asyncio.to_thread(harness.journal.entered.wait)
    harness.submit(2, 3)
    last = harness.submit(4)
    assert harness.writer.backlog == 4 * len(b"metabody")
    harness.journal.gate.set()
    await last.wait()
    assert harness.journal.attempts == [[1], [2, 3, 4]]
    assert harness.done == [1, 2, 3, 4]
    assert harness.writer.backlog == 0
    assert await harness.close()
    assert harness.journal.closed


async def test_a_lonely_small_group_is_written_at_once() -> None:
    harness = Harness()
    harness.journal.gate.set()
    harness.submit(1, at_once=True)
    assert harness.done == [1]
    assert harness.writer.backlog == 0
    assert await harness.close()


async def test_a_group_is_written_behind_those_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    harness = Harness()
    harness.submit(1)
    await asyncio.to_thread(harness.journal.entered.wait)
    last = harness.submit(2, at_once=True)
    assert harness.done == []
    harness.journal.gate.set()
    await last.wait()
    assert harness.done == [1, 2]
    assert await harness.close()


async def test_a_large_group_is_left_to_the_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    harness = Harness()
    harness.journal.gate.set()
    monkeypatch.setattr("flame.journal.writer._SMALL_BYTES", 1)
    large = harness.submit(1, at_once=True)
    assert harness.done == []
    await large.wait()
    assert await harness.close()


async def test_a_group_after_a_slow_one_is_left_to_the_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    harness = Harness()
    harness.journal.gate.set()
    monkeypatch.setattr("flame.journal.writer._QUICK_S", 0)
    harness.submit(1, at_once=True)
    after_a_slow_one = harness.submit(2, at_once=True)
    assert harness.done == [1]
    await after_a_slow_one.wait()
    assert harness.journal.attempts == [[1], [2]]
    assert await harness.close()


async def test_trouble_at_once_becomes_the_threads_trouble() -> None:
    harness = Harness()
    harness.journal.gate.set()
    harness.journal.trouble = JournalError("no")
    done = harness.submit(1, at_once=True)
    await harness.troubled.wait()
    harness.journal.trouble = None
    await done.wait()
    assert harness.journal.written == [1]
    assert await harness.close()


async def test_a_failed_write_is_repeated_until_it_succeeds() -> None:
    harness = Harness()
    harness.journal.gate.set()
    harness.journal.trouble = JournalError("the disk is full")
    first = harness.submit(1, 2)
    await harness.troubled.wait()
    second = harness.submit(3)
    assert harness.done == []
    harness.journal.trouble = None
    await first.wait()
    await second.wait()
    assert harness.troubles == [harness.troubles[0], None]
    assert isinstance(harness.troubles[0], JournalError)
    assert harness.journal.written == [1, 2, 3]
    assert harness.journal.attempts[0] == [1, 2] == harness.journal.attempts[-2]
    assert harness.done == [1, 2, 3]
    assert await harness.close()


async def test_bodies_can_be_read_during_trouble() -> None:
    harness = Harness()
    harness.journal.gate.set()
    await harness.submit(1).wait()
    harness.journal.trouble = JournalError("no")
    harness.submit(2)
    await harness.troubled.wait()
    assert await harness.load(1, 2) == {1: b"body"}
    assert not await harness.close()


async def test_a_fault_of_the_store_is_a_failed_write() -> None:
    harness = Harness()
    harness.journal.gate.set()
    harness.journal.trouble = ZeroDivisionError("a bug")
    done = harness.submit(1)
    await harness.troubled.wait()
    assert "ZeroDivisionError" in str(harness.troubles[0])
    harness.journal.trouble = None
    await done.wait()
    assert await harness.close()


async def test_closing_gives_up_on_records_that_can_not_be_written() -> None:
    harness = Harness()
    harness.journal.gate.set()
    harness.journal.trouble = JournalError("no")
    harness.submit(1)
    await harness.troubled.wait()
    assert not await harness.close()
    assert harness.done == []
    assert harness.journal.closed


async def test_closing_writes_what_waits() -> None:
    harness = Harness()
    harness.journal.gate.set()
    for seq in range(1, 50):
        harness.submit(seq)
    harness.writer.purge("s", 3)
    assert await harness.close()
    await asyncio.sleep(0)
    assert harness.done == list(range(1, 50))
    assert harness.journal.purged == [("s", 3)]


async def test_a_journal_in_memory_is_written_at_once() -> None:
    writer = JournalWriter(MemoryJournal(), asyncio.get_running_loop(), lambda error: None)
    writer.start()
    done: list[str] = []
    writer.submit([record(1)], lambda: done.append("written"))
    writer.load([1, 2], lambda bodies, error: done.append(str(bodies)))
    assert done == ["written", "{1: b'body'}"]
    assert writer.close(1)


@pytest.mark.parametrize("rows", [1, 2, 7, 33, 300])
async def test_groups_of_any_size_reach_sqlite(tmp_path: Path, rows: int) -> None:
    journal = SqliteJournal(tmp_path / "flame.db")
    journal.open()
    writer = JournalWriter(journal, asyncio.get_running_loop(), lambda error: None)
    done = asyncio.Event()
    writer.start()
    writer.submit([record(seq, body=b"%d" % seq) for seq in range(1, rows + 1)], done.set)
    await done.wait()
    loaded: asyncio.Future[dict[int, bytes]] = asyncio.get_running_loop().create_future()
    writer.load(range(1, rows + 1), lambda bodies, error: loaded.set_result(bodies))
    assert await loaded == {seq: b"%d" % seq for seq in range(1, rows + 1)}
    assert await asyncio.to_thread(writer.close, 10)

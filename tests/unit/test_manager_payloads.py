"""Bodies are in memory while somebody needs them, for a while longer, and in the journal after that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from flame.engine.effects import Record, RecordKind
from flame.journal import Journal, JournalError, JournalWriter, MemoryJournal, SqliteJournal
from flame.manager import payloads as payloads_module
from flame.manager.payloads import Payloads
from flame.manager.recent import Recent
from flame.proto import link_pb2


@pytest.fixture(autouse=True)
def little_room_for_what_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payloads_module, "RECENT_BYTES", 10)


class Store:
    """Payloads over a journal."""

    def __init__(self, journal: Journal, held_bytes: int) -> None:
        journal.open()
        self.writer = JournalWriter(journal, asyncio.get_running_loop(), lambda error: None)
        self.payloads = Payloads(self.writer, durable=journal.durable, held_bytes=held_bytes)
        self.writer.start()

    async def add(self, *records: Record) -> None:
        """New records, as a turn brings them, until what waited for them was said."""
        self.payloads.keep(records)
        durable = asyncio.Event()
        self.writer.submit(records, durable.set)
        await durable.wait()
        self.payloads.settle(records)


@pytest.fixture(params=["sqlite", "memory"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    journal = SqliteJournal(tmp_path / "flame.db") if request.param == "sqlite" else MemoryJournal()
    store = Store(journal, held_bytes=100)
    yield store
    assert await asyncio.to_thread(store.writer.close, 10)


def submitted(seq: int, body: bytes) -> Record:
    return Record(seq, RecordKind.SUBMITTED, "s", b"", body)


def finished(seq: int, body: bytes) -> Record:
    return Record(seq, RecordKind.FINISHED, "s", b"", body)


async def test_a_submission_is_held_until_it_is_released(store: Store) -> None:
    await store.add(submitted(1, b"1" * 20))
    assert store.payloads.get(1) == b"1" * 20
    assert store.payloads.held_size == 20
    store.payloads.release(1)
    assert store.payloads.held_size == 0
    assert store.payloads.get(1) == b"1" * 20  # recent
    await store.add(finished(2, b"2" * 20))
    assert store.payloads.get(1) is None
    assert await store.payloads.fetch([1, 2]) == {1: b"1" * 20, 2: b"2" * 20}


async def test_results_are_held_until_they_were_said(store: Store) -> None:
    record = finished(1, b"x" * 50)
    store.payloads.keep([record])
    assert store.payloads.held_size == 50
    store.payloads.settle([record])
    assert store.payloads.held_size == 0


async def test_what_was_purged_is_missing(store: Store) -> None:
    await store.add(submitted(1, b"x"))
    assert await store.payloads.fetch([1, 2]) == {1: b"x"}


async def test_a_submission_over_the_bound_comes_back_from_a_durable_journal(tmp_path: Path) -> None:
    store = Store(SqliteJournal(tmp_path / "flame.db"), held_bytes=100)
    await store.add(submitted(1, b"a" * 90))
    await store.add(submitted(2, b"b" * 90))
    await store.add(submitted(3, b"c" * 90))
    assert store.payloads.held_size == 90
    assert await store.payloads.fetch([1, 2, 3]) == {1: b"a" * 90, 2: b"b" * 90, 3: b"c" * 90}
    assert await asyncio.to_thread(store.writer.close, 10)


async def test_without_a_durable_journal_nothing_needed_is_given_up() -> None:
    store = Store(MemoryJournal(capacity=10), held_bytes=100)
    for seq in range(1, 9):
        await store.add(submitted(seq, b"%d" % seq * 90))
    assert store.payloads.held_size == 720
    await store.add(finished(9, b"undelivered"))
    store.payloads.hold(9)
    await store.add(finished(10, b"later results"), finished(11, b"and more"))
    assert store.payloads.get(9) == b"undelivered"
    store.payloads.release(9)
    assert store.payloads.held_size == 720


async def test_several_holders_release_one_after_the_other(store: Store) -> None:
    record = finished(1, b"x" * 50)
    store.payloads.keep([record])
    store.payloads.hold(1)
    store.payloads.hold(1)
    store.payloads.settle([record])
    store.payloads.release(1)
    assert store.payloads.held_size == 50
    store.payloads.release(1)
    assert store.payloads.held_size == 0
    store.payloads.release(1)
    assert store.payloads.held_size == 0


async def test_damage_is_an_error_of_those_who_ask(tmp_path: Path) -> None:
    journal = SqliteJournal(tmp_path / "flame.db")
    store = Store(journal, held_bytes=0)
    await store.add(submitted(1, b"precious"), submitted(2, b"x" * 20))

    def damaged(seqs: object) -> dict[int, bytes]:
        raise JournalError("damaged at record 1")

    journal.load = damaged  # type: ignore[method-assign]
    with pytest.raises(JournalError, match="damaged"):
        await store.payloads.fetch([1])
    assert await asyncio.to_thread(store.writer.close, 10)


async def test_messages_are_parsed_once(store: Store) -> None:
    body = link_pb2.Submit(first_seq=1, inputs=[b"a"]).SerializeToString()
    await store.add(submitted(1, body), finished(2, link_pb2.Results(task_ids=[1], outputs=[b"o"]).SerializeToString()))
    first = store.payloads.parsed_submit(1)
    assert first is not None
    assert first.inputs == [b"a"]
    assert store.payloads.parsed_submit(1) is first
    assert store.payloads.parsed_submit(7) is None
    assert store.payloads.parsed_submit(7, body) == first
    results = store.payloads.parsed_results(2)
    assert results is not None
    assert results.outputs == [b"o"]
    assert store.payloads.parsed_results(8) is None


def test_recent_forgets_what_was_not_used() -> None:
    recent: Recent[str] = Recent(10)
    recent.put(1, "one", 4)
    recent.put(2, "two", 4)
    assert recent.get(1) == "one"
    recent.put(3, "three", 4)
    assert (recent.get(1), recent.get(2), recent.get(3)) == ("one", None, "three")
    recent.put(4, "large", 100)
    assert (recent.get(1), recent.get(3), recent.get(4)) == (None, None, "large")
    recent.put(4, "small", 1)
    recent.put(5, "five", 9)
    assert (recent.get(4), recent.get(5)) == ("small", "five")
    recent.drop(5)
    recent.drop(5)
    assert recent.get(5) is None

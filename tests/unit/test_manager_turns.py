"""The turn carries out what the engine asks for: now at once, after only when it is durable, all in order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from flame.engine.effects import Accepted, Effect, Record, RecordKind, Reply, RetractTasks, Turn
from flame.engine.events import Event, JournalFailed, Submitted, Tick
from flame.journal import JournalError
from flame.manager import turns as turns_module
from flame.manager.turns import Turns
from flame.model.errors import NotFoundError, ReadOnlyError

NOW = RetractTasks("n", 1)


class Said(Effect):
    """Something that is said after its turn's records are durable."""

    word: str


class ScriptedEngine:
    """Answers each turn with what the test prepared."""

    def __init__(self) -> None:
        self.seq = 0
        self.turns: list[Turn] = []
        self.seen: list[list[Event]] = []
        self.asked = asyncio.Event()

    def turn(self, now: int, events: Sequence[Event]) -> Turn:
        self.seen.append(list(events))
        self.asked.set()
        turn = self.turns.pop(0) if self.turns else Turn([], [], [])
        self.seq = max([self.seq, *(record.seq for record in turn.records)])
        return turn


class SlowJournal:
    """Keeps submissions until the test lets them be durable."""

    def __init__(self) -> None:
        self.backlog = 0
        self.waiting: list[tuple[list[int], Callable[[], None], bool]] = []
        self.submitted = asyncio.Event()

    def submit(self, records: Sequence[Record], done: Callable[[], None], *, at_once: bool = False) -> None:
        self.waiting.append(([record.seq for record in records], done, at_once))
        self.submitted.set()

    def finish(self) -> list[int]:
        seqs, done, _ = self.waiting.pop(0)
        done()
        return seqs


class NoPayloads:
    def keep(self, records: Sequence[Record]) -> None: ...

    def settle(self, records: Sequence[Record]) -> None: ...


class Bench:
    """Turns over a scripted engine; `told` is everything that was carried out."""

    def __init__(self) -> None:
        self.engine = ScriptedEngine()
        self.journal = SlowJournal()
        self.told: list[Any] = []
        self.faults: list[BaseException] = []
        parts: Any = (self.engine, self.journal, NoPayloads())
        self.turns = Turns(*parts, self.faults.append, clock=lambda: 1000)
        self.turns.handle(RetractTasks, lambda effect: self.told.append("now"))
        self.turns.handle(Said, lambda effect: self.told.append(effect.word))

    async def turn(
        self, *after: Effect, now: Sequence[Effect] = (), records: Sequence[Record] = (), **more: int
    ) -> None:
        self.engine.turns.append(Turn(list(records), list(now), list(after), **more))
        self.turns.post(Tick())
        self.turns.run_now()


def a_record(seq: int, kind: RecordKind = RecordKind.FINISHED) -> Record:
    return Record(seq, kind, "s", b"meta")


@pytest.fixture
async def bench() -> Bench:
    return Bench()


async def test_events_of_one_iteration_are_one_turn(bench: Bench) -> None:
    for _ in range(3):
        bench.turns.post(Tick())
    bench.turns.run_now()
    assert [len(events) for events in bench.engine.seen] == [3]


async def test_what_can_wait_makes_no_turn_of_its_own(bench: Bench) -> None:
    bench.turns.post_later(Tick())
    await asyncio.sleep(0)
    assert bench.engine.seen == []
    bench.turns.post(Tick())
    await asyncio.sleep(0)
    assert [len(events) for events in bench.engine.seen] == [2]


async def test_now_is_at_once_and_after_waits_for_the_records(bench: Bench) -> None:
    await bench.turn(Said("after"), now=[NOW], records=[a_record(1)])
    assert bench.told == ["now"]
    assert not bench.turns.settled
    assert bench.journal.finish() == [1]
    assert bench.told == ["now", "after"]
    assert bench.turns.settled
    assert bench.turns.durable_seq == 1


async def test_without_records_after_waits_for_earlier_turns_only(bench: Bench) -> None:
    await bench.turn(Said("free"))
    await bench.turn(Said("first"), records=[a_record(1)])
    await bench.turn(Said("second"))
    await bench.turn(Said("third"), records=[a_record(2)])
    await bench.turn(Said("fourth"), now=[NOW])
    assert bench.told == ["free", "now"]
    bench.journal.finish()
    assert bench.told == ["free", "now", "first", "second"]
    bench.journal.finish()
    assert bench.told == ["free", "now", "first", "second", "third", "fourth"]


async def test_a_lonely_submission_shares_the_commit_of_its_result(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns_module, "PATIENCE_S", 600)
    await bench.turn(Said("accepted"), now=[NOW], records=[a_record(1, RecordKind.SUBMITTED)])
    assert bench.journal.waiting == []
    await bench.turn(Said("result"), records=[a_record(2)])
    assert bench.journal.waiting[0][2]  # lonely: at once
    assert bench.journal.finish() == [1, 2]
    assert bench.told == ["now", "accepted", "result"]


async def test_a_lonely_submission_does_not_wait_long(bench: Bench) -> None:
    await bench.turn(Said("accepted"), now=[NOW], records=[a_record(1, RecordKind.SUBMITTED)])
    await bench.journal.submitted.wait()
    assert bench.journal.finish() == [1]


async def test_a_submission_that_goes_nowhere_yet_is_written_at_once(bench: Bench) -> None:
    await bench.turn(records=[a_record(1, RecordKind.SUBMITTED)])
    assert bench.journal.finish() == [1]


async def test_who_waits_for_the_acceptance_does_not_wait_for_the_result(bench: Bench) -> None:
    turn = Turn([a_record(1, RecordKind.SUBMITTED)], [NOW], [Accepted(1, 0, 1, 77)])
    bench.engine.turns.append(turn)
    submitting = asyncio.create_task(bench.turns.submit(Submitted(0, "s", "", 0, 1, b"")))
    await asyncio.sleep(0)
    bench.turns.run_now()
    assert bench.journal.finish() == [1]
    assert await submitting == 77


async def test_a_submission_that_waits_is_written_before_the_end(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns_module, "PATIENCE_S", 600)
    await bench.turn(now=[NOW], records=[a_record(1, RecordKind.SUBMITTED)])
    bench.turns.close()
    assert bench.journal.finish() == [1]


async def test_answers_find_those_who_asked(bench: Bench) -> None:
    bench.engine.turns.append(Turn([], [], [Reply(2, "two"), Reply(1, None, NotFoundError("one")), Reply(9, "lost")]))
    first = asyncio.create_task(bench.turns.ask(lambda ticket: Tick()))
    second = asyncio.create_task(bench.turns.ask(lambda ticket: Tick()))
    assert await second == "two"
    with pytest.raises(NotFoundError, match="one"):
        await first


async def test_durable_waits_for_one_record(bench: Bench) -> None:
    await bench.turns.durable(0)
    await bench.turn(records=[a_record(1)])
    await bench.turn(records=[a_record(2)])
    first, second = (asyncio.create_task(bench.turns.durable(seq)) for seq in (1, 2))
    await asyncio.sleep(0)
    bench.journal.finish()
    await first
    assert not second.done()
    bench.journal.finish()
    await second


async def test_during_trouble_refusals_are_told_and_promises_wait(bench: Bench) -> None:
    await bench.turn(Said("promise"), records=[a_record(1)])
    waiting = asyncio.create_task(bench.turns.durable(1))
    await asyncio.sleep(0)
    bench.turns.journal_trouble(JournalError("the disk is full"))
    with pytest.raises(ReadOnlyError, match="the disk is full"):
        await waiting
    with pytest.raises(ReadOnlyError, match="the disk is full"):
        await bench.turns.durable(1)
    bench.turns.run_now()
    assert isinstance(bench.engine.seen[-1][0], JournalFailed)
    bench.engine.turns.append(Turn([], [], [Said("later"), Reply(1, None, ReadOnlyError("no"))]))
    with pytest.raises(ReadOnlyError, match="no"):
        await bench.turns.ask(lambda ticket: Tick())
    assert bench.told == []
    bench.turns.journal_trouble(None)
    bench.journal.finish()
    assert bench.told == ["promise", "later"]


async def test_one_effect_that_fails_does_not_hide_the_others(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.turns.handle(RetractTasks, lambda effect: 1 / 0)
    await bench.turn(NOW, Said("still said"))
    assert bench.told == ["now", "still said"]
    assert "effect_fault effect=RetractTasks" in caplog.text


async def test_a_fault_of_the_engine_ends_all_turns(bench: Bench) -> None:
    def broken(now: int, events: Sequence[Event]) -> Turn:
        raise ZeroDivisionError

    bench.engine.turn = broken  # type: ignore[method-assign]
    bench.turns.post(Tick())
    await asyncio.sleep(0)
    assert [type(fault) for fault in bench.faults] == [ZeroDivisionError]
    bench.turns.post(Tick())
    await asyncio.sleep(0)
    assert len(bench.faults) == 1


async def test_the_engine_is_woken_when_it_asks_for_it(bench: Bench) -> None:
    await bench.turn(wake_at=1000)
    bench.engine.asked.clear()
    await bench.engine.asked.wait()
    assert isinstance(bench.engine.seen[1][0], Tick)

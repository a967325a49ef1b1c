"""Sessions that are closed when nothing was asked of them for a while, as a pure function."""

from __future__ import annotations

from engine_builder import Bench
from flame.engine import effects as fx
from flame.engine import events as ev
from flame.model.states import EventCode, SessionState

MINUTE = 60_000


def bench_with(idle_timeout_s: int) -> Bench:
    """A session `s` with one bound executor."""
    bench = Bench()
    bench.node(cpu=1)
    bench.session(min_instances=1, idle_timeout_s=idle_timeout_s)
    bench.bound(*bench.engine.sessions["s"].executors)
    return bench


def state(bench: Bench) -> SessionState:
    return bench.engine.sessions["s"].state


def test_a_session_that_is_never_used_is_closed_and_says_why() -> None:
    bench = bench_with(60)
    created = bench.engine.sessions["s"].created
    bench.turn(ev.Tick(), after_ms=created + MINUTE - 1 - bench.now)
    assert state(bench) is SessionState.OPEN
    turn = bench.turn(ev.Tick())
    assert state(bench) is SessionState.CLOSED
    kinds = [record.kind for record in turn.records]
    assert kinds[:1] == [fx.RecordKind.EVENT]
    assert fx.RecordKind.SESSION_CLOSED in kinds
    event = bench.engine.sessions["s"].events[-1]
    assert (event.code, event.message) == (EventCode.IDLE, "nothing was asked of it for 60 s")
    assert [effect.reason for effect in bench.of(fx.StopExecutor)] == [event.message]  # type: ignore[attr-defined]


def test_the_time_begins_anew_with_the_end_of_each_task() -> None:
    bench = bench_with(60)
    channel = next(iter(bench.engine.sessions["s"].executors))
    bench.turn(ev.Tick(), after_ms=MINUTE // 2)
    bench.submit()
    bench.complete(channel, 1)
    ended = bench.now
    bench.turn(ev.Tick(), after_ms=MINUTE - 1)
    assert state(bench) is SessionState.OPEN
    assert bench.last.wake_at <= ended + MINUTE
    bench.turn(ev.Tick())
    assert state(bench) is SessionState.CLOSED


def test_a_session_with_an_unfinished_task_stays_open_however_long_that_takes() -> None:
    bench = bench_with(60)
    bench.submit()
    bench.turn(ev.Tick(), after_ms=100 * MINUTE)
    bench.turn(ev.Tick(), after_ms=MINUTE)
    assert state(bench) is SessionState.OPEN


def test_pending_tasks_count_as_well() -> None:
    bench = Bench()
    bench.session(idle_timeout_s=60)
    bench.submit()
    bench.turn(ev.Tick(), after_ms=2 * MINUTE)
    assert state(bench) is SessionState.OPEN


def test_a_session_without_a_limit_stays_open() -> None:
    bench = bench_with(0)
    bench.turn(ev.Tick(), after_ms=1000 * MINUTE)
    assert state(bench) is SessionState.OPEN


def test_it_survives_a_restart_and_the_time_without_a_session_manager_does_not_count() -> None:
    bench = bench_with(60)
    twin = bench.replayed()
    restarted = bench.now + 100 * MINUTE
    twin.recovered(restarted)
    twin.turn(restarted + MINUTE - 1, [ev.Tick()])
    assert twin.sessions["s"].state is SessionState.OPEN
    twin.turn(restarted + MINUTE, [ev.Tick()])
    assert twin.sessions["s"].state is SessionState.CLOSED


def test_while_the_journal_cant_be_written_it_stays_open() -> None:
    bench = bench_with(60)
    bench.turn(ev.JournalFailed("disk full"))
    bench.turn(ev.Tick(), after_ms=2 * MINUTE)
    assert state(bench) is SessionState.OPEN
    bench.turn(ev.JournalRecovered(), after_ms=10)
    bench.turn(ev.Tick(), after_ms=1000)
    assert state(bench) is SessionState.CLOSED


def test_an_alarm_of_an_earlier_session_of_the_same_id_closes_nothing() -> None:
    bench = bench_with(60)
    bench.turn(ev.CloseSession(9, "s"), ev.DeleteSession(9, "s"))
    bench.session()
    bench.turn(ev.Tick(), after_ms=2 * MINUTE)
    assert state(bench) is SessionState.OPEN

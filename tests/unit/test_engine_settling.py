"""After a restart: who waits for nodes that were there, and for how long."""

from __future__ import annotations

from engine_builder import Bench
from flame.engine import events as ev
from flame.engine import views
from flame.engine.settling import SETTLE_MS
from flame.model.resources import Resources
from flame.model.states import ExecutorState

GIB = 1024**3


def restarted(bench: Bench) -> Bench:
    """The same after a restart of the session manager; its nodes are not back yet."""
    twin = Bench()
    twin.engine = bench.replayed()
    twin.now = bench.now
    twin.log = list(bench.log)
    twin.log.extend(twin.engine.recovered(bench.now).records)
    return twin


def working(*nodes: str) -> tuple[Bench, ev.Held]:
    """A session of one executor at work on the first node; what that node says of it when it comes back."""
    bench = Bench()
    for name in nodes:
        bench.node(name)
    bench.session(max_instances=1)
    bench.submit(tasks=2)
    (channel,) = bench.started()
    bench.bound(channel)
    executor = bench.engine.executors[channel]
    assert executor.node.name == nodes[0]
    size = Resources(1, GIB)
    return bench, ev.Held(executor.id, channel, "s", size, ExecutorState.BOUND, 1, [1], [1])


def test_no_second_executor_starts_beside_one_that_comes_back() -> None:
    bench, held = working("n1", "n2")
    bench = restarted(bench)
    bench.node("n2")
    assert bench.started() == []
    bench.node("n1", held=[held])
    assert bench.started() == []
    assert bench.running() == {held.channel: [1]}


def test_it_says_what_it_waits_for() -> None:
    bench, _ = working("n1", "n2")
    bench = restarted(bench)
    bench.node("n2")
    view = views.explain(bench.engine, "s")
    assert view.reasons[0][:2] == ("restart", "n1")
    assert "executors may come back with n1" in view.summary
    assert "executors may come back with n1" in views.session(bench.engine, "s").pending_reason


def test_a_node_that_stays_away_is_not_waited_for_longer_than_a_moment() -> None:
    bench, _ = working("n1", "n2")
    bench = restarted(bench)
    bench.node("n2")
    bench.turn(ev.Tick(), after_ms=SETTLE_MS - 10)
    assert bench.started() == []
    bench.turn(ev.Tick(), after_ms=20)
    assert len(bench.started()) == 1


def test_when_all_nodes_are_back_sessions_go_on_at_once() -> None:
    bench, _ = working("n1", "n2")
    bench = restarted(bench)
    bench.node("n2")
    bench.node("n1", boot="b2")  # it was started anew and holds nothing
    assert len(bench.started()) == 1


def test_a_session_that_is_opened_after_the_restart_does_not_wait() -> None:
    bench, _ = working("n1", "n2")
    bench = restarted(bench)
    bench.node("n2")
    bench.session("new")
    bench.submit("new")
    assert len(bench.started()) == 1


def test_a_node_that_was_lost_is_not_waited_for_after_the_next_restart() -> None:
    bench, _ = working("n1", "n2")
    bench.turn(ev.NodeLeft("n1"))
    bench.turn(ev.Tick(), after_ms=bench.engine.settings.drain_ms)
    bench = restarted(bench)
    bench.node("n2")
    assert len(bench.started()) == 1


def test_nor_is_one_that_did_not_come_back_after_the_last_one() -> None:
    bench, _ = working("n1", "n2")
    bench = restarted(bench)
    bench.node("n2")
    bench.turn(ev.Tick(), after_ms=bench.engine.settings.drain_ms)
    bench = restarted(bench)
    bench.node("n2")
    assert len(bench.started()) == 1

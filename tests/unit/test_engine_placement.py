"""Executors and nodes: who is started, who leaves, what a lost node means."""

from __future__ import annotations

import pytest

from engine_builder import GIB, Bench
from flame.engine import cluster_views, lifecycles, views
from flame.engine import effects as fx
from flame.engine import events as ev
from flame.engine.validate import over_committed
from flame.engine.wants import WORTH_MS
from flame.model.errors import InternalError
from flame.model.resources import Resources
from flame.model.specs import SessionSpec
from flame.model.states import EventCode, ExecutorState, NodeState, TaskState


def test_many_executors_start_in_one_pass_and_none_too_many() -> None:
    bench = Bench()
    bench.node("n1", cpu=10)
    bench.node("n2", cpu=6)
    bench.session()
    bench.submit(tasks=100)
    assert len(bench.started()) == 16
    assert over_committed(bench.engine) == []


def test_max_and_min_instances() -> None:
    bench = Bench()
    bench.node(cpu=8)
    bench.session("few", max_instances=2)
    bench.submit("few", tasks=50)
    assert len(bench.started()) == 2
    bench.turn(ev.CreateSession(2, "kept", SessionSpec("app", min_instances=3)))
    assert len(bench.started()) == 3


def test_work_that_turns_out_longer_than_before_starts_a_further_executor() -> None:
    bench = Bench()
    bench.node(cpu=4)
    bench.session()
    bench.submit(tasks=1)
    (channel,) = bench.started()
    bench.bound(channel)
    bench.complete(channel, 1, busy_us=10)
    bench.submit(tasks=3)  # all of them are sent ahead to the executor that is there
    assert bench.running() == {channel: [2, 3, 4]}
    bench.turn(ev.Tick(), after_ms=WORTH_MS - 10)
    assert bench.started() == []
    turn = bench.turn(ev.Tick(), after_ms=20)
    assert len(bench.started(turn)) == 2
    bench.bound(*bench.started(turn))
    assert fx.RetractTasks("n1", channel, 1) in bench.of(fx.RetractTasks)


def test_looking_for_slow_tasks_grows_rare_while_all_goes_well() -> None:
    bench = Bench()
    bench.node(cpu=4)
    bench.session()
    bench.submit(tasks=1)
    (channel,) = bench.started()
    bench.bound(channel)
    bench.complete(channel, 1, busy_us=10)
    bench.submit(tasks=100_000)
    looks = 0
    for _ in range(500):
        before = bench.engine.sessions["s"].look_at
        bench.complete(channel, *bench.running()[channel][:10], busy_us=10)
        looks += bench.engine.sessions["s"].look_at != before
    assert bench.now > 500
    assert 1 <= looks <= 5


def test_equal_sessions_grow_evenly_and_higher_priority_first() -> None:
    bench = Bench()
    for name, priority in (("a", 0), ("b", 0), ("high", 1)):
        bench.session(name, priority=priority)
        bench.submit(name, tasks=3 if name == "high" else 50)
    bench.node(cpu=9)
    counts = {name: len(bench.engine.sessions[name].executors) for name in ("a", "b", "high")}
    assert counts == {"a": 3, "b": 3, "high": 3}


def test_short_work_starts_no_further_executor() -> None:
    bench = Bench()
    bench.node(cpu=4)
    bench.session()
    bench.submit(tasks=1)
    (channel,) = bench.started()
    bench.bound(channel)
    bench.complete(channel, 1, busy_us=10)
    bench.submit(tasks=100)
    assert bench.started() == []
    bench.submit(tasks=100_000)
    assert bench.started()


def test_idle_executors_leave_after_delay_release_but_not_below_min_instances() -> None:
    bench = Bench(delay_release=2)
    bench.node(cpu=4)
    bench.session(min_instances=1)
    bench.submit(tasks=3)
    channels = list(bench.running())
    bench.bound(*channels)
    for channel, task_ids in bench.running().items():
        bench.complete(channel, *task_ids)
    turn = bench.turn(ev.Tick(), after_ms=1_000)
    assert turn.now == []
    turn = bench.turn(ev.Tick(), after_ms=2_000)
    assert len([effect for effect in turn.now if isinstance(effect, fx.StopExecutor)]) == len(channels) - 1
    assert sum(executor.coming for executor in bench.engine.executors.values()) == 1


def test_an_idle_executor_makes_room_for_another_session_after_a_moment() -> None:
    bench = Bench()
    bench.node(cpu=1)
    bench.session("a")
    bench.submit("a")
    (channel,) = bench.started()
    bench.bound(channel)
    bench.complete(channel, 1)
    bench.session("b")
    bench.submit("b")
    assert bench.of(fx.StopExecutor) == []  # its client may be about to send the next task
    bench.turn(ev.Tick(), after_ms=50)
    assert bench.of(fx.StopExecutor) == [fx.StopExecutor("n1", channel, 5_000, "another session waits for its place")]
    assert bench.started() == []
    bench.released(channel)
    assert len(bench.started()) == 1


def test_a_session_with_more_than_its_share_gives_back_at_the_next_task() -> None:
    bench = Bench()
    bench.node(cpu=4)
    bench.session("a")
    bench.submit("a", tasks=100)
    bench.bound(*bench.started())
    bench.session("b")
    bench.submit("b", tasks=100)
    draining = [channel for channel, executor in bench.engine.executors.items() if executor.draining]
    assert len(draining) == 2
    for channel in draining:
        turn = bench.complete(channel, *bench.running("a")[channel])
        assert isinstance(turn.now[0], fx.StopExecutor)
        bench.released(channel)
    assert len(bench.engine.sessions["b"].executors) == 2
    bench.turn(ev.Tick(), after_ms=1_000)
    assert len([x for x in bench.engine.sessions["a"].executors.values() if not x.draining]) == 2


def test_gpus_are_given_out_by_index_and_come_back() -> None:
    bench = Bench()
    bench.node(cpu=8, gpu=3)
    bench.session(resreq=Resources(1, GIB, 1))
    bench.submit(tasks=9)
    starts = [effect for effect in bench.last.now if isinstance(effect, fx.StartExecutor)]
    assert sorted(index for start in starts for index in start.gpus) == [0, 1, 2]
    bench.bound(*(start.channel for start in starts))
    bench.released(starts[1].channel, crashed=True)
    (again,) = [effect for effect in bench.last.now if isinstance(effect, fx.StartExecutor)]
    assert again.gpus == starts[1].gpus


def test_bind_failures_are_recorded_backed_off_and_end_in_failed_tasks() -> None:
    bench = Bench()
    bench.node(cpu=1)
    bench.session()
    bench.submit(tasks=2)
    for failure in range(1, 6):
        (channel,) = bench.started()
        bench.released(channel, code=12, message="on_session_enter failed: no model")
        assert bench.started() == []
        if failure < 5:
            bench.turn(ev.Tick(), after_ms=100 * 2**failure)
    view = views.session(bench.engine, "s")
    assert [event.code for event in view.events] == [EventCode.BIND_FAILED] * 5 + [EventCode.RETRY_LIMIT]
    assert "failed to bind session with return_code <12>" in view.events[0].message
    assert view.failed == 2
    finish = views.task(bench.engine, "s", 1).finish
    assert finish is not None
    assert "Session retry limit reached after 5/5 failed attempts" in finish.message
    bench.submit()
    assert views.session(bench.engine, "s").failed == 3
    assert "no model" in views.explain(bench.engine, "s").summary


def test_a_good_bind_forgets_earlier_failures() -> None:
    bench = Bench()
    bench.node(cpu=1)
    bench.session()
    bench.submit(tasks=2)
    bench.released(bench.started()[0], code=11)
    bench.turn(ev.Tick(), after_ms=200)
    (channel,) = bench.started()
    bench.bound(channel)
    assert bench.engine.sessions["s"].bind_failures == 0


def test_a_node_that_is_away_keeps_its_tasks_for_the_grace_time() -> None:
    bench = Bench()
    bench.node()
    bench.session()
    bench.submit(tasks=1)
    (channel,) = bench.started()
    bench.bound(channel)
    bench.turn(ev.NodeLeft("n1", "reset"))
    assert cluster_views.nodes(bench.engine)[0].state is NodeState.UNKNOWN
    bench.turn(ev.Tick(), after_ms=29_000)
    assert views.task(bench.engine, "s", 1).state is TaskState.RUNNING
    bench.turn(ev.Tick(), after_ms=2_000)
    assert views.task(bench.engine, "s", 1).state is TaskState.PENDING
    assert cluster_views.nodes(bench.engine) == []


def test_a_node_that_returns_in_time_loses_only_what_was_on_its_way() -> None:
    bench = Bench()
    bench.node(cpu=1)
    bench.session()
    bench.submit(tasks=30)
    (channel,) = bench.started()
    bench.bound(channel)
    bench.complete(channel, 1, busy_us=1_000)
    held = bench.running()[channel]
    bench.turn(ev.NodeLeft("n1"))
    executor = bench.engine.executors[channel]
    report = ev.Held(executor.id, channel, "s", executor.resreq, ExecutorState.BOUND, 1, held[:4])
    bench.node(cpu=1, held=[report])
    assert bench.running()[channel][:4] == held[:4]
    assert {executor.outstanding.get(task_id) for task_id in held[4:]} <= {2, None}


def test_a_reborn_executor_manager_has_lost_its_executors() -> None:
    bench = Bench()
    bench.node(cpu=1)
    bench.session()
    bench.submit()
    (channel,) = bench.started()
    bench.bound(channel)
    bench.node(cpu=1, boot="b2")
    assert channel not in bench.engine.executors
    assert len(bench.started()) == 1


def test_unknown_executors_of_a_node_are_stopped_and_keep_their_place_until_then() -> None:
    bench = Bench()
    bench.session()
    bench.submit()
    stranger = ev.Held("x9", 99, "gone", Resources(1, GIB, 0), ExecutorState.BOUND, 1, [])
    turn = bench.node(cpu=1, held=[stranger])
    assert turn.now == [fx.StopExecutor("n1", 99, 0, "nobody waits for it any more")]
    bench.released(99)
    assert len(bench.started()) == 1


def test_an_executor_found_again_keeps_its_gpus_and_its_process() -> None:
    bench = Bench()
    bench.session(resreq=Resources(1, GIB, 1))
    bench.submit(tasks=2)
    held = ev.Held("x9", 99, "s", Resources(1, GIB, 1), ExecutorState.BOUND, 1, [1], pid=77, gpus=[0])
    turn = bench.node(cpu=4, gpu=2, held=[held])
    assert [start.gpus for start in turn.now if isinstance(start, fx.StartExecutor)] == [(1,)]
    assert cluster_views.executors(bench.engine)[0].pid == 77


def test_an_executor_whose_place_was_given_away_is_not_taken_up_again() -> None:
    bench = Bench()
    bench.session()
    bench.submit(tasks=2)
    held = [ev.Held(f"x{n}", 90 + n, "s", Resources(1, GIB, 0), ExecutorState.BOUND, 1, []) for n in range(2)]
    turn = bench.node(cpu=1, held=held)
    assert [effect.channel for effect in turn.now if isinstance(effect, fx.StopExecutor)] == [91]


@pytest.mark.parametrize(
    ("resreq", "nodes", "words"),
    [
        (Resources(1, GIB, 2), 1, "needs 2 GPUs; the largest node has 0"),
        (Resources(64, GIB, 0), 1, "needs 64 cpu; the largest node has 2"),
        (Resources(1, GIB, 0), 0, "no node is ready"),
    ],
)
def test_explain_says_why_nothing_starts(resreq: Resources, nodes: int, words: str) -> None:
    bench = Bench()
    for index in range(nodes):
        bench.node(f"n{index}")
    bench.session(resreq=resreq)
    bench.submit()
    assert bench.started() == []
    assert words in views.explain(bench.engine, "s").summary
    assert words in views.session(bench.engine, "s").pending_reason


def test_an_illegal_step_names_state_and_event() -> None:
    with pytest.raises(InternalError, match="ExecutorState IDLE cannot take 'bound'"):
        lifecycles.step(lifecycles.EXECUTOR, ExecutorState.IDLE, "bound")

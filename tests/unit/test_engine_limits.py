"""Deadlines, pauses between attempts, keys and priorities of tasks, as a pure function."""

from __future__ import annotations

import pytest

from engine_builder import Bench
from flame.engine import EngineSettings, views
from flame.engine import effects as fx
from flame.engine import events as ev
from flame.engine.settling import SETTLE_MS
from flame.model.errors import InvalidArgumentError
from flame.model.specs import SessionSpec, TaskOptions
from flame.model.states import ExecutorState, TaskState
from flame.model.task_options import retry_delay_ms


def bench_with(cpu: int = 1, *submissions: tuple[int, TaskOptions], **session: object) -> tuple[Bench, list[int]]:
    """A session `s` with these submissions, and as many bound executors as there are cpus."""
    bench = Bench()
    bench.node(cpu=cpu)
    bench.session(min_instances=cpu, **session)
    channels = list(bench.engine.sessions["s"].executors)
    bench.bound(*channels)
    for count, options in submissions:
        bench.submit(tasks=count, options=options)
    return bench, channels


def state(bench: Bench, task_id: int) -> TaskState:
    return views.task(bench.engine, "s", task_id).state


def failure(bench: Bench, task_id: int) -> str:
    """The text of a task that the engine ended."""
    finish = views.task(bench.engine, "s", task_id).finish
    assert finish is not None
    return finish.message


def held(bench: Bench) -> list[int]:
    """Tasks on executors, ascending."""
    return sorted(task_id for tasks in bench.running().values() for task_id in tasks)


# --- deadlines -------------------------------------------------------------------------------------------------------


def test_a_pending_task_fails_when_its_deadline_is_over_and_says_why_it_never_ran() -> None:
    bench = Bench()
    bench.session()
    turn = bench.submit(tasks=2, options=TaskOptions(deadline_ms=5_000))
    assert turn.wake_at == bench.now + 5_000
    bench.turn(ev.Tick(), after_ms=4_999)
    assert state(bench, 1) is TaskState.PENDING
    turn = bench.turn(ev.Tick(), after_ms=1)
    assert [record.kind for record in turn.records] == [fx.RecordKind.FINISHED]
    assert [type(effect) for effect in turn.after] == [fx.Forget, fx.Deliver]
    assert failure(bench, 2) == "the deadline of 5 s is over: the task waited 5 s and never ran: no node is ready"


def test_a_running_task_is_interrupted_at_its_deadline_and_its_answer_is_dropped() -> None:
    bench, (channel,) = bench_with(1, (1, TaskOptions(deadline_ms=2_000)))
    turn = bench.turn(ev.Tick(), after_ms=2_000)
    assert turn.now == [fx.InterruptTasks("n1", channel, [1], "its deadline is over")]
    assert failure(bench, 1) == "the deadline of 2 s is over: the task waited 0 s, then spent 2 s in 1 attempt"
    turn = bench.fail(channel, 1, TaskState.CANCELLED)
    assert turn.records == []


def test_a_deadline_counts_over_all_attempts_and_names_the_last_failure() -> None:
    options = TaskOptions(deadline_ms=3_000, max_retries=9, retry_delay_ms=10_000)
    bench, (channel,) = bench_with(1, (1, options))
    bench.fail(channel, 1)
    bench.turn(ev.Tick(), after_ms=3_000)
    assert failure(bench, 1).endswith("then spent 3 s in 1 attempt; its last failure: it raised")
    assert bench.engine.sessions["s"].waiting == 0


def test_a_task_in_time_is_left_alone() -> None:
    bench, (channel,) = bench_with(1, (1, TaskOptions(deadline_ms=2_000)))
    bench.complete(channel, 1)
    turn = bench.turn(ev.Tick(), after_ms=10_000)
    assert (turn.records, turn.now, turn.after) == ([], [], [])
    assert state(bench, 1) is TaskState.SUCCEED


def test_many_deadlines_cost_one_alarm_and_no_long_turn() -> None:
    bench = Bench()
    bench.session()
    for _ in range(20):
        bench.submit(tasks=1_000, options=TaskOptions(deadline_ms=60_000))
    alarms = [alarm for alarm in bench.engine.alarms if alarm[1] == "deadline"]
    assert len(alarms) == 1
    bench.turn(ev.Tick(), after_ms=61_000)
    assert bench.engine.sessions["s"].failed == 8_192
    turns = 1
    while bench.engine.sessions["s"].pending:
        assert bench.last.wake_at == bench.now + 1
        bench.turn(ev.Tick())
        turns += 1
    assert turns == 3


def test_deadlines_survive_a_restart() -> None:
    bench = Bench()
    bench.session()
    bench.submit(options=TaskOptions(deadline_ms=5_000))
    due = bench.now + 5_000
    twin = bench.replayed()
    assert twin.recovered(bench.now + 100).wake_at == due
    twin.turn(due, [ev.Tick()])
    view = views.task(twin, "s", 1)
    assert view.state is TaskState.FAILED
    assert view.finish is not None
    assert "the session manager was restarted meanwhile" in view.finish.message


def test_a_node_that_missed_an_interruption_hears_of_it_when_it_is_back() -> None:
    bench, (channel,) = bench_with(1, (1, TaskOptions(deadline_ms=2_000)))
    executor = bench.engine.executors[channel]
    bench.turn(ev.NodeLeft("n1"))
    bench.turn(ev.Tick(), after_ms=2_000)
    still = ev.Held(executor.id, channel, "s", executor.resreq, ExecutorState.BOUND, 1, [1], [1])
    turn = bench.node(cpu=1, held=[still])
    assert turn.now == [fx.InterruptTasks("n1", channel, [1], "nobody waits for it any more")]


# --- pauses between attempts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("delay", "most", "pauses", "last"),
    [
        (0, 0, [0, 0], 0),
        (100, 0, [100, 200, 400], 60_000),
        (100, 300, [100, 200, 300, 300], 300),
        (90_000, 0, [90_000, 90_000], 90_000),
    ],
)
def test_pauses_double_up_to_their_limit(delay: int, most: int, pauses: list[int], last: int) -> None:
    options = TaskOptions(retry_delay_ms=delay, retry_max_delay_ms=most)
    assert [retry_delay_ms(options, failures) for failures in range(1, len(pauses) + 1)] == pauses
    assert retry_delay_ms(options, 1_000_000) == last


def test_a_failed_task_rests_before_it_is_ready_again() -> None:
    bench, (channel,) = bench_with(1, (1, TaskOptions(max_retries=2, retry_delay_ms=1_000)))
    turn = bench.fail(channel, 1)
    session = bench.engine.sessions["s"]
    assert turn.now == []
    assert (session.pending, session.waiting) == (1, 1)
    assert turn.wake_at == bench.now + 1_000
    bench.turn(ev.Tick(), after_ms=999)
    assert bench.running() == {channel: []}
    turn = bench.turn(ev.Tick(), after_ms=1)
    assert turn.now == [fx.Dispatch("n1", channel, [fx.Part(session.chunks[0].seq, 0, 1, 1, 2)])]
    bench.fail(channel, 1)
    bench.turn(ev.Tick(), after_ms=1_999)
    assert bench.running() == {channel: []}
    bench.turn(ev.Tick(), after_ms=1)
    assert bench.running() == {channel: [1]}


def test_no_executor_is_asked_for_while_all_tasks_rest() -> None:
    bench = Bench(delay_release=1)
    bench.node(cpu=1)
    bench.session()
    bench.submit(options=TaskOptions(max_retries=1, retry_delay_ms=30_000))
    (channel,) = bench.started()
    bench.bound(channel)
    bench.fail(channel, 1)
    bench.turn(ev.Tick(), after_ms=1_000)
    assert [type(effect) for effect in bench.last.now] == [fx.StopExecutor]
    bench.released(channel)
    assert bench.started() == []
    turn = bench.turn(ev.Tick(), after_ms=29_000)
    assert len(bench.started(turn)) == 1


def test_a_lost_instance_is_no_failure_and_pauses_nothing() -> None:
    bench, (channel,) = bench_with(1, (1, TaskOptions(retry_delay_ms=30_000)))
    bench.released(channel, crashed=True, message="signal 9")
    assert bench.engine.sessions["s"].waiting == 0
    assert len(bench.started()) == 1


@pytest.mark.parametrize("what", ["cancel", "close"])
def test_a_resting_task_can_be_cancelled(what: str) -> None:
    bench, (channel,) = bench_with(1, (1, TaskOptions(max_retries=1, retry_delay_ms=1_000)))
    bench.fail(channel, 1)
    bench.turn(ev.CancelTasks(6, "s", [(1, 1)]) if what == "cancel" else ev.CloseSession(6, "s"))
    assert state(bench, 1) is TaskState.CANCELLED
    assert bench.engine.sessions["s"].waiting == 0
    bench.turn(ev.Tick(), after_ms=2_000)
    assert state(bench, 1) is TaskState.CANCELLED


def test_after_a_restart_a_resting_task_may_run_at_once() -> None:
    bench, (channel,) = bench_with(1, (1, TaskOptions(max_retries=1, retry_delay_ms=60_000)))
    bench.fail(channel, 1)
    twin = bench.replayed()
    twin.recovered(bench.now)
    assert (twin.sessions["s"].pending, twin.sessions["s"].waiting) == (1, 0)
    assert twin.sessions["s"].failures == {1: 1}


# --- keys --------------------------------------------------------------------------------------------------------


def test_tasks_of_one_key_run_one_at_a_time_in_order_and_others_pass_by() -> None:
    bench, (one, two, _) = bench_with(3, (3, TaskOptions(key="a")), (1, TaskOptions()), (2, TaskOptions(key="b")))
    assert held(bench) == [1, 4, 5]
    session = bench.engine.sessions["s"]
    assert (session.pending, session.waiting) == (3, 3)
    bench.complete(one, 1)
    assert held(bench) == [2, 4, 5]
    bench.complete(two, 4)
    assert held(bench) == [2, 5]
    bench.complete(one, 2)
    assert held(bench) == [3, 5]


def test_a_session_may_allow_more_of_a_key() -> None:
    bench, _ = bench_with(3, (5, TaskOptions(key="a")), max_running_per_key=2)
    assert held(bench) == [1, 2]
    assert bench.engine.sessions["s"].waiting == 3


def test_executors_are_asked_for_as_many_tasks_as_may_run() -> None:
    bench = Bench()
    bench.node(cpu=4)
    bench.session()
    bench.submit(tasks=9, options=TaskOptions(key="a"))
    assert len(bench.started()) == 1


def test_short_tasks_of_a_key_are_not_sent_ahead_beyond_its_places() -> None:
    bench, (channel,) = bench_with(1, (1, TaskOptions()), (50, TaskOptions(key="a")), (3, TaskOptions()))
    bench.complete(channel, 1, busy_us=10)
    assert held(bench) == [2, 52, 53, 54]


def test_a_task_that_rests_keeps_its_place_so_that_its_successors_do_not_overtake_it() -> None:
    options = TaskOptions(key="a", max_retries=1, retry_delay_ms=1_000)
    bench, (channel,) = bench_with(1, (2, options), (1, TaskOptions()))
    bench.fail(channel, 1)
    assert held(bench) == [3]
    bench.complete(channel, 3)
    assert held(bench) == []
    bench.turn(ev.Tick(), after_ms=1_000)
    assert held(bench) == [1]
    bench.complete(channel, 1)
    assert held(bench) == [2]


def test_a_higher_priority_goes_first_within_its_key() -> None:
    bench, (channel,) = bench_with(1, (3, TaskOptions(key="a")), (1, TaskOptions(key="a", priority=1)))
    bench.complete(channel, 1)
    assert held(bench) == [4]
    bench.complete(channel, 4)
    assert held(bench) == [2]


def test_a_cancelled_task_holds_its_place_until_its_executor_has_stopped_it() -> None:
    bench, (one, _) = bench_with(2, (2, TaskOptions(key="a")))
    bench.turn(ev.CancelTasks(6, "s", [(1, 1)]))
    assert state(bench, 1) is TaskState.CANCELLED
    assert held(bench) == []
    bench.fail(one, 1, TaskState.CANCELLED)
    assert held(bench) == [2]


def test_cancelling_the_next_of_a_key_lets_the_one_after_it_through() -> None:
    bench, (channel,) = bench_with(1, (4, TaskOptions(key="a")), (1, TaskOptions()))
    bench.turn(ev.CancelTasks(6, "s", [(2, 3)]))
    bench.complete(channel, 1)
    assert held(bench) == [4]


def test_a_lost_node_gives_places_back() -> None:
    bench, (channel,) = bench_with(1, (2, TaskOptions(key="a")))
    bench.node("n2", cpu=1)
    bench.turn(ev.NodeLeft("n1"))
    bench.turn(ev.Tick(), after_ms=31_000)
    (other,) = bench.started()
    bench.bound(other)
    assert bench.running() == {other: [1]}
    assert channel not in bench.engine.executors


def test_tasks_of_a_key_that_come_back_unstarted_go_again_in_order() -> None:
    bench, (channel,) = bench_with(
        1, (1, TaskOptions()), (1, TaskOptions()), (2, TaskOptions(key="a")), max_running_per_key=2
    )
    bench.complete(channel, 1, busy_us=10)
    assert held(bench) == [2, 3, 4]
    bench.turn(ev.Retracted(channel, [3, 4]))
    assert held(bench) == [2, 3, 4]


def test_a_task_that_kills_its_instances_leaves_its_key_to_the_next() -> None:
    bench, (channel,) = bench_with(1, (2, TaskOptions(key="a")))
    for _ in range(3):
        assert held(bench) == [1]
        bench.released(channel, crashed=True, message="signal 11")
        (channel,) = bench.started()
        bench.bound(channel)
    assert state(bench, 1) is TaskState.FAILED
    assert held(bench) == [2]


def restarted(bench: Bench) -> Bench:
    """The same after a restart of the session manager; its nodes are not back yet."""
    twin = Bench()
    twin.engine = bench.replayed()
    twin.now = bench.now
    twin.log = list(bench.log)
    twin.log.extend(twin.engine.recovered(bench.now).records)
    return twin


def test_after_a_restart_a_key_waits_for_executors_that_may_be_at_it() -> None:
    bench, (channel,) = bench_with(1, (2, TaskOptions(key="a")), (1, TaskOptions()))
    executor = bench.engine.executors[channel]
    bench = restarted(bench)
    bench.turn(ev.NodeJoined("n2", "b", "n2", executor.resreq))
    bench.turn(ev.Tick(), after_ms=SETTLE_MS)
    (other,) = bench.started()
    bench.bound(other)
    assert bench.running() == {other: [3]}
    still = ev.Held(executor.id, channel, "s", executor.resreq, ExecutorState.BOUND, 1, [1], [1])
    bench.node(cpu=1, held=[still])
    assert held(bench) == [1, 3]
    bench.complete(channel, 1)
    assert held(bench) == [2, 3]


def test_after_a_restart_a_new_key_waits_too_since_its_tasks_may_have_been_submitted_before() -> None:
    bench, (channel,) = bench_with(1, (1, TaskOptions()))
    executor = bench.engine.executors[channel]
    bench = restarted(bench)
    still = ev.Held(executor.id, channel, "s", executor.resreq, ExecutorState.BOUND, 1, [1], [1])
    bench.node(cpu=1, held=[still])
    bench.submit(options=TaskOptions(key="new"))
    bench.complete(channel, 1)
    assert held(bench) == []
    bench.turn(ev.Tick(), after_ms=30_000)
    assert held(bench) == [2]


def test_after_a_restart_executors_that_do_not_come_back_count_as_lost() -> None:
    bench, (channel,) = bench_with(1, (2, TaskOptions(key="a")))
    executor = bench.engine.executors[channel]
    bench = restarted(bench)
    bench.turn(ev.NodeJoined("n2", "b", "n2", executor.resreq))
    bench.turn(ev.Tick(), after_ms=SETTLE_MS)
    (other,) = bench.started()
    bench.bound(other)
    assert bench.running() == {other: []}
    assert "have not come back" in views.explain(bench.engine, "s", 1).summary
    bench.turn(ev.Tick(), after_ms=30_000)
    assert bench.running() == {other: [1]}
    bench.complete(other, 1)
    assert bench.running() == {other: [2]}
    # It comes back after all, still at a task whose key has no place any more: stopped, not run twice.
    still = ev.Held(executor.id, channel, "s", executor.resreq, ExecutorState.BOUND, 1, [1], [1])
    turn = bench.node(cpu=1, held=[still])
    assert fx.InterruptTasks("n1", channel, [1], "nobody waits for it any more") in turn.now


def test_many_keys_take_their_turns_and_are_forgotten() -> None:
    bench = Bench()
    bench.node(cpu=1)
    bench.session(min_instances=1)
    (channel,) = bench.engine.sessions["s"].executors
    bench.bound(channel)
    for number in range(300):
        bench.submit(tasks=2, options=TaskOptions(key=f"k{number}"))
    seen: list[int] = []
    while bench.running()[channel]:
        seen.extend(now := bench.running()[channel])
        bench.complete(channel, *now, busy_us=100)
    assert sorted(seen) == list(range(1, 601))
    assert bench.engine.sessions["s"].keyed == {}


# --- priorities --------------------------------------------------------------------------------------------------


def test_a_higher_priority_submitted_later_goes_first_while_executors_are_busy() -> None:
    bench, (one, two) = bench_with(2, (6, TaskOptions()))
    bench.submit(tasks=2, options=TaskOptions(priority=1))
    bench.submit(tasks=1, options=TaskOptions(priority=7))
    bench.complete(one, 1)
    bench.complete(two, 2)
    assert held(bench) == [7, 9]
    bench.complete(one, 9)
    assert held(bench) == [7, 8]
    bench.complete(two, 7)
    assert held(bench) == [3, 8]


def test_work_sent_ahead_is_taken_back_for_a_higher_priority_when_it_makes_no_progress() -> None:
    bench, (channel,) = bench_with(1, (30, TaskOptions()))
    bench.complete(channel, 1, busy_us=1_000)
    assert len(held(bench)) == 11
    turn = bench.submit(options=TaskOptions(priority=1))
    assert turn.now == []
    turn = bench.turn(ev.Tick(), after_ms=5)
    assert turn.now == [fx.RetractTasks("n1", channel, 1)]
    bench.turn(ev.Retracted(channel, bench.running()[channel][1:]))
    assert bench.running()[channel][:3] == [2, 31, 3]


def test_work_sent_ahead_that_makes_progress_is_left_where_it_is() -> None:
    bench, (channel,) = bench_with(1, (60, TaskOptions()))
    bench.complete(channel, 1, busy_us=1_000)
    bench.submit(options=TaskOptions(priority=1))
    bench.complete(channel, 2, busy_us=1_000)
    turn = bench.turn(ev.Tick(), after_ms=4)
    assert turn.now == []


def test_any_number_of_priorities_is_cheap_to_pick_from() -> None:
    bench, (channel,) = bench_with(1, (1, TaskOptions()))
    for priority in range(1, 200):
        bench.submit(options=TaskOptions(priority=priority))
    while bench.running()[channel]:
        bench.complete(channel, *bench.running()[channel])
    assert len(bench.engine.sessions["s"].lanes) <= 2


# --- defaults, refusals, explanations ----------------------------------------------------------------------------


def test_what_a_task_leaves_out_is_its_sessions() -> None:
    defaults = TaskOptions(timeout_ms=700, max_retries=1, key="a", labels={"x": "1"})
    bench, (channel,) = bench_with(1, (2, TaskOptions(max_retries=0, labels={"y": "2"})), task_defaults=defaults)
    (dispatch,) = bench.of(fx.Dispatch)
    assert dispatch.timeout_ms == 700  # type: ignore[attr-defined]
    assert held(bench) == [1]
    bench.fail(channel, 1)
    assert state(bench, 1) is TaskState.FAILED
    twin = bench.replayed().sessions["s"].chunks[0].options
    assert twin == TaskOptions(timeout_ms=700, max_retries=0, key="a", labels={"x": "1", "y": "2"})


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (TaskOptions(deadline_ms=-5), "deadline_ms -5"),
        (TaskOptions(retry_delay_ms=2**40), f"retry_delay_ms {2**40}"),
        (TaskOptions(max_retries=2_000_000), "max_retries 2000000"),
        (TaskOptions(retry_delay_ms=500, retry_max_delay_ms=100), "retry_max_delay 100 ms"),
        (TaskOptions(priority=2**31), f"priority {2**31}"),
        (TaskOptions(key="k" * 600), "key 'kkk"),
    ],
)
def test_values_that_can_not_be_are_refused_with_their_name(options: TaskOptions, text: str) -> None:
    bench = Bench()
    bench.session()
    (answer,) = bench.submit(options=options).after
    assert isinstance(answer, fx.Accepted)
    assert isinstance(answer.error, InvalidArgumentError)
    assert text in answer.error.message
    turn = bench.turn(ev.CreateSession(9, "t", SessionSpec("app", task_defaults=options)))
    (reply,) = turn.after
    assert isinstance(reply, fx.Reply)
    assert isinstance(reply.error, InvalidArgumentError)
    assert text in reply.error.message


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (SessionSpec("app", max_running_per_key=-1), "max_running_per_key -1"),
        (SessionSpec("app", task_defaults=TaskOptions(idempotency_key="x")), "idempotency_key 'x'"),
    ],
)
def test_sessions_that_can_not_be_are_refused(spec: SessionSpec, text: str) -> None:
    (reply,) = Bench().turn(ev.CreateSession(9, "t", spec)).after
    assert isinstance(reply, fx.Reply)
    assert reply.error is not None
    assert text in reply.error.message


def test_a_task_explains_what_it_waits_for() -> None:
    options = TaskOptions(key="a", max_retries=1, retry_delay_ms=60_000, deadline_ms=90_000)
    bench, (channel,) = bench_with(1, (2, options))
    bench.fail(channel, 1)
    first, second = (views.explain(bench.engine, "s", task_id) for task_id in (1, 2))
    assert [reason[0] for reason in first.reasons] == ["back-off", "deadline"]
    assert "rests until 1970-01-01 00:01:01 UTC before attempt 2; its last failure: it raised" in first.summary
    assert [reason[0] for reason in second.reasons] == ["key", "deadline"]
    assert "of its key 'a', 1 at a time may run; those that do, or are retried: 1" in second.summary


def test_the_pending_limit_still_counts_waiting_tasks() -> None:
    bench = Bench(EngineSettings(max_pending=3))
    bench.session()
    bench.submit(tasks=3, options=TaskOptions(key="a"))
    (answer,) = bench.submit(options=TaskOptions(key="a")).after
    assert isinstance(answer, fx.Accepted)
    assert answer.error is not None

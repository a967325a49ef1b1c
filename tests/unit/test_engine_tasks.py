"""The life of a task, as a pure function: one thing happens, and the whole answer is looked at."""

from __future__ import annotations

import pytest

from engine_builder import Bench
from flame.engine import EngineSettings, views
from flame.engine import effects as fx
from flame.engine import events as ev
from flame.model.errors import ExhaustedError, InvalidStateError, NotFoundError, ProtocolError, ReadOnlyError
from flame.model.specs import TaskOptions
from flame.model.states import ExecutorState, TaskState


def running_bench(cpu: int = 1, tasks: int = 1, **session: object) -> tuple[Bench, list[int]]:
    """A session `s` with `tasks` tasks and as many bound executors as there are cpus."""
    bench = Bench()
    bench.node(cpu=cpu)
    bench.session(**session)
    bench.submit(tasks=tasks)
    channels = bench.started()
    bench.bound(*channels)
    return bench, channels


def test_a_submission_is_accepted_only_after_its_record() -> None:
    bench = Bench()
    bench.node()
    bench.session()
    turn = bench.submit(tasks=3)
    assert [record.kind for record in turn.records] == [fx.RecordKind.SUBMITTED]
    assert turn.after == [fx.Accepted(4, 1, 3, 1)]
    assert len(bench.started()) == 2
    assert len(turn.now) == 2


def test_a_repeated_submission_makes_no_second_task() -> None:
    bench = Bench()
    bench.session()
    bench.submit(tasks=3)
    turn = bench.submit(tasks=3, first_seq=1)
    assert turn == fx.Turn([], [], [fx.Accepted(4, 1, 3, 1)], turn.wake_at)


@pytest.mark.parametrize(("first_seq", "count"), [(5, 1), (2, 1), (1, 2)])
def test_a_submission_that_does_not_continue_is_refused(first_seq: int, count: int) -> None:
    bench = Bench()
    bench.session()
    bench.submit(tasks=3)
    turn = bench.submit(tasks=count, first_seq=first_seq)
    (answer,) = turn.after
    assert isinstance(answer, fx.Accepted)
    assert isinstance(answer.error, ProtocolError)
    assert turn.records == []


def test_an_idempotency_key_names_the_same_tasks_again() -> None:
    bench = Bench()
    bench.session()
    key = TaskOptions(idempotency_key="order-7")
    bench.submit(tasks=2, first_seq=0, client="", options=key)
    turn = bench.submit(tasks=2, first_seq=0, client="", options=key)
    assert turn.after == [fx.Accepted(4, 0, 2, 1)]
    assert bench.engine.sessions["s"].total == 2


def test_tasks_of_unknown_and_closed_sessions_are_refused() -> None:
    bench = Bench()
    bench.session()
    bench.turn(ev.CloseSession(5, "s"))
    for name, kind in (("s", InvalidStateError), ("nobody", NotFoundError)):
        (answer,) = bench.turn(ev.Submitted(4, name, "c", 1, 1, b"")).after
        assert isinstance(answer, fx.Accepted)
        assert isinstance(answer.error, kind)


def test_one_task_each_while_the_duration_is_unknown_then_ten_milliseconds_ahead() -> None:
    bench, (one, two) = running_bench(cpu=2, tasks=1000)
    assert bench.running() == {one: [1], two: [2]}
    bench.complete(one, 1, busy_us=1_000)
    assert len(bench.running()[one]) == 11
    bench, (one,) = running_bench(tasks=1000)
    bench.complete(one, 1, busy_us=100_000)
    assert bench.running() == {one: [2]}


def test_few_tasks_are_spread_over_all_executors() -> None:
    bench, (one, two) = running_bench(cpu=2, tasks=2)
    bench.complete(one, 1, busy_us=10)
    bench.complete(two, 2, busy_us=10)
    bench.submit(tasks=8)
    assert [len(held) for held in bench.running().values()] == [4, 4]


def test_concurrent_services_get_as_many_tasks_as_they_declare() -> None:
    bench = Bench()
    bench.node(cpu=1)
    bench.session()
    bench.submit(tasks=50)
    (channel,) = bench.started()
    bench.bound(channel, concurrency=8)
    assert len(bench.running()[channel]) == 8
    assert views.session(bench.engine, "s").running == 8


def test_results_are_recorded_before_they_are_delivered() -> None:
    bench, (channel,) = running_bench()
    turn = bench.complete(channel, 1)
    (record,) = turn.records
    assert (record.kind, record.body) == (fx.RecordKind.FINISHED, b"outputs")
    assert turn.after == [fx.Forget([record.seq - 1]), fx.Deliver("s", "c", record.seq)]
    assert turn.now == []


def test_results_of_a_detached_client_wait_for_it() -> None:
    bench, (channel,) = running_bench()
    bench.turn(ev.Detached("s", "c"))
    turn = bench.complete(channel, 1)
    assert not [effect for effect in turn.after if isinstance(effect, fx.Deliver)]
    turn = bench.turn(ev.Attached(9, "s", "c", next_seq=2, unresolved=[(1, 1)]))
    assert [type(effect) for effect in turn.after] == [fx.Reply, fx.Deliver]
    assert turn.after[1].task_ids == [1]  # type: ignore[attr-defined]


def test_attaching_again_names_submissions_whose_acceptance_was_lost() -> None:
    bench = Bench()
    bench.session()
    bench.submit(tasks=3)
    bench.submit(tasks=2)
    turn = bench.turn(ev.Attached(9, "s", "c", next_seq=4))
    assert turn.after == [fx.Reply(9, [fx.Accepted(0, 4, 2, 4)])]


def test_two_clients_of_a_session_get_their_own_results() -> None:
    bench, (channel,) = running_bench()
    bench.turn(ev.Attached(3, "s", "d"))
    bench.submit(client="d")
    bench.complete(channel, 1)
    assert [effect.client_id for effect in bench.of(fx.Deliver)] == ["c"]  # type: ignore[attr-defined]
    bench.complete(channel, 2)
    assert [effect.client_id for effect in bench.of(fx.Deliver)] == ["d"]  # type: ignore[attr-defined]


def test_a_second_result_is_counted_and_dropped() -> None:
    bench, (channel,) = running_bench()
    bench.complete(channel, 1)
    turn = bench.complete(channel, 1)
    assert (turn.records, turn.now, turn.after) == ([], [], [])
    assert bench.engine.stale == 1


def test_a_result_from_an_executor_that_was_given_up_is_dropped() -> None:
    bench, (channel,) = running_bench()
    bench.turn(ev.NodeLeft("n1"))
    bench.turn(ev.Tick(), after_ms=31_000)
    turn = bench.complete(channel, 1)
    assert (turn.records, turn.after) == ([], [])
    assert views.task(bench.engine, "s", 1).state is TaskState.PENDING


def test_a_failure_ends_the_task_with_its_code() -> None:
    bench, (channel,) = running_bench()
    bench.fail(channel, 1)
    assert views.session(bench.engine, "s").failed == 1
    assert views.task(bench.engine, "s", 1).state is TaskState.FAILED


def test_a_failure_is_retried_as_often_as_the_task_allows() -> None:
    bench = Bench()
    bench.node(cpu=1)
    bench.session()
    bench.submit(options=TaskOptions(max_retries=2))
    (channel,) = bench.started()
    bench.bound(channel)
    for attempt in (2, 3):
        bench.fail(channel, 1)
        (dispatch,) = bench.of(fx.Dispatch)
        assert dispatch.parts[0].attempt == attempt  # type: ignore[attr-defined]
    bench.fail(channel, 1)
    assert views.task(bench.engine, "s", 1).state is TaskState.FAILED
    assert views.task(bench.engine, "s", 1).attempt == 3


def test_a_dead_instance_gives_its_tasks_back_and_suspects_run_alone() -> None:
    bench, (channel,) = running_bench(tasks=20)
    bench.complete(channel, 1, busy_us=1_000)
    held = bench.running()[channel]
    assert len(held) > 1
    bench.released(channel, crashed=True, message="signal 11")
    (again,) = bench.started()
    bench.bound(again)
    assert bench.running()[again] == [held[0]]
    bench.complete(again, held[0], busy_us=1_000)
    assert bench.running()[again] == [held[1]]


def test_a_task_that_kills_its_instance_too_often_fails_with_the_reason() -> None:
    bench, (channel,) = running_bench(tasks=2)
    for _ in range(3):
        assert bench.running()[channel] == [1]
        bench.released(channel, crashed=True, message="signal 11")
        (channel,) = bench.started()
        bench.bound(channel)
    view = views.task(bench.engine, "s", 1)
    assert view.state is TaskState.FAILED
    assert view.finish is not None
    assert "3 times" in view.finish.message
    assert "signal 11" in view.finish.message
    assert bench.running()[channel] == [2]


def test_cancelling_pending_and_running_tasks() -> None:
    bench, (channel,) = running_bench(tasks=3)
    turn = bench.turn(ev.CancelTasks(6, "s", [(1, 2), (9, 99)], reason="not needed"))
    assert turn.now == [fx.InterruptTasks("n1", channel, [1], "not needed")]
    (reply,) = [effect for effect in turn.after if isinstance(effect, fx.Reply)]
    assert reply.value == [1, 2]
    (delivered,) = [effect for effect in turn.after if isinstance(effect, fx.Deliver)]
    assert [(item.task_id, item.state) for item in delivered.finished] == [
        (1, TaskState.CANCELLED),
        (2, TaskState.CANCELLED),
    ]
    turn = bench.fail(channel, 1, TaskState.CANCELLED)
    assert turn.records == []
    assert bench.running()[channel] == [3]


def test_cancelling_by_sequence_numbers() -> None:
    bench = Bench()
    bench.session()
    bench.submit(tasks=2, client="d")
    bench.submit(tasks=3)
    bench.turn(ev.CancelTasks(6, "s", client_id="c", seqs=[(2, 3)]))
    assert [views.task(bench.engine, "s", task_id).state for task_id in (2, 3, 4, 5)] == [
        TaskState.PENDING,
        TaskState.PENDING,
        TaskState.CANCELLED,
        TaskState.CANCELLED,
    ]


def test_higher_priority_tasks_of_a_session_go_first() -> None:
    bench, (channel,) = running_bench()
    bench.submit(tasks=2)
    bench.submit(tasks=1, options=TaskOptions(priority=3))
    bench.complete(channel, 1)
    assert bench.running()[channel] == [4]


def test_work_sent_ahead_is_taken_back_for_an_idle_executor() -> None:
    bench, (one, two) = running_bench(cpu=2, tasks=30)
    bench.complete(one, 1, busy_us=1_000)
    bench.complete(two, 2, busy_us=1_000)
    held = bench.running()
    bench.complete(two, *held[two], busy_us=1_000)
    while bench.engine.sessions["s"].pending:
        bench.complete(two, *bench.running()[two], busy_us=1_000)
    turn = bench.complete(two, *bench.running()[two], busy_us=1_000)
    assert bench.running()[two] == []
    assert turn.now == [fx.RetractTasks("n1", one, 1)]
    back = bench.running()[one][1:]
    bench.turn(ev.Retracted(one, back))
    assert sorted(bench.running()[one] + bench.running()[two]) == sorted([held[one][0], *back])
    assert bench.running()[two]
    assert all(attempt == 1 for attempt in bench.engine.sessions["s"].executors[two].outstanding.values())


def test_nothing_is_accepted_while_the_journal_fails() -> None:
    bench = Bench()
    bench.session()
    bench.turn(ev.JournalFailed("no space left"))
    (answer,) = bench.submit().after
    assert isinstance(answer, fx.Accepted)
    assert isinstance(answer.error, ReadOnlyError)
    assert "no space left" in answer.error.message
    bench.turn(ev.JournalRecovered())
    assert bench.submit().after == [fx.Accepted(4, 1, 1, 1)]


def test_a_restart_knows_all_that_was_recorded() -> None:
    bench, (channel,) = running_bench(tasks=5)
    bench.complete(channel, 1)
    bench.fail(channel, 2)
    bench.turn(ev.CancelTasks(6, "s", [(5, 5)]))
    twin = bench.replayed()
    states = [views.task(twin, "s", task_id).state for task_id in range(1, 6)]
    assert states == [
        TaskState.SUCCEED,
        TaskState.FAILED,
        TaskState.PENDING,
        TaskState.PENDING,
        TaskState.CANCELLED,
    ]
    assert twin.sessions["s"].next_seq("c") == 6


def test_after_a_restart_a_node_keeps_the_executors_that_went_on() -> None:
    bench, (channel,) = running_bench(tasks=3)
    executor = bench.engine.executors[channel]
    twin = bench.replayed()
    twin.recovered(bench.now)
    held = ev.Held(executor.id, channel, "s", executor.resreq, ExecutorState.BOUND, 1, [1], [1])
    turn = twin.turn(bench.now, [ev.NodeJoined("n1", "b1", "n1", bench.engine.nodes["n1"].capacity, held=[held])])
    assert turn.now == []
    turn = twin.turn(bench.now, [ev.Completed(channel, [1], b"outputs", busy_us=1000)])
    assert [record.kind for record in turn.records] == [fx.RecordKind.FINISHED]


def test_the_pending_limit_refuses_with_a_retryable_error() -> None:
    bench = Bench(EngineSettings(max_pending=2))
    bench.session()
    bench.submit(tasks=2)
    (answer,) = bench.submit(tasks=1).after
    assert isinstance(answer, fx.Accepted)
    assert isinstance(answer.error, ExhaustedError)
    assert answer.error.retryable


def test_more_tasks_than_the_pending_limit_at_once_are_never_accepted() -> None:
    bench = Bench(EngineSettings(max_pending=2))
    bench.session()
    (answer,) = bench.submit(tasks=3).after
    assert isinstance(answer, fx.Accepted)
    assert answer.error is not None
    assert not answer.error.retryable
    assert "at most 2 at once" in answer.error.remedy


def test_a_repeated_submission_is_known_also_when_the_limit_is_reached() -> None:
    bench = Bench(EngineSettings(max_pending=2))
    bench.session()
    bench.submit(tasks=2)
    (answer,) = bench.submit(tasks=2, first_seq=1).after
    assert answer == fx.Accepted(4, 1, 2, 1)

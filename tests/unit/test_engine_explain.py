"""Explanations: each reason says which rule, about what, in which words, what helps, and since when."""

from __future__ import annotations

import pytest

from engine_builder import GIB, Bench
from flame.engine import EngineSettings, views
from flame.engine import effects as fx
from flame.engine import events as ev
from flame.engine.delays import Reason
from flame.model.resources import Resources
from flame.model.specs import ApplicationSpec, SessionSpec, TaskOptions
from flame.model.states import BindCode, EventCode, TaskState
from flame.model.tenants import Quota, TenantSpec


def reason(bench: Bench, rule: str, session: str = "s", task_id: int = 0) -> Reason:
    """The only reason of this rule; it has a remedy."""
    found = [one for one in views.explain(bench.engine, session, task_id).reasons if one[0] == rule]
    assert len(found) == 1, views.explain(bench.engine, session, task_id).reasons
    assert found[0][3]
    return found[0]


def rules(bench: Bench, session: str = "s", task_id: int = 0) -> list[str]:
    return [one[0] for one in views.explain(bench.engine, session, task_id).reasons]


def waiting(bench: Bench, name: str = "s", tasks: int = 1, **spec: object) -> int:
    """A session with tasks; since when it waits."""
    bench.session(name, **spec)
    bench.submit(name, tasks)
    return bench.now


# --- the scheduler's rules -------------------------------------------------------------------------------------------


def test_no_node_is_ready() -> None:
    bench = Bench()
    since = waiting(bench)
    assert reason(bench, "nodes")[1:3] == ("cluster", "no node is ready")
    assert reason(bench, "nodes")[4] == since
    bench.node()
    assert "nodes" not in rules(bench)


def test_a_node_that_is_away_says_since_when() -> None:
    bench = Bench()
    bench.node()
    bench.turn(ev.NodeLeft("n1"))
    left = bench.now
    waiting(bench)
    _, thing, text, remedy, since = reason(bench, "node")
    assert (thing, text, since) == ("n1", "its link is down", left)
    assert "executor manager" in remedy
    assert reason(bench, "nodes")[2] == "no node is ready"


def test_a_quota_says_how_many_sessions_come_first() -> None:
    bench = Bench()
    bench.node(cpu=8)
    bench.turn(ev.SetTenant(7, "web", TenantSpec(quota=Quota(cpu=1))))
    waiting(bench, "first", tenant="web")
    for name in ("second", "third"):
        waiting(bench, name, tenant="web")
    since = waiting(bench, tenant="web")
    _, thing, text, remedy, began = reason(bench, "quota")
    assert (thing, began) == ("web", since)
    assert text == "tenant web is at its quota of 1 cpu (1 used, 1 needed); 2 sessions ahead"
    assert "flmctl tenant update web" in remedy


def test_a_capacity_that_no_node_has() -> None:
    bench = Bench()
    bench.node(cpu=2, gpu=1)
    since = waiting(bench, resreq=Resources(1, GIB, 2))
    _, _, text, remedy, began = reason(bench, "capacity")
    assert text == "needs 2 GPUs; the largest node has 1"
    assert "add a larger node" in remedy
    assert began == since


def test_room_that_is_being_made() -> None:
    bench = Bench()
    bench.node(cpu=1)
    waiting(bench, "low")
    bench.bound(*bench.started())
    waiting(bench, priority=5)
    _, thing, text, remedy, since = reason(bench, "preemption")
    assert thing == "n1"
    assert since == views.session(bench.engine, "s").pending_since > 0
    assert text.startswith("room is being made on n1: 1 executor")
    assert "grace time" in remedy


def test_a_full_cluster_names_each_node() -> None:
    bench = Bench()
    bench.node("n1", cpu=1)
    bench.node("n2", cpu=1)
    waiting(bench, "other", 2, priority=1)
    bench.bound(*bench.started())
    waiting(bench)
    assert "no node has cpu=1" in reason(bench, "room")[2]
    nodes = [one for one in views.explain(bench.engine, "s").reasons if one[0] == "node"]
    assert [(thing, text) for _, thing, text, _, _ in nodes] == [("n1", "0 of 1 cpu free"), ("n2", "0 of 1 cpu free")]
    assert all("wait for what runs there" in remedy and since for _, _, _, remedy, since in nodes)


def test_a_node_that_is_too_small_is_not_to_be_waited_for() -> None:
    bench = Bench()
    bench.node("n1", cpu=2)
    bench.session(resreq=Resources(3, GIB))
    bench.submit()
    nodes = [one for one in views.explain(bench.engine, "s").reasons if one[0] == "node"]
    assert [one[1:4] for one in nodes] == [("n1", "it has 2 cpu in all", "ask for less in resreq")]


def test_a_cordoned_node_says_since_when_and_how_it_ends() -> None:
    bench = Bench()
    bench.node()
    bench.turn(ev.MarkNode(9, "n1", "cordon"))
    marked = bench.now
    waiting(bench)
    assert reason(bench, "node") == ("node", "n1", "it is cordoned", "flmctl node uncordon n1", marked)


def test_a_node_with_other_labels_is_not_helped_by_an_uncordon() -> None:
    bench = Bench()
    bench.turn(ev.NodeJoined("n1", "b", "n1", Resources(2, GIB * 8, 0), labels={"zone": "a"}))
    bench.turn(ev.MarkNode(9, "n1", "cordon"))
    waiting(bench, selector={"zone": "b"})
    _, _, text, remedy, _ = reason(bench, "node")
    assert text == "label zone is 'a', not 'b'"
    assert "selector" in remedy


def test_a_gang_that_waits_for_room() -> None:
    bench = Bench()
    bench.node(cpu=3)
    waiting(bench, "other", priority=9)
    bench.bound(*bench.started())
    since = waiting(bench, gang=True, min_instances=3)
    _, _, text, _, began = reason(bench, "gang")
    assert text.startswith("needs 3 executors of cpu=1,mem=1Gi,gpu=0 together; 2 fit now")
    assert began <= since


# --- executors that start, or can't ----------------------------------------------------------------------------------


def test_a_gang_whose_members_are_not_all_bound() -> None:
    bench = Bench()
    bench.node(cpu=2)
    waiting(bench, tasks=2, gang=True, min_instances=2)
    first, second = bench.engine.sessions["s"].executors
    bench.bound(first)
    assert reason(bench, "gang")[2] == "1 of 2 members of the gang are bound; tasks are sent when all are"
    assert views.session(bench.engine, "s").pending_reason.startswith("1 of 2 members of the gang")
    bench.bound(second)
    assert rules(bench) == []


def test_executors_that_are_starting() -> None:
    bench = Bench()
    bench.node(cpu=1)
    since = waiting(bench)
    assert reason(bench, "starting") == (
        "starting",
        "s",
        "its executors are starting",
        "wait; if it takes long, look at flmctl logs -s s",
        since,
    )
    assert views.session(bench.engine, "s").pending_reason == "its executors are starting"
    bench.bound(*bench.started())
    assert rules(bench) == []


def test_bind_failures_say_what_went_wrong_and_when_it_goes_on() -> None:
    bench = Bench()
    bench.node(cpu=1)
    waiting(bench)
    bench.released(bench.started()[0], code=BindCode.START, message="no such file: run")
    failed = bench.now
    _, thing, text, remedy, since = reason(bench, "bind")
    assert (thing, since) == ("s", failed)
    assert text.startswith("1 executor could not be bound; Executor <x1> on node <n1> failed to bind")
    assert "no such file: run" in text
    assert text.endswith("; the next one starts at 1970-01-01 00:00:01 UTC")
    assert remedy == "look at flmctl logs -s s"
    assert "no such file: run" in views.session(bench.engine, "s").pending_reason
    bench.turn(ev.Tick(), after_ms=200)
    assert "the next one starts at" not in reason(bench, "bind")[2]


def test_a_paused_session_says_since_when() -> None:
    bench = Bench(EngineSettings(retry_limits=1))
    bench.node(cpu=1)
    waiting(bench)
    bench.released(bench.started()[0], code=BindCode.START, message="no such file: run")
    _, _, text, remedy, since = reason(bench, "bind")
    assert text.startswith("Session retry limit reached after 1/1 failed attempts; the last one: no such file: run")
    assert "new session" in remedy
    assert since == bench.now
    (event,) = [e for e in bench.engine.sessions["s"].events if e.code == EventCode.RETRY_LIMIT]
    assert event.time == since


# --- limits ----------------------------------------------------------------------------------------------------------


def test_a_session_at_its_max_instances() -> None:
    bench = Bench()
    bench.node(cpu=4)
    waiting(bench, tasks=5, max_instances=2)
    bench.bound(*bench.started())
    _, thing, text, _, since = reason(bench, "max_instances")
    assert (thing, text) == ("s", "the session has 2 executors, its max_instances; 3 tasks wait for them")
    assert since == bench.now
    assert views.session(bench.engine, "s").pending_reason == ""  # it gets on, as fast as was asked for


def limited(bench: Bench, most: int) -> None:
    spec = ApplicationSpec(command="run", max_instances=most)
    known = bench.engine.applications.get("few")
    event = ev.UpdateApplication(1, "few", spec) if known is not None else ev.RegisterApplication(1, "few", spec)
    bench.turn(event)
    assert bench.of(fx.Reply) == [fx.Reply(1)]


def few(bench: Bench, name: str, tasks: int) -> None:
    """A session of the application with few instances."""
    bench.turn(ev.CreateSession(2, name, SessionSpec("few")), ev.Attached(3, name, "c"))
    bench.submit(name, tasks)


def test_an_application_at_its_max_instances_in_one_session() -> None:
    bench = Bench()
    bench.node(cpu=4)
    limited(bench, 2)
    few(bench, "s", 5)
    bench.bound(*bench.started())
    _, thing, text, remedy, _ = reason(bench, "application")
    assert (thing, text) == ("few", "application few has 2 executors in this session, its max_instances is 2")
    assert "max_instances" in remedy


def test_an_application_at_its_max_instances_with_other_sessions() -> None:
    bench = Bench()
    bench.node(cpu=4)
    limited(bench, 2)
    few(bench, "other", 2)
    bench.bound(*bench.started())
    few(bench, "s", 5)
    assert reason(bench, "application")[1:3] == ("few", "application few has 2 of at most 2 executors")
    assert reason(bench, "application")[4]


def test_an_updated_application_has_its_new_limit_in_all_new_sessions() -> None:
    bench = Bench()
    bench.node(cpu=4)
    limited(bench, 1)
    few(bench, "a", 5)
    assert len(bench.engine.executors) == 1
    bench.turn(ev.CloseSession(3, "a"))
    bench.released(1 + (1 << 20))
    limited(bench, 3)
    few(bench, "b", 5)
    assert len(bench.engine.sessions["b"].executors) == 3
    bench.turn(ev.CloseSession(3, "b"))
    for channel in list(bench.engine.executors):
        bench.released(channel)
    limited(bench, 2)
    few(bench, "c", 5)
    assert len(bench.engine.sessions["c"].executors) == 2


def test_short_tasks_that_are_not_worth_another_executor() -> None:
    bench = Bench()
    bench.node(cpu=4)
    waiting(bench)
    (channel,) = bench.started()
    bench.bound(channel)
    bench.turn(ev.Completed(channel, [1], b"o", busy_us=100))
    bench.submit(tasks=400)
    assert "1 executor will be through with" in reason(bench, "order")[2]


# --- the journal -----------------------------------------------------------------------------------------------------


def test_a_journal_that_can_not_be_written() -> None:
    bench = Bench()
    bench.node()
    waiting(bench)
    bench.turn(ev.JournalFailed("the disk is full"))
    failed = bench.now
    bench.turn(ev.JournalFailed("the disk is full"))
    assert reason(bench, "journal") == (
        "journal",
        "cluster",
        "the journal can't be written: the disk is full",
        "free the disk",
        failed,
    )
    bench.turn(ev.JournalRecovered())
    assert "journal" not in rules(bench)


# --- tasks -----------------------------------------------------------------------------------------------------------


def test_a_task_that_rests_says_since_when() -> None:
    bench = Bench()
    bench.node(cpu=1)
    bench.session()
    bench.submit(options=TaskOptions(max_retries=3, retry_delay_ms=60_000))
    (channel,) = bench.started()
    bench.bound(channel)
    bench.fail(channel, 1)
    failed = bench.now
    _, thing, text, remedy, since = reason(bench, "back-off", task_id=1)
    assert (thing, since) == ("task 1", failed)
    assert text == "it rests until 1970-01-01 00:01:01 UTC before attempt 2; its last failure: it raised"
    assert "retry_delay" in remedy


def test_a_task_behind_another_of_its_key() -> None:
    bench = Bench()
    bench.node(cpu=2)
    bench.session()
    bench.submit(tasks=2, options=TaskOptions(key="a"))
    submitted = bench.now
    bench.bound(*bench.started())
    _, thing, text, remedy, since = reason(bench, "key", task_id=2)
    assert (thing, since) == ("task 2", submitted)
    assert text == "of its key 'a', 1 at a time may run; those that do, or are retried: 1"
    assert "max_running_per_key" in remedy


def test_a_task_with_a_deadline() -> None:
    bench = Bench()
    bench.session()
    bench.submit(options=TaskOptions(deadline_ms=90_000))
    _, _, text, remedy, since = reason(bench, "deadline", task_id=1)
    assert text == "its deadline of 90 s is over at 1970-01-01 00:01:31 UTC"
    assert "longer deadline" in remedy
    assert since == bench.now


def test_a_task_that_was_sent_ahead() -> None:
    bench = Bench()
    bench.node(cpu=1)
    waiting(bench)
    (channel,) = bench.started()
    bench.bound(channel)
    bench.turn(ev.Completed(channel, [1], b"o", busy_us=100))
    bench.submit(tasks=3)
    assert views.task(bench.engine, "s", 4).state is TaskState.PENDING
    assert rules(bench, task_id=4) == ["order"]
    assert reason(bench, "order", task_id=4)[1:3] == (
        "task 4",
        "it was sent ahead to executor x1 on node n1, after 2 others",
    )


@pytest.mark.parametrize("end", ["succeeds", "is cancelled"])
def test_a_task_that_has_ended_waits_for_nothing(end: str) -> None:
    bench = Bench()
    bench.node(cpu=1)
    waiting(bench, tasks=5, resreq=Resources(1, GIB, 0), max_instances=1)
    (channel,) = bench.started()
    bench.bound(channel)
    if end == "succeeds":
        bench.complete(channel, 1)
    else:
        bench.turn(ev.CancelTasks(5, "s", [(1, 1)], reason="enough"))
    assert rules(bench, task_id=1) == []
    assert rules(bench, task_id=2) != [] or views.task(bench.engine, "s", 2).state is TaskState.RUNNING


def test_a_closed_session_waits_for_nothing() -> None:
    bench = Bench()
    waiting(bench)
    bench.turn(ev.CloseSession(3, "s"))
    assert views.explain(bench.engine, "s").reasons == []


# --- what no node could ever run -------------------------------------------------------------------------------------


def alarms(bench: Bench) -> int:
    return sum(kind == "hopeless" for _, kind, _ in bench.engine.alarms)


def test_a_session_that_waits_long_and_submits_often_sets_one_alarm() -> None:
    bench = Bench(EngineSettings(unsatisfiable_ms=1_000))
    bench.node(cpu=1)
    waiting(bench, "other", priority=1)
    bench.bound(*bench.started())
    bench.session()
    for _ in range(50):
        bench.submit(tasks=1)
        bench.turn(ev.Tick(), after_ms=99)
    assert alarms(bench) <= 2  # of each session
    assert [views.task(bench.engine, "s", task).state for task in (1, 50)] == [TaskState.PENDING] * 2


def test_what_no_node_could_run_fails_again_when_it_is_asked_again() -> None:
    bench = Bench(EngineSettings(unsatisfiable_ms=1_000))
    bench.node(cpu=1)
    bench.session(resreq=Resources(8, GIB, 0))
    for attempt in (1, 2):
        bench.submit(tasks=1)
        bench.turn(ev.Tick(), after_ms=999)
        assert views.task(bench.engine, "s", attempt).state is TaskState.PENDING
        bench.turn(ev.Tick(), after_ms=2)
        assert views.task(bench.engine, "s", attempt).state is TaskState.FAILED
    codes = [event.code for event in bench.engine.sessions["s"].events]
    assert codes == [EventCode.UNSATISFIABLE] * 2


def test_nothing_fails_after_the_last_node_is_gone() -> None:
    bench = Bench(EngineSettings(unsatisfiable_ms=1_000, drain_ms=100))
    bench.node(cpu=1)
    bench.session(resreq=Resources(8, GIB, 0))
    bench.turn(ev.NodeLeft("n1"))
    bench.turn(ev.Tick(), after_ms=200)
    assert not bench.engine.nodes
    bench.submit(tasks=1)
    for _ in range(4):
        bench.turn(ev.Tick(), after_ms=1_000)
    assert views.task(bench.engine, "s", 1).state is TaskState.PENDING

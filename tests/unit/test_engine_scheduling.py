"""What the scheduler's decisions mean for executors and tasks: taking back, gangs, cordoned nodes, vain requests."""

from __future__ import annotations

import pytest

from engine_builder import GIB, Bench
from flame.engine import EngineSettings, views
from flame.engine import effects as fx
from flame.engine import events as ev
from flame.engine.engine import Engine
from flame.model.resources import Resources
from flame.model.specs import ApplicationSpec, SessionSpec, TaskOptions
from flame.model.states import EventCode, TaskState
from flame.scheduler.books import Ask
from flame.scheduler.policies import Drf, Gang, Priority
from flame.scheduler.policy import Policy

UNIT = Resources(1, GIB, 0)


def codes(bench: Bench, session: str = "s") -> list[int]:
    return [event.code for event in bench.engine.sessions[session].events]


def states(bench: Bench, session: str = "s") -> list[TaskState]:
    return [TaskState(state) for state in bench.engine.sessions[session].states]


# --- taking back -----------------------------------------------------------------------------------------------------


def low_and_high(bench: Bench, *, options: TaskOptions | None = None) -> list[int]:
    """A node full of a session of low priority; then one of high priority comes. Answers the channels of the first."""
    bench.node(cpu=2)
    bench.session("low")
    bench.submit("low", 2, options=options or TaskOptions())
    channels = bench.started()
    bench.bound(*channels)
    bench.session("high", priority=5)
    bench.submit("high", 1)
    return channels


def test_a_higher_priority_takes_one_executor_and_its_task_may_end() -> None:
    bench = Bench()
    low_and_high(bench)
    leaving = [x for x in bench.engine.executors.values() if x.draining]
    assert len(leaving) == 1
    assert bench.of(fx.StopExecutor) == []  # its task runs on
    task = next(iter(leaving[0].outstanding))
    bench.complete(leaving[0].channel, task)
    assert [effect.channel for effect in bench.of(fx.StopExecutor)] == [leaving[0].channel]  # type: ignore[attr-defined]
    bench.released(leaving[0].channel)
    assert len(bench.started()) == 1
    assert bench.engine.executors[bench.started()[0]].session.id == "high"
    assert states(bench, "low").count(TaskState.SUCCEED) == 1


def test_after_the_grace_time_the_task_goes_back_and_its_retries_are_untouched() -> None:
    bench = Bench(EngineSettings(preemption_grace_ms=1_000))
    low_and_high(bench, options=TaskOptions(max_retries=0))
    (victim,) = [x for x in bench.engine.executors.values() if x.draining]
    (task,) = victim.outstanding
    bench.turn(ev.Tick(), after_ms=1_000)
    assert fx.StopExecutor("n1", victim.channel, 0, bench.of(fx.StopExecutor)[0].reason) in bench.of(fx.StopExecutor)  # type: ignore[attr-defined]
    bench.released(victim.channel)
    low = bench.engine.sessions["low"]
    assert states(bench, "low") == [TaskState.PENDING if t == task else TaskState.RUNNING for t in (1, 2)]
    assert low.attempts[task] == 2
    assert not low.failures
    assert not low.kills


def test_the_victim_does_not_win_back_what_it_lost() -> None:
    bench = Bench()
    low_and_high(bench)
    (victim,) = [x for x in bench.engine.executors.values() if x.draining]
    bench.complete(victim.channel, next(iter(victim.outstanding)))
    bench.submit("low", 10)
    bench.released(victim.channel)
    (channel,) = bench.started()
    bench.bound(channel)
    for _ in range(5):
        bench.turn(ev.Tick(), after_ms=100)
        assert bench.started() == []
        assert not any(x.draining for x in bench.engine.executors.values() if x.session.id == "high")


def test_work_sent_ahead_is_retracted_from_the_victim_first() -> None:
    bench = Bench()
    bench.node(cpu=1)
    bench.session("low")
    bench.submit("low", 50)
    (channel,) = bench.started()
    bench.bound(channel)
    bench.turn(ev.Completed(channel, [1], b"o", busy_us=100))  # very short: many are sent ahead
    assert len(bench.running("low")[channel]) > 1
    bench.session("high", priority=1)
    bench.submit("high", 1)
    assert fx.RetractTasks("n1", channel, 1) in bench.of(fx.RetractTasks)


# --- gangs -----------------------------------------------------------------------------------------------------------


def gang(bench: Bench, size: int = 2, **spec: object) -> list[int]:
    bench.session("g", gang=True, min_instances=size, **spec)
    return bench.started()


def test_a_gang_starts_whole_and_knows_its_members() -> None:
    bench = Bench()
    bench.turn(ev.NodeJoined("n1", "b", "host1", Resources(2, 8 * GIB, 0), addresses=[("InternalIP", "10.0.0.1")]))
    bench.turn(ev.NodeJoined("n2", "b", "host2", Resources(2, 8 * GIB, 0)))
    channels = gang(bench, 3)
    members = [bench.engine.executors[channel].gang for channel in channels]
    assert [member.rank for member in members if member] == [0, 1, 2]
    first = members[0]
    assert first is not None
    assert first.world_size == 3
    assert len(set(first.addresses)) == 3
    assert {address.rsplit(":", 1)[0] for address in first.addresses} == {"10.0.0.1", "host2"}
    assert all(member is not None and member.addresses == first.addresses for member in members)


def test_half_a_gang_holds_nothing() -> None:
    bench = Bench()
    bench.node("n1", cpu=2)
    bench.node("n2", cpu=1)
    bench.session("other", max_instances=1)
    bench.submit("other", 1)
    (other,) = bench.started()
    bench.bound(other)
    assert gang(bench, 3) == []
    assert sum(node.allocated.cpu for node in bench.engine.nodes.values()) == 1
    assert "needs 3 executors" in views.explain(bench.engine, "g").summary


def test_tasks_wait_until_every_member_is_bound() -> None:
    bench = Bench()
    bench.node(cpu=2)
    channels = gang(bench)
    bench.submit("g", 4)
    bench.bound(channels[0])
    assert bench.of(fx.Dispatch) == []
    bench.bound(channels[1])
    assert len(bench.of(fx.Dispatch)) == 2


def test_a_lost_member_restarts_the_gang_as_a_whole() -> None:
    bench = Bench()
    bench.node(cpu=4)
    channels = gang(bench)
    bench.submit("g", 2)
    bench.bound(*channels)
    bench.released(channels[0], crashed=True, message="killed")
    stopped = [effect.channel for effect in bench.of(fx.StopExecutor)]  # type: ignore[attr-defined]
    assert stopped == [channels[1]]
    again = bench.started()
    bench.released(channels[1])
    again += bench.started()
    assert len(again) == 2
    assert EventCode.GANG_LOST in codes(bench, "g")
    bench.bound(*again)
    assert sum(len(held) for held in bench.running("g").values()) == 2


def test_a_lost_member_fails_the_tasks_when_asked() -> None:
    bench = Bench()
    bench.node(cpu=2)
    channels = gang(bench, on_member_loss="fail")
    bench.submit("g", 5)
    bench.bound(*channels)
    bench.released(channels[1], crashed=True, message="killed")
    assert states(bench, "g") == [TaskState.FAILED] * 5
    assert "member 1 of the gang was lost" in bench.engine.sessions["g"].finished[5].message


def test_a_gang_is_taken_back_whole() -> None:
    bench = Bench()
    bench.node(cpu=2)
    bench.bound(*gang(bench))
    bench.session("high", priority=3)
    bench.submit("high", 1)
    assert {effect.channel for effect in bench.of(fx.StopExecutor)} == set(bench.engine.sessions["g"].executors)  # type: ignore[attr-defined]


def test_part_of_a_gang_found_after_a_restart_is_started_again() -> None:
    bench = Bench(EngineSettings(drain_ms=1_000))
    bench.node(cpu=2)
    channels = gang(bench)
    bench.bound(*channels)
    twin = bench.replayed()
    twin.recovered(bench.now)
    one = bench.engine.executors[channels[0]]
    held = ev.Held(one.id, one.channel, "g", UNIT, one.state, 1, (), gang=one.gang)
    twin.turn(bench.now + 1, [ev.NodeJoined("n1", "b1", "n1", Resources(2, 64 * GIB, 0), held=[held])])
    assert list(twin.sessions["g"].executors) == [channels[0]]
    turn = twin.turn(bench.now + 1_100, [ev.Tick()])
    assert channels[0] in [effect.channel for effect in turn.now if isinstance(effect, fx.StopExecutor)]


# --- cordon and drain ------------------------------------------------------------------------------------------------


def mark(bench: Bench, what: str, name: str = "n1", grace_ms: int = 5_000) -> fx.Turn:
    return bench.turn(ev.MarkNode(9, name, what, grace_ms))


def test_a_cordoned_node_keeps_what_it_has_and_takes_nothing_new() -> None:
    bench = Bench()
    bench.node(cpu=2)
    bench.session()
    bench.submit(tasks=1)
    (channel,) = bench.started()
    bench.bound(channel)
    mark(bench, "cordon")
    bench.submit(tasks=5)
    assert bench.started() == []
    assert list(bench.running()) == [channel]
    assert ("node", "n1", "it is cordoned") in [r[:3] for r in views.explain(bench.engine, "s").reasons]
    mark(bench, "uncordon")
    assert len(bench.started()) == 1


def test_a_drained_node_is_empty_after_the_grace_time_and_its_tasks_run_elsewhere() -> None:
    bench = Bench()
    bench.node("n1", cpu=1)
    bench.session()
    bench.submit(tasks=1)
    (channel,) = bench.started()
    bench.bound(channel)
    mark(bench, "drain")
    assert bench.of(fx.StopExecutor) == []
    bench.node("n2", cpu=1)
    bench.turn(ev.Tick(), after_ms=5_000)
    assert [effect.channel for effect in bench.of(fx.StopExecutor)] == [channel]  # type: ignore[attr-defined]
    bench.released(channel)
    assert [executor.node.name for executor in bench.engine.executors.values()] == ["n2"]


def test_a_mark_outlives_the_session_manager_and_the_node() -> None:
    bench = Bench()
    bench.node()
    mark(bench, "cordon")
    twin = bench.replayed()
    twin.recovered(bench.now)
    twin.turn(bench.now + 1, [ev.NodeJoined("n1", "b2", "n1", Resources(2, 64 * GIB, 0))])
    assert twin.nodes["n1"].cordoned
    assert not twin.scheduler.books.places["n1"].open


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (ev.MarkNode(9, "n7", "cordon"), "node <n7> not found"),
        (ev.MarkNode(9, "n1", "paint"), "unknown mark 'paint'"),
        (ev.MarkNode(9, "n1", "drain", -1), "-1 ms is negative"),
    ],
)
def test_bad_marks_are_refused(event: ev.MarkNode, words: str) -> None:
    bench = Bench()
    bench.node()
    bench.turn(event)
    (reply,) = bench.of(fx.Reply)
    assert words in str(reply.error)  # type: ignore[attr-defined]


# --- requests that can't be met --------------------------------------------------------------------------------------


def test_what_no_node_could_ever_run_fails_with_the_reason() -> None:
    bench = Bench(EngineSettings(unsatisfiable_ms=1_000))
    bench.node(cpu=2)
    bench.session(resreq=Resources(64, GIB, 0))
    bench.submit(tasks=2)
    bench.turn(ev.Tick(), after_ms=500)
    assert states(bench) == [TaskState.PENDING] * 2
    bench.turn(ev.Tick(), after_ms=600)
    assert states(bench) == [TaskState.FAILED] * 2
    assert "needs 64 cpu; the largest node has 2" in bench.engine.sessions["s"].finished[1].message
    assert EventCode.UNSATISFIABLE in codes(bench)
    bench.node("big", cpu=64)
    bench.submit(tasks=1)
    assert len(bench.started()) == 1


def test_what_only_waits_for_others_never_fails() -> None:
    bench = Bench(EngineSettings(unsatisfiable_ms=1_000))
    bench.node(cpu=1)
    bench.session("a", priority=1)
    bench.submit("a", 1)
    bench.bound(*bench.started())
    bench.session("b")
    bench.submit("b", 1)
    for _ in range(5):
        bench.turn(ev.Tick(), after_ms=1_000)
    assert states(bench, "b") == [TaskState.PENDING]


def test_nothing_fails_while_no_node_has_joined() -> None:
    bench = Bench(EngineSettings(unsatisfiable_ms=1_000))
    bench.session()
    bench.submit()
    bench.turn(ev.Tick(), after_ms=5_000)
    assert states(bench) == [TaskState.PENDING]


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"resreq": Resources(0, 0, 0)}, "asks for nothing"),
        ({"resreq": Resources(2**63, GIB, 0)}, "over 2^63-1"),
        ({"resreq": Resources(1, -1, 0)}, "negative"),
        ({"min_instances": 3, "max_instances": 2}, "min_instances 3 is over max_instances 2"),
        ({"max_instances": 0}, "max_instances 0"),
        ({"min_instances": 2**40}, "min_instances 1099511627776"),
        ({"gang": True}, "a gang needs min_instances"),
        ({"gang": True, "min_instances": 2, "max_instances": 4}, "max_instances 4 differs from 2"),
        ({"gang": True, "min_instances": 2, "topology": "ring"}, "unknown topology 'ring'"),
        ({"gang": True, "min_instances": 2, "topology": "same:"}, "unknown topology 'same:'"),
        ({"gang": True, "min_instances": 2, "on_member_loss": "weep"}, "unknown on_member_loss 'weep'"),
        ({"gang": True, "min_instances": 9}, "needs 9 executors"),
        ({"gang": True, "min_instances": 3, "topology": "same-node"}, "on one node"),
        ({"gang": True, "min_instances": 2, "topology": "same:zonne"}, "no node has the label 'zonne'"),
        ({"topology": "spread"}, "is for gangs"),
        ({"selector": {"zonne": "a"}}, "no node has the label 'zonne'"),
        ({"selector": {"": "a"}}, "empty"),
        ({"tolerations": ("",)}, "tolerations can't have ''"),
        ({"tolerations": ("x" * 600,)}, "tolerations can't have 'xxx"),
        ({"prefer_nodes": ("n",) * 1001}, "prefer_nodes can't have 1001 entries"),
    ],
)
def test_impossible_sessions_are_refused_at_the_edge(spec: dict[str, object], words: str) -> None:
    bench = Bench()
    for name in ("n1", "n2"):
        bench.turn(ev.NodeJoined(name, "b", name, Resources(2, 8 * GIB, 0), labels={"zone": name}))
    bench.turn(ev.CreateSession(7, "x", SessionSpec("app", **spec)))  # type: ignore[arg-type]
    (reply,) = bench.of(fx.Reply)
    assert words in str(reply.error)  # type: ignore[attr-defined]
    assert "x" not in bench.engine.sessions


def test_a_label_in_another_spelling_is_suggested() -> None:
    bench = Bench()
    bench.turn(ev.NodeJoined("n1", "b", "n1", Resources(2, 8 * GIB, 0), labels={"zone": "a"}))
    bench.turn(ev.CreateSession(7, "x", SessionSpec("app", selector={"zonne": "a"})))
    (reply,) = bench.of(fx.Reply)
    assert "'zone'" in reply.error.remedy  # type: ignore[attr-defined]


# --- policies that fail ----------------------------------------------------------------------------------------------


class Broken(Policy):
    """Raises whatever it is asked."""

    name = "broken"

    def rank(self, ask: Ask) -> float:
        raise RuntimeError(f"no idea about {ask.session}")


def test_a_policy_that_raises_is_named_and_stops_nothing() -> None:
    engine = Engine(EngineSettings(), lambda: "x", [Drf(), Broken(), Priority(), Gang()])
    engine.recovered(1)
    engine.turn(2, [ev.RegisterApplication(1, "app", ApplicationSpec(command="run"))])
    engine.turn(3, [ev.NodeJoined("n1", "b", "n1", Resources(1, 8 * GIB, 0))])
    engine.turn(4, [ev.CreateSession(2, "s", SessionSpec("app")), ev.CreateSession(3, "t", SessionSpec("app"))])
    turn = engine.turn(5, [ev.Submitted(4, "s", "c", 1, 3, b""), ev.Submitted(5, "t", "c", 1, 3, b"")])
    assert len([effect for effect in turn.now if isinstance(effect, fx.StartExecutor)]) == 1
    complaints = [effect.text for effect in turn.now if isinstance(effect, fx.Complain)]
    assert complaints == ["policy broken failed and was skipped: rank: RuntimeError: no idea about s"]
    waiting = next(name for name in ("s", "t") if not engine.sessions[name].executors)
    assert ("policy", "broken") in [reason[:2] for reason in views.explain(engine, waiting).reasons]


# --- nodes by other names -------------------------------------------------------------------------------------------


def node_of(bench: Bench, session: str = "s") -> list[str]:
    return [executor.node.name for executor in bench.engine.sessions[session].executors.values()]


def test_a_node_is_preferred_by_its_name_its_host_or_an_address() -> None:
    bench = Bench()
    for name, address in (("a", "10.0.0.1"), ("b", "10.0.0.2"), ("c", "10.0.0.3")):
        bench.turn(ev.NodeJoined(name, "boot", f"host-{name}", UNIT, addresses=[("InternalIP", address)]))
    for session, wish, expected in (("s1", "10.0.0.3", "c"), ("s2", "host-b", "b"), ("s3", "a", "a")):
        bench.session(session, prefer_nodes=(wish,))
        bench.submit(session)
        assert node_of(bench, session) == [expected]


def test_an_address_that_moved_means_the_node_that_has_it_now() -> None:
    bench = Bench()
    bench.turn(ev.NodeJoined("a", "boot", "host-a", UNIT, addresses=[("InternalIP", "10.0.0.1")]))
    bench.turn(ev.NodeJoined("b", "boot", "host-b", UNIT, addresses=[("InternalIP", "10.0.0.2")]))
    bench.turn(ev.NodeJoined("a", "boot2", "host-a", UNIT, addresses=[("InternalIP", "10.0.0.9")]))
    bench.turn(ev.NodeJoined("b", "boot2", "host-b", UNIT, addresses=[("InternalIP", "10.0.0.1")]))
    bench.session(prefer_nodes=("10.0.0.1",))
    bench.submit()
    assert node_of(bench) == ["b"]

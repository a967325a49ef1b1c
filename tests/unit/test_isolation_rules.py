"""What applications and sessions may ask for, and where such sessions are placed."""

from __future__ import annotations

from typing import Any

import pytest

from engine_builder import Bench
from flame.engine import effects as fx
from flame.engine import events as ev
from flame.engine import obstacles, views
from flame.model.errors import InvalidArgumentError, PermissionDeniedError
from flame.model.isolation import NO_LIMITS, Limits, check, check_doors, check_together, placed, stricter, strictest
from flame.model.resources import Resources
from flame.model.specs import ApplicationSpec, SessionSpec
from flame.model.states import ExecutorState, Shim

MIB = 1024**2


def session(**asked: Any) -> SessionSpec:
    return SessionSpec("app", **asked)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"isolation": "vm"}, "unknown isolation 'vm'"),
        ({"network": "lan"}, "unknown network 'lan'"),
        ({"limits": Limits(memory=1000)}, "limits.memory 1000 is below"),
        ({"limits": Limits(pids=1)}, "limits.pids 1 is below 4"),
        ({"readable_objects": ("data",)}, "readable_objects: invalid object key 'data'"),
        ({"readable_objects": ("data/../x",)}, "readable_objects: the session '..' of an object key could be a path"),
        ({"readable_objects": ("*/x",)}, "readable_objects: an application can't be '\\*'"),
        ({"readable_objects": tuple(f"data/{n}" for n in range(257))}, "has 257 entries, more than 256"),
    ],
)
def test_what_can_not_work_is_refused(asked: dict[str, Any], message: str) -> None:
    values: dict[str, Any] = {"isolation": "", "limits": NO_LIMITS, "network": "", **asked}
    with pytest.raises(InvalidArgumentError, match=message):
        check(**values)
    with pytest.raises(InvalidArgumentError, match=message):
        check_together(ApplicationSpec(), session(**asked))


@pytest.mark.parametrize(
    ("application", "asked", "message"),
    [
        (
            {"isolation": "process"},
            {"isolation": "none"},
            "application app has isolation process; a session of it can't",
        ),
        (
            {"isolation": "microvm"},
            {"isolation": "gvisor"},
            "application app has isolation microvm; a session of it can't",
        ),
        ({"network": "none", "isolation": "process"}, {"network": "host"}, "application app has network none"),
        ({}, {"network": "none"}, "network none needs isolation"),
        ({"limits": Limits(disk=1)}, {}, "limits.disk needs isolation"),
    ],
)
def test_a_session_asks_for_no_less_than_its_application(
    application: dict[str, Any], asked: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        check_together(ApplicationSpec(**application), session(**asked))


DOOR = ("127.0.0.1", 8080)


@pytest.mark.parametrize(
    ("application", "asked", "way"),
    [
        ({"isolation": "process", "network": "host"}, {}, "host"),
        ({"network": "host"}, {"isolation": "gvisor"}, "host"),
        ({"isolation": "microvm"}, {"network": "host"}, "host"),
        ({"isolation": "process"}, {"network": "pypi.org, 127.0.0.1"}, "127.0.0.1"),
        ({"isolation": "process", "network": "0.0.0.0/0:8000-9000"}, {}, "0.0.0.0/0:8000-9000"),
        ({"isolation": "process", "network": "0.0.0.0:8080"}, {}, "0.0.0.0:8080"),
        ({"isolation": "process", "network": "[::1]:8080"}, {}, r"\[::1\]:8080"),
    ],
)
def test_no_network_of_an_isolated_session_leads_to_where_everybody_is_an_administrator(
    application: dict[str, Any], asked: dict[str, Any], way: str
) -> None:
    with pytest.raises(PermissionDeniedError, match=f"network {way} would undo isolation"):
        check_doors(ApplicationSpec(**application), session(**asked), [DOOR])
    check_doors(ApplicationSpec(**application), session(**asked), [])


@pytest.mark.parametrize(
    ("application", "asked"),
    [
        ({"network": "host"}, {}),  # a plain process, which nothing keeps from it
        ({"isolation": "process"}, {}),
        ({"isolation": "process", "network": "host"}, {"network": "none"}),
        ({"isolation": "process", "network": "127.0.0.1:8081, 127.0.0.2, *:8080, localhost:8080"}, {}),
    ],
)
def test_other_networks_are_no_matter_of_the_listeners_of_the_cluster(
    application: dict[str, Any], asked: dict[str, Any]
) -> None:
    check_doors(ApplicationSpec(**application), session(**asked), [DOOR, ("localhost", 8080)])


def test_the_stricter_of_both_holds() -> None:
    application = ApplicationSpec(command="run", limits=Limits(memory=50 * MIB, pids=9), network="host")
    asked = session(isolation="process", limits=Limits(memory=90 * MIB, pids=5, wall_ms=7), network="none")
    check_together(application, asked)
    assert strictest(application, asked) == ApplicationSpec(
        command="run", isolation="process", limits=Limits(memory=50 * MIB, pids=5, wall_ms=7), network="none"
    )
    assert strictest(application, session()) == application
    assert strictest(ApplicationSpec(isolation="process"), session(isolation="gvisor")).isolation == "gvisor"
    assert strictest(ApplicationSpec(isolation="microvm"), session(isolation="microvm")).isolation == "microvm"
    assert stricter(NO_LIMITS, NO_LIMITS) == NO_LIMITS


def test_what_both_let_instances_read_is_added_up() -> None:
    """Who opens a session may read all objects: so may those that they let."""
    application = ApplicationSpec(readable_objects=("data/shared", "models/*"))
    asked = session(readable_objects=("other/s1/object", "data/shared"))
    check_together(application, asked)
    assert strictest(application, asked).readable_objects == ("data/shared", "models/*", "other/s1/object")


@pytest.mark.parametrize(
    ("application", "asked", "selector"),
    [
        ({}, {}, {"zone": "a"}),
        ({"isolation": "process"}, {}, {"zone": "a", "flame.isolation.process": "yes"}),
        ({}, {"isolation": "process"}, {"zone": "a", "flame.isolation.process": "yes"}),
        ({"isolation": "process"}, {"network": "host"}, {"zone": "a", "flame.isolation.process": "yes"}),
        (
            {"isolation": "process", "network": "pypi.org"},
            {"isolation": "gvisor"},
            {"zone": "a", "flame.isolation.gvisor": "yes", "flame.network.gvisor": "yes"},
        ),
        ({}, {"limits": Limits(memory=1 << 30)}, {"zone": "a", "flame.limits": "yes"}),
        ({}, {"limits": Limits(wall_ms=5, output=5)}, {"zone": "a"}),
    ],
)
def test_a_session_is_placed_where_its_wishes_can_be_held(
    application: dict[str, Any], asked: dict[str, Any], selector: dict[str, str]
) -> None:
    spec = session(selector={"zone": "a"}, **asked)
    assert placed(ApplicationSpec(**application), spec).selector == selector


def test_the_label_of_a_node_can_not_be_wished_away() -> None:
    spec = session(selector={"flame.isolation.process": "no"}, isolation="process")
    assert placed(ApplicationSpec(), spec).selector == {"flame.isolation.process": "yes"}


@pytest.mark.parametrize(
    ("shim", "selector"),
    [
        (Shim.HOST, {}),
        (Shim.STDIO, {}),
        (Shim.REST, {}),
        (Shim.WASM, {"flame.shim.wasm": "yes"}),
        (Shim.CONTAINER, {"flame.shim.container": "yes"}),
    ],
)
def test_a_shim_that_needs_something_installed_needs_a_node_that_has_it(shim: Shim, selector: dict[str, str]) -> None:
    assert placed(ApplicationSpec(shim=shim), session()).selector == selector


# --- in the engine ---------------------------------------------------------------------------------------------------


def joins(bench: Bench, name: str, **labels: str) -> fx.Turn:
    return bench.turn(ev.NodeJoined(name, "b1", name, Resources(4, 64 << 30), labels=labels))


def test_only_nodes_that_can_isolate_get_its_executors() -> None:
    bench = Bench()
    joins(bench, "plain", **{"flame.isolation.process": "no"})
    bench.session(isolation="process")
    bench.submit()
    assert not bench.engine.sessions["s"].executors
    turn = joins(bench, "able", **{"flame.isolation.process": "yes"})
    assert [effect.node for effect in turn.now if isinstance(effect, fx.StartExecutor)] == ["able"]


@pytest.mark.parametrize(
    ("selector", "remedy"),
    [({}, "install what is missing there"), ({"zone": "a"}, "change selector")],
)
def test_what_helps_where_no_node_can_isolate(selector: dict[str, str], remedy: str) -> None:
    bench = Bench()
    joins(bench, "plain", zone="b", **{"flame.isolation.process": "no"})
    bench.session(isolation="process", selector=selector)
    bench.submit()
    cluster, node = obstacles.of_session(bench.engine, bench.engine.sessions["s"])[:2]
    assert [cluster[1], node[1]] == ["cluster", "plain"]
    assert remedy in cluster[3]
    assert remedy in node[3]


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (ev.CreateSession(9, "s", SessionSpec("app", network="none")), "network none needs isolation"),
        (ev.RegisterApplication(9, "other", ApplicationSpec(isolation="vm")), "unknown isolation 'vm'"),
        (ev.UpdateApplication(9, "app", ApplicationSpec(network="lan")), "unknown network 'lan'"),
    ],
)
def test_the_engine_refuses_what_can_not_be_held(event: ev.Event, message: str) -> None:
    turn = Bench().turn(event)
    [error] = [reply.error for reply in (*turn.now, *turn.after) if isinstance(reply, fx.Reply)]
    assert error is not None
    assert error.message == message


def test_the_story_of_a_session_tells_what_an_instance_used() -> None:
    bench = Bench()
    bench.node()
    bench.session()
    bench.submit()
    [channel] = bench.engine.sessions["s"].executors
    bench.turn(ev.ExecutorReported(channel, ExecutorState.RELEASED, cpu_ms=1_240, peak_memory=35 << 20, written=9))
    story = [event.message for event in bench.engine.sessions["s"].story]
    [channel] = bench.engine.sessions["s"].executors
    bench.turn(ev.ExecutorReported(channel, ExecutorState.RELEASED, cpu_ms=60, peak_memory=9 << 20, written=1))
    [channel] = bench.engine.sessions["s"].executors
    bench.turn(ev.ExecutorReported(channel, ExecutorState.RELEASED, sent=70, received=8))
    view = views.session(bench.engine, "s")
    assert (view.cpu_ms, view.peak_memory, view.written) == (1_300, 35 << 20, 10)
    assert (view.sent, view.received) == (70, 8)
    used = "1.2 s of processor time and 35 MiB of memory at most, and wrote 9 bytes"
    assert f"executor x1 used {used}" in story
    last = [event.message for event in bench.engine.sessions["s"].story if "went out" in event.message]
    assert [text.partition("; ")[2] for text in last] == ["70 bytes went out and 8 came in"]

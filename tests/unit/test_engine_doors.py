"""Sessions that outlive a session manager, and what that let isolated instances reach, when the next one listens where
whoever comes is an administrator."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from engine_builder import GIB, Bench
from flame.engine import Engine, EngineSettings, views
from flame.engine import effects as fx
from flame.engine import events as ev
from flame.engine.validate import validate
from flame.model.resources import Resources
from flame.model.states import ExecutorState

UNIT = Resources(1, GIB, 0)
NODE = Resources(2, 64 * GIB, 0)
LABELS = {"flame.isolation.process": "yes", "flame.network.process": "yes"}
OPEN_DOOR = EngineSettings(doors=(("127.0.0.1", 8080),))


class Reopened:
    """A session with a running task and one that waits; its node comes back to a session manager with these settings.
    `turns`: the recovery, and what followed."""

    def __init__(self, settings: EngineSettings, **spec: Any) -> None:
        bench = Bench()
        labels = LABELS
        bench.turn(ev.NodeJoined("n1", "b1", "n1", NODE, labels=labels))
        bench.session(max_instances=1, **spec)
        bench.submit(tasks=2)
        (self.channel,) = bench.started()
        bench.bound(self.channel)
        executor = bench.engine.executors[self.channel]
        held = ev.Held(executor.id, self.channel, "s", UNIT, ExecutorState.BOUND, 1, [1])
        self.engine = Engine(settings, lambda: "y")
        for record in bench.log:
            self.engine.replay(record)
        recovered = self.engine.recovered(bench.now)
        joined = self.engine.turn(bench.now + 1, [ev.NodeJoined("n1", "b1", "n1", NODE, labels=labels, held=[held])])
        validate(self.engine)
        later = self.engine.turn(bench.now + 100_000, [ev.Tick()])
        validate(self.engine)
        self.turns = [recovered, joined, later]
        self.journal = [*bench.log, *(record for turn in self.turns for record in turn.records)]

    def of(self, kind: type[fx.Effect]) -> list[Any]:
        return [effect for turn in self.turns for effect in turn.now if isinstance(effect, kind)]

    def reasons(self) -> list[tuple[str, str]]:
        return [(rule, text) for rule, _, text, _, _ in views.explain(self.engine, "s", 0).reasons]


LEADS_HOME = {"isolation": "process", "network": "host"}
WHY = (
    "network host would undo isolation process: it leads to the cluster, which takes whoever comes to 127.0.0.1:8080"
    " for its administrator"
)


def test_a_session_whose_network_leads_to_an_open_door_keeps_no_executor_and_gets_none() -> None:
    found = Reopened(OPEN_DOOR, **LEADS_HOME)
    assert [effect.channel for effect in found.of(fx.StopExecutor)] == [found.channel]
    assert found.of(fx.StartExecutor) == []
    assert found.of(fx.Dispatch) == []
    assert [effect.text for effect in found.of(fx.Complain)] == [f"session s gets no executors: {WHY}"]
    assert found.reasons()[0] == ("network", WHY)
    session = found.engine.sessions["s"]
    assert (session.pending, session.running) == (2, 0)  # its tasks wait for another session manager
    assert views.session(found.engine, "s").pending_reason == WHY


@pytest.mark.parametrize(
    ("settings", "spec"),
    [
        (EngineSettings(), LEADS_HOME),
        (OPEN_DOOR, {"isolation": "process"}),
        (OPEN_DOOR, {"isolation": "process", "network": "pypi.org"}),
        (OPEN_DOOR, {}),
    ],
)
def test_all_others_go_on(settings: EngineSettings, spec: dict[str, Any]) -> None:
    found = Reopened(settings, **spec)
    assert found.of(fx.StopExecutor) == found.of(fx.Complain) == []
    assert found.engine.executors[found.channel].outstanding == {1: 1}


def test_it_goes_on_when_the_door_is_closed_again() -> None:
    found = Reopened(OPEN_DOOR, **LEADS_HOME)
    closed = Engine(msgspec.structs.replace(OPEN_DOOR, doors=()), lambda: "z")
    for record in found.journal:
        closed.replay(record)
    closed.recovered(300_000)
    turn = closed.turn(300_001, [ev.NodeJoined("n1", "b2", "n1", NODE, labels=LABELS)])
    assert [effect.session_id for effect in turn.now if isinstance(effect, fx.StartExecutor)] == ["s"]

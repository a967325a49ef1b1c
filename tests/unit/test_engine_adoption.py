"""Executors that went on while the session manager was away hold tasks that it may never have made durable."""

from __future__ import annotations

import pytest

from engine_builder import GIB, Bench
from flame.engine import Engine
from flame.engine import effects as fx
from flame.engine import events as ev
from flame.engine.validate import validate
from flame.model.resources import Resources
from flame.model.states import ExecutorState, TaskState

UNIT = Resources(1, GIB, 0)
NODE = Resources(1, 64 * GIB, 0)


class Restart:
    """A session whose task 1 was sent to an executor and lost with the session manager, before it was durable."""

    def __init__(self) -> None:
        bench = Bench()
        bench.node(cpu=1)
        bench.session(min_instances=1)
        (channel,) = bench.started()
        bench.bound(channel)
        durable = list(bench.log)
        bench.submit(tasks=1)
        assert bench.running() == {channel: [1]}
        executor = bench.engine.executors[channel]
        self.held = ev.Held(executor.id, channel, "s", UNIT, ExecutorState.BOUND, 1, [1])
        self.channel = channel
        self.now = bench.now
        self.engine = Engine(bench.engine.settings, lambda: "y")
        for record in durable:
            self.engine.replay(record)
        self.engine.recovered(self.now)

    def turn(self, *events: ev.Event) -> fx.Turn:
        self.now += 1
        turn = self.engine.turn(self.now, events)
        validate(self.engine)
        return turn

    def join(self) -> fx.Turn:
        return self.turn(ev.NodeJoined("n1", "b1", "n1", NODE, held=[self.held]))

    def submit(self) -> fx.Turn:
        return self.turn(ev.Submitted(4, "s", "other", 1, 1, b"another input"))


@pytest.mark.parametrize("first", ["join", "submit"])
def test_a_result_of_a_lost_task_is_not_given_to_the_one_that_got_its_number(first: str) -> None:
    restart = Restart()
    turns = [restart.join(), restart.submit()] if first == "join" else [restart.submit(), restart.join()]
    effects = [effect for turn in turns for effect in turn.now]
    given_up = [effect for effect in effects if isinstance(effect, fx.InterruptTasks)]
    assert [(effect.channel, list(effect.task_ids)) for effect in given_up] == [(restart.channel, [1])]
    sent = [effect for effect in effects if isinstance(effect, fx.Dispatch)]
    assert [(effect.channel, part.attempt) for effect in sent for part in effect.parts] == [(restart.channel, 2)]
    session = restart.engine.sessions["s"]
    restart.turn(ev.Completed(restart.channel, [1], b"of the lost task", busy_us=1))
    assert session.states[0] == TaskState.RUNNING
    restart.turn(ev.Completed(restart.channel, [1], b"its own", attempts=[2], busy_us=1))
    assert session.states[0] == TaskState.SUCCEED


def test_what_was_durable_is_taken_up_where_it_runs() -> None:
    bench = Bench()
    bench.node(cpu=1)
    bench.session()
    bench.submit(tasks=1)
    (channel,) = bench.started()
    bench.bound(channel)
    twin = bench.replayed()
    twin.recovered(bench.now)
    held = ev.Held(bench.engine.executors[channel].id, channel, "s", UNIT, ExecutorState.BOUND, 1, [1])
    twin.turn(bench.now + 1, [ev.NodeJoined("n1", "b1", "n1", NODE, held=[held])])
    assert twin.executors[channel].outstanding == {1: 1}
    twin.turn(bench.now + 2, [ev.Completed(channel, [1], b"output", busy_us=1)])
    assert twin.sessions["s"].states[0] == TaskState.SUCCEED

"""Gangs on nodes that are drained."""

from __future__ import annotations

from engine_builder import Bench
from flame.engine import events as ev


def test_a_gang_moves_as_a_whole_when_one_of_its_nodes_is_drained() -> None:
    bench = Bench()
    bench.node("n1", cpu=1)
    bench.node("n2", cpu=1)
    bench.session("g", gang=True, min_instances=2)
    channels = bench.started()
    bench.bound(*channels)
    bench.turn(ev.MarkNode(9, "n1", "drain", 5_000))
    assert not any(executor.coming for executor in bench.engine.executors.values())
    for channel in channels:
        bench.released(channel)
    assert bench.engine.executors == {}
    bench.node("n3", cpu=1)
    assert {executor.node.name for executor in bench.engine.executors.values()} == {"n2", "n3"}

"""How long a pass takes: of the scheduler alone after each kind of event, over an empty cluster, and in the engine."""

from __future__ import annotations

import time
from collections.abc import Callable

from benchmarks.scheduling.clusters import Cluster, Size, full
from benchmarks.scheduling.engines import EngineCluster
from benchmarks.scheduling.happenings import HAPPENINGS
from benchmarks.scheduling.stopwatch import Stopwatch

Figures = dict[str, dict[str, float]]  # what happened -> figures of a Stopwatch


def after_events(size: Size, samples: int, limit_s: float) -> Figures:
    """Each kind of event so many times, or as often as the time allows for each kind."""
    cluster = full(size)
    return sampled({name: lambda timed, act=act: act(cluster, timed) for name, act in HAPPENINGS.items()},
                   samples, limit_s)  # fmt: skip


def in_engine(size: Size, samples: int, limit_s: float) -> Figures:
    """Whole turns of the engine, the pass and what it tells the scheduler among them."""
    cluster = EngineCluster(size)
    return sampled(cluster.happenings(), samples, limit_s)


def sampled(acts: dict[str, Callable[[Stopwatch], None]], samples: int, limit_s: float) -> Figures:
    """The kinds take turns, so that a noisy moment meets all of them; the first of each is not counted."""
    for act in acts.values():
        act(Stopwatch())  # what is remembered from then on is worked out for the first time
    watches = {name: Stopwatch() for name in acts}
    spent = dict.fromkeys(acts, 0.0)
    for _ in range(samples):
        for name, act in acts.items():
            if spent[name] < limit_s:
                began = time.perf_counter()
                act(watches[name])
                spent[name] += time.perf_counter() - began
    return {name: watch.figures() for name, watch in watches.items()}


def first(size: Size, rounds: int) -> dict[str, float]:
    """The first pass over empty nodes, with all sessions waiting."""
    timed = Stopwatch()
    starts = 0
    for _ in range(rounds):
        cluster = Cluster(size)
        cluster.add_nodes()
        cluster.add_sessions()
        with timed:
            starts = len(cluster.decide().starts)
    return timed.figures() | {"starts": starts}


def reasons(size: Size, rounds: int) -> Figures:
    """What lists and `explain` ask: why each waiting session waits, and everything about one of them."""
    cluster = full(size)
    waiting = [name for name, ask in cluster.scheduler.books.asks.items() if ask.lane is not None]
    listing, one = Stopwatch(), Stopwatch()
    for number in range(rounds):
        with listing:
            for name in waiting:
                cluster.scheduler.why(name)
        for name in waiting[number :: max(1, len(waiting) // 10)]:
            with one:
                cluster.scheduler.explain(name)
    return {f"why, {len(waiting):,} waiting sessions": listing.figures(), "explain, one session": one.figures()}

"""Bytes that the scheduler keeps for each node, waiting session and executor."""

from __future__ import annotations

import gc
import tracemalloc

from benchmarks.scheduling.clusters import Cluster, Size


def per_object(size: Size) -> dict[str, float]:
    """Bytes per node (and its room for each shape), session (its spec is the engine's) and executor."""
    tracemalloc.start()
    try:
        cluster = Cluster(size)
        empty = _held()
        cluster.add_nodes()
        nodes = _held()
        cluster.add_sessions()
        sessions = _held()
        cluster.settle()
        executors = _held()
    finally:
        tracemalloc.stop()
    return {
        "node": (nodes - empty) / size.nodes,
        "session": (sessions - nodes) / size.sessions,
        "executor": (executors - sessions) / len(cluster.scheduler.books.holdings),
    }


def _held() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]

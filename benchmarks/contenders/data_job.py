"""The job of the data benchmark: the same steps for every contender, which only says how to do them.

On standard output comes one JSON line with the figures. MB are 10^6 bytes, times are those of the caller.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

LARGE = 100_000_000
SMALL = b"x" * 1024
REPEATS = 7
OPERATIONS = 1000


def large() -> np.ndarray:
    """100 MB that no page is shared of and nothing can compress."""
    return np.random.default_rng(1).integers(0, 256, LARGE, dtype="u1")


def mb_per_s(action: Callable[[], Any], after: Callable[[Any], None] = lambda _: None) -> float:
    """Median speed for the large array after two untimed rounds; `after` is not timed."""
    speeds: list[float] = []
    for number in range(REPEATS + 2):
        started = time.perf_counter()
        result = action()
        took = time.perf_counter() - started
        after(result)
        if number >= 2:
            speeds.append(LARGE / 1e6 / took)
    return statistics.median(speeds)


def per_s(actions: list[Callable[[], Any]]) -> float:
    """How many of them, one after another, in a second."""
    started = time.perf_counter()
    for action in actions:
        action()
    return len(actions) / (time.perf_counter() - started)


def tell(figures: dict[str, float]) -> None:
    """The result of this contender."""
    print(json.dumps({"event": "result", **figures}), flush=True)

"""Ray's object store: ray.put, ray.get, and a get in a worker process."""

from __future__ import annotations

import os
import time

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import numpy as np
import ray
from data_job import LARGE, OPERATIONS, REPEATS, SMALL, large, mb_per_s, per_s, tell


@ray.remote
class Reader:
    """The other process."""

    def read(self, refs: list) -> tuple[float, int]:
        """Seconds that a get took, and the array's sum as proof; inside a list a reference comes as it is."""
        started = time.perf_counter()
        array = ray.get(refs[0])
        took = time.perf_counter() - started
        return took, int(array.sum())


def seconds_elsewhere(array: np.ndarray) -> float:
    """The median of gets in a worker that got another object before."""
    reader = Reader.remote()
    times = []
    for _ in range(REPEATS + 1):
        ref = ray.put(array)
        took, total = ray.get(reader.read.remote([ref]))
        assert total == int(array.sum())
        times.append(took)
        del ref
    return sorted(times[1:])[REPEATS // 2]


def main() -> None:
    """All figures of one run."""
    ray.init(
        num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR", _node_ip_address="127.0.0.1"
    )
    array = large()
    started = time.perf_counter()
    ray.put(array)
    figures = {"first_put_mb_s": LARGE / 1e6 / (time.perf_counter() - started)}
    figures["put_mb_s"] = mb_per_s(lambda: ray.put(array))
    figures["get_elsewhere_ms"] = seconds_elsewhere(array) * 1e3
    figures["small_puts_s"] = per_s([lambda: ray.put(SMALL)] * OPERATIONS)
    refs = [ray.put(SMALL) for _ in range(OPERATIONS)]
    figures["small_gets_s"] = per_s([lambda ref=ref: ray.get(ref) for ref in refs])
    ray.shutdown()
    tell(figures)


if __name__ == "__main__":
    main()

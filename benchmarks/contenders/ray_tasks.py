"""Ray with two CPUs, as its quick start does it: remote functions and ray.get."""

from __future__ import annotations

import os
import time

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ["FLAME_BENCH_MARK"] = str(os.getpid())

import ray
from stage import PAYLOAD, play


@ray.remote
def echo(given: bytes) -> bytes:
    """The job."""
    return given


@ray.remote
def nap(seconds: float) -> None:
    """The 10 ms job."""
    time.sleep(seconds)


def main() -> None:
    """Without the dashboard, which costs memory and nothing else here."""
    ray.init(
        num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR", _node_ip_address="127.0.0.1"
    )

    def many(count: int) -> int:
        return len(ray.get([echo.remote(PAYLOAD) for _ in range(count)]))

    play(
        one=lambda given: ray.get(echo.remote(given)),
        many=many,
        futures=many,
        sleepers=lambda count, seconds: ray.get([nap.remote(seconds) for _ in range(count)]) and None,
    )
    ray.shutdown()


if __name__ == "__main__":
    main()

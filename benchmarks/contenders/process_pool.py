"""concurrent.futures.ProcessPoolExecutor with two processes: no cluster, no durability, the floor of the comparison."""

from __future__ import annotations

import time
from concurrent.futures import ProcessPoolExecutor, wait

from stage import PAYLOAD, play


def echo(given: bytes) -> bytes:
    """The job."""
    return given


def nap(seconds: float) -> None:
    """The 10 ms job."""
    time.sleep(seconds)


def main() -> None:
    """`submit` for each task, as its users write it; `map` with its default chunks of one."""
    with ProcessPoolExecutor(2) as pool:
        play(
            one=lambda given: pool.submit(echo, given).result(),
            many=lambda count: sum(1 for _ in pool.map(echo, (PAYLOAD for _ in range(count)))),
            futures=lambda count: len(wait([pool.submit(echo, PAYLOAD) for _ in range(count)]).done),
            sleepers=lambda count, seconds: list(pool.map(nap, [seconds] * count)) and None,
        )


if __name__ == "__main__":
    main()

"""Dask: scatter to a worker of its own process, and gather from it, over TCP as it always does."""

from __future__ import annotations

import time

from data_job import LARGE, OPERATIONS, SMALL, large, mb_per_s, per_s, tell
from distributed import Client, LocalCluster


def main() -> None:
    """All figures of one run. Without hashing, which takes longer than the transfer."""
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        array = large()
        started = time.perf_counter()
        client.scatter(array, hash=False)
        figures = {"first_put_mb_s": LARGE / 1e6 / (time.perf_counter() - started)}
        figures["put_mb_s"] = figures["tcp_put_mb_s"] = mb_per_s(lambda: client.scatter(array, hash=False))
        future = client.scatter(array, hash=False)
        figures["tcp_get_mb_s"] = mb_per_s(future.result)
        figures["small_puts_s"] = per_s([lambda: client.scatter(SMALL, hash=False)] * OPERATIONS)
        futures = [client.scatter(SMALL, hash=False) for _ in range(OPERATIONS)]
        figures["small_gets_s"] = per_s([one.result for one in futures])
    tell(figures)


if __name__ == "__main__":
    main()

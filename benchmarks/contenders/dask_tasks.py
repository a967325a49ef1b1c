"""Dask.distributed: a LocalCluster of two single-threaded workers, Client.submit and gather."""

from __future__ import annotations

import time

from distributed import Client, LocalCluster
from stage import PAYLOAD, play


def echo(given: bytes) -> bytes:
    """The job."""
    return given


def nap(seconds: float) -> None:
    """The 10 ms job."""
    time.sleep(seconds)


def main() -> None:
    """`pure=False`: every task is one of its own, none is answered from another's result."""
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:

        def many(count: int) -> int:
            return len(client.gather(client.map(echo, [PAYLOAD] * count, pure=False)))

        def futures(count: int) -> int:
            return len(client.gather([client.submit(echo, PAYLOAD, pure=False) for _ in range(count)]))

        play(
            one=lambda given: client.submit(echo, given, pure=False).result(),
            many=many,
            futures=futures,
            sleepers=lambda count, seconds: client.gather(client.map(nap, [seconds] * count, pure=False)) and None,
        )


if __name__ == "__main__":
    main()

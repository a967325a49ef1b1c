"""Flame: the embedded cluster in its default configuration (durable journal, private unix socket)."""

from __future__ import annotations

import os
import sys
from concurrent.futures import wait
from pathlib import Path

import flame
from benchmarks.contenders.stage import PAYLOAD, play
from flame.local import Cluster

SERVICE = Path(__file__).resolve().parent.parent / "echo_service.py"


def main() -> None:
    """Two executors, whatever the machine has. FLAME_BENCH_STORAGE=none leaves the journal out."""
    storage = os.environ.get("FLAME_BENCH_STORAGE") or None
    with Cluster(executors=2, storage=storage) as cluster, flame.connect(cluster.endpoint) as connection:
        connection.register_application(
            "echo", flame.ApplicationAttributes(command=sys.executable, arguments=[str(SERVICE)])
        )
        with connection.create_session("echo", max_instances=2) as session:

            def many(count: int) -> int:
                return sum(1 for _ in session.map(PAYLOAD for _ in range(count)))

            def futures(count: int) -> int:
                made = [session.submit(PAYLOAD) for _ in range(count)]
                return len(wait(made).done)

            def sleepers(count: int, seconds: float) -> None:
                text = f"sleep {seconds}".encode()
                for _ in session.map(text for _ in range(count)):
                    pass

            play(one=session.invoke, many=many, futures=futures, sleepers=sleepers)


if __name__ == "__main__":
    main()

"""`python -m benchmarks.foreign`: an unmodified flamepy client (unary gRPC, ten watchers) against our session manager.

Needs flamepy 0.6.0 in .venv-foreign, which `make foreign` makes. The service speaks our link.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
from pathlib import Path

import flame
from flame.local import Cluster

ROOT = Path(__file__).resolve().parent.parent
SERVICE = ROOT / "benchmarks" / "echo_service.py"
CLIENT = """
import json, sys, time
from concurrent.futures import wait
import flamepy
session = flamepy.create_session("echo")
session.invoke(b"x" * 100)
count = int(sys.argv[1])
started = time.perf_counter()
futures = [session.run(b"x" * 100) for _ in range(count)]
assert len(wait(futures).done) == count
print(json.dumps({"per_s": count / (time.perf_counter() - started)}))
session.close()
"""


def free_ports() -> int:
    """The first of four neighbouring ports below the range of outgoing connections that are free now."""
    for port in range(20_000 + os.getpid() % 5_000, 30_000, 4):
        with contextlib.ExitStack() as stack:
            try:
                for number in range(4):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", port + number))
            except OSError:
                continue
        return port
    raise SystemExit("error: no four neighbouring ports are free on the loopback")


def once(count: int) -> float:
    """Tasks per second of one run on a fresh cluster."""
    port = free_ports()
    with Cluster(executors=2, listen=f"127.0.0.1:{port}") as cluster:
        with flame.connect(cluster.endpoint) as connection:
            command = flame.ApplicationAttributes(command=sys.executable, arguments=[str(SERVICE)])
            connection.register_application("echo", command)
        environment = {**os.environ, "FLAME_ENDPOINT": f"http://127.0.0.1:{port}"}
        done = subprocess.run(
            [ROOT / ".venv-foreign" / "bin" / "python", "-c", CLIENT, str(count)],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
    return float(json.loads(done.stdout)["per_s"])


def main() -> int:
    """Print the median."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.foreign", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tasks", type=int, default=3_000)
    options = parser.parse_args()
    runs = [once(options.tasks) for _ in range(options.rounds)]
    print(f"flamepy 0.6.0: {statistics.median(runs):,.0f} tasks/s, median of {len(runs)} runs of {options.tasks} tasks")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

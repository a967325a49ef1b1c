"""`python -m benchmarks.limits`: many callers, a million tasks, restarts: what the comparison does not show.

Everything runs against the embedded cluster in its default configuration (durable journal), with two executors.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import wait
from pathlib import Path

import flame
from benchmarks.contenders.stage import PAYLOAD, tree
from flame import aio
from flame.local import Cluster

SERVICE = Path(__file__).resolve().parent / "echo_service.py"


def pss_mb(pid: int) -> float:
    """Proportional share of memory of one process, in MB."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")) / 1000


def open_session(connection: flame.Connection) -> flame.Session:
    """A session of the echo service with two warm executors."""
    try:
        connection.register_application(
            "echo", flame.ApplicationAttributes(command=sys.executable, arguments=[str(SERVICE)])
        )
    except flame.AlreadyExistsError:
        pass
    session = connection.create_session("echo", max_instances=2)
    for _ in session.map(PAYLOAD for _ in range(200)):
        pass
    return session


def callers(count: int, seconds: float) -> dict[str, float]:
    """Tasks per second of `count` threads that each wait for their task before the next."""
    with Cluster(executors=2) as cluster, flame.connect(cluster.endpoint) as connection:
        session = open_session(connection)
        done = [0] * count
        until = time.perf_counter() + seconds

        def loop(index: int) -> None:
            while time.perf_counter() < until:
                session.invoke(PAYLOAD)
                done[index] += 1

        threads = [threading.Thread(target=loop, args=(index,)) for index in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        session.close()
    return {f"{count} threads, tasks/s": sum(done) / seconds}


def coroutines(count: int, seconds: float) -> dict[str, float]:
    """The same with `count` coroutines of one event loop."""
    done = 0

    async def play(endpoint: str) -> None:
        async with await aio.connect(endpoint) as connection:
            session = await connection.create_session("echo", max_instances=2)
            async for _ in session.map(PAYLOAD for _ in range(200)):
                pass
            until = time.perf_counter() + seconds

            async def loop() -> None:
                nonlocal done
                while time.perf_counter() < until:
                    await session.invoke(PAYLOAD)
                    done += 1

            await asyncio.gather(*(loop() for _ in range(count)))
            await session.close()

    with Cluster(executors=2) as cluster:
        with flame.connect(cluster.endpoint) as connection:
            open_session(connection).close()
        asyncio.run(play(cluster.endpoint))
    return {f"{count} coroutines, tasks/s": done / seconds}


def million(count: int) -> dict[str, float]:
    """Memory of the manager with `count` queued tasks, how fast they drain, and how fast a restart takes them up."""
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="fl") as folder:
        name = f"bench-{os.getpid()}"
        storage = f"sqlite://{folder}/journal.db"
        cluster = Cluster(executors=2, storage=storage, name=name).start()
        connection = flame.connect(cluster.endpoint)
        connection.register_application("never", flame.ApplicationAttributes(command="sleep", arguments=["36000"]))
        warm = open_session(connection)
        idle = pss_mb(cluster.pid)
        figures["idle, all parts, PSS MB"] = sum(pss_mb(pid) for pid in tree(cluster.pid))
        warm.close()
        # The gate holds the tasks back: no executor is free while its sleepers hold them.
        gate = connection.create_session("echo", min_instances=2, priority=9)
        sleepers = [gate.submit(b"sleep 100000") for _ in range(2)]
        queue = connection.create_session("echo", session_id="queue", max_instances=2)
        started = time.perf_counter()
        futures = [queue.submit(PAYLOAD) for _ in range(count)]
        while True:
            queue.refresh()
            if queue.pending + queue.running + queue.succeed >= count:
                break
            time.sleep(0.05)
        figures["queued, tasks/s"] = count / (time.perf_counter() - started)
        figures["queued, manager above idle, PSS MB"] = pss_mb(cluster.pid) - idle
        for sleeper in sleepers:
            sleeper.cancel()
        gate.close(force=True)
        started = time.perf_counter()
        assert len(wait(futures).done) == count
        figures["drained, tasks/s"] = count / (time.perf_counter() - started)

        gate = connection.create_session("echo", min_instances=2, priority=9)
        sleepers = [gate.submit(b"sleep 100000") for _ in range(2)]
        again = connection.create_session("echo", session_id="again", max_instances=2)
        futures = [again.submit(PAYLOAD) for _ in range(count)]
        while True:
            again.refresh()
            if again.pending + again.running >= count:
                break
            time.sleep(0.05)
        gate.close(force=True)
        before = again.succeed
        os.kill(cluster.pid, signal.SIGKILL)
        started = time.perf_counter()
        cluster.stop()
        cluster = Cluster(executors=2, storage=storage, name=name).start()
        second = flame.connect(cluster.endpoint)
        session = second.open_session("again")
        while session.succeed <= before:
            time.sleep(0.02)
            session.refresh()
        figures["restart with the queue until tasks end, s"] = time.perf_counter() - started
        connection.close()
        session.close(force=True)
        second.close()
        cluster.stop()
    return figures


def restart(tasks: int) -> dict[str, float]:
    """SIGKILL of the cluster under load, supervised restart, until tasks flow again."""
    with tempfile.TemporaryDirectory(prefix="fl") as folder:
        name = f"bench-{os.getpid()}"
        storage = f"sqlite://{folder}/journal.db"
        cluster = Cluster(executors=2, storage=storage, name=name).start()
        with flame.connect(cluster.endpoint) as connection:
            session = open_session(connection)
            results = session.map((PAYLOAD for _ in range(tasks)), window=tasks)
            for _ in range(tasks // 10):
                next(results)
            os.kill(cluster.pid, signal.SIGKILL)
            started = time.perf_counter()
            cluster.stop()
            cluster = Cluster(executors=2, storage=storage, name=name).start()
            count = sum(1 for _ in results)
            took = time.perf_counter() - started
            assert count == tasks - tasks // 10
            started = time.perf_counter()
            assert sum(1 for _ in session.map(PAYLOAD for _ in range(count))) == count
            calm = time.perf_counter() - started
            session.close()
        cluster.stop()
    return {"SIGKILL and restart under load, pause s": took - calm}


def main() -> int:
    """Run each part some times; print medians."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.limits", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--million", type=int, default=1_000_000, metavar="N", help="tasks of the large queue")
    parser.add_argument("--only", choices=["callers", "million", "restart"])
    options = parser.parse_args()
    parts: dict[str, Callable[[], dict[str, float]]] = {
        "callers": lambda: callers(64, 3.0) | coroutines(64, 3.0),
        "restart": lambda: restart(30_000),
        "million": lambda: million(options.million),
    }
    figures: dict[str, list[float]] = {}
    for _ in range(options.rounds):
        for name, part in parts.items():
            if options.only in (None, name):
                for key, value in part().items():
                    figures.setdefault(key, []).append(value)
                    print(f"{key}: {value:,.3g}", file=sys.stderr, flush=True)
    lines = ["| what | median | runs |", "|---|---|---|"]
    lines += [f"| {key} | {statistics.median(values):,.4g} | {len(values)} |" for key, values in figures.items()]
    text = "\n".join(lines) + "\n"
    print(text)
    into = Path(__file__).resolve().parent / "results"
    into.mkdir(exist_ok=True)
    (into / "limits.md").write_text(text)
    (into / "limits.json").write_text(json.dumps(figures, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

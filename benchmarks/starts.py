"""`python -m benchmarks.starts`: how long it takes until executors are bound, cold and with instances started ahead.

The executor manager is the real daemon, and so is the session manager where a session is opened. Where one executor
is looked at, this program is the session manager, so that nothing but the node and the instance is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import yaml

import flame
from flame.link import Frame, Kind, Link, serve, tcp
from flame.proto import link_pb2, shim_pb2, types_pb2

SERVICE = Path(__file__).resolve().parent / "echo_service.py"
MANY = 100
SETTLE_S = 1.0  # after the last process of the pool has begun, so that it is ready and the machine quiet
POLL_S = 0.005
BUDGETS_MS = {"cold": (150, 60), "warm": (200, 50)}  # must, aim


class Stage:
    """A folder, a cluster file, and daemons that end with it."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.port = port
        self.endpoint = f"http://127.0.0.1:{port}"
        self._config = folder / "cluster.yaml"
        executors = {"capacity": "cpu=256,mem=1024g", "warm": {"max_instances": MANY, "idle": 3600}}
        cluster = {
            "name": "bench",
            "endpoint": self.endpoint,
            "storage": f"sqlite://{folder}/journal.db",
            "executors": executors,
        }
        self._config.write_text(yaml.safe_dump({"cluster": cluster}))

    @contextmanager
    def daemon(self, module: str, *arguments: str) -> Generator[subprocess.Popen[str]]:
        """Run one until the end of the context; it is ready then."""
        command = [sys.executable, "-m", module, "--config", str(self._config), *arguments]
        environ = {**os.environ, "HOME": str(self.folder)}
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environ) as run:
            try:
                assert run.stdout is not None
                while "is ready" not in (line := run.stdout.readline()):
                    assert line, f"{module} ended"
                yield run
            finally:
                run.terminate()
                run.communicate()

    def node(self) -> Any:
        """The executor manager."""
        return self.daemon("flame.node.daemon", "--name", "node-1", "--work-dir", str(self.folder / "node"))


class Driver:
    """Takes the session manager's place for one node: starts executors and hears when they are bound."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._channels = count(1)
        self._waiting: dict[tuple[int, int], asyncio.Future[float]] = {}
        self._link: asyncio.Future[Link] = asyncio.get_running_loop().create_future()

    async def open(self) -> None:
        """Listen; `ready` returns when the node is connected."""
        self._server = await serve(tcp("127.0.0.1", self._stage.port + 2), self._accept)

    async def ready(self) -> None:
        await self._link

    async def close(self) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _accept(self, link: Link) -> link_pb2.Welcome:
        link.on_frames = self._on_frames
        self._link.set_result(link)
        return link_pb2.Welcome(max_payload=64 << 20, heartbeat_ms=5000)

    def _on_frames(self, link: Link, frames: list[Frame]) -> None:
        now = time.perf_counter()
        for frame in frames:
            if frame.kind == Kind.REPORT:
                report = link_pb2.Report.FromString(frame.body)
                waiter = self._waiting.pop((frame.channel, report.state), None)
                if waiter is not None:
                    waiter.set_result(now)
                assert not report.code, report

    def _expect(self, channel: int, state: int) -> asyncio.Future[float]:
        waiter: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._waiting[channel, state] = waiter
        return waiter

    def start(self, warm: int) -> tuple[int, asyncio.Future[float]]:
        """Start an executor: its channel, and when it was bound."""
        channel = next(self._channels)
        context = shim_pb2.SessionContext(
            session_id=f"s-{channel}", application=shim_pb2.ApplicationContext(name="echo", command=sys.executable)
        )
        application = types_pb2.ApplicationSpec(command=sys.executable, arguments=[str(SERVICE)], warm_instances=warm)
        start = link_pb2.Start(
            executor_id=f"bench-{os.getpid()}-{channel}", context=context, application=application, token="token"
        )
        bound = self._expect(channel, types_pb2.ExecutorBound)
        self._link.result().send(Kind.START, channel, start.SerializeToString())
        return channel, bound

    async def stop(self, *channels: int) -> None:
        """Stop executors; returns when they are gone."""
        waits = [self._expect(channel, types_pb2.ExecutorReleased) for channel in channels]
        for channel in channels:
            stop = link_pb2.Stop(grace_ms=2000, reason="measured")
            self._link.result().send(Kind.STOP, channel, stop.SerializeToString())
        await asyncio.gather(*waits)


def interpreter_ms() -> float:
    """From the start of an interpreter to the first thing that its program does."""
    reading, writing = os.pipe()
    begun = time.perf_counter()
    pid = os.posix_spawn(
        sys.executable,
        [sys.executable, "-c", "import os; os.write(1, b'.')"],
        os.environ,
        file_actions=[(os.POSIX_SPAWN_DUP2, writing, 1)],
    )
    os.read(reading, 1)
    took = time.perf_counter() - begun
    os.waitpid(pid, 0)
    os.close(reading)
    os.close(writing)
    return took * 1000


def below(pid: int) -> list[int]:
    """The processes that this one has started, and those that they have."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += [int(child), *below(int(child))]
    return found


def fill(node: subprocess.Popen[str], processes: int) -> None:
    """Wait until the node has so many instances."""
    while len(below(node.pid)) - 1 < processes:  # one is the keeper
        time.sleep(0.1)
    time.sleep(SETTLE_S)


async def at_the_node(stage: Stage, singles: int, rounds: int) -> dict[str, list[float]]:
    """Single cold starts, and many warm ones at once, as the node answers them."""
    driver = Driver(stage)
    await driver.open()
    found: dict[str, list[float]] = {"interpreter": [], "cold, all of it": [], "warm at the node": []}
    with stage.node() as node:
        await driver.ready()
        for number in range(-2, singles):  # the first ones fill the caches of the disk
            plain = interpreter_ms()
            begun = time.perf_counter()
            channel, bound = driver.start(0)
            took = (await bound - begun) * 1000
            await driver.stop(channel)
            if number >= 0:
                found["interpreter"].append(plain)
                found["cold, all of it"].append(took)
        first, bound = driver.start(MANY)
        await bound
        for _ in range(rounds):
            await asyncio.to_thread(fill, node, 1 + MANY)
            begun = time.perf_counter()
            started = [driver.start(MANY) for _ in range(MANY)]
            ends = await asyncio.gather(*(bound for _, bound in started))
            found["warm at the node"].append((max(ends) - begun) * 1000)
            await driver.stop(*(channel for channel, _ in started))
        await driver.stop(first)
    await driver.close()
    return found


def with_a_session(stage: Stage, rounds: int) -> dict[str, list[float]]:
    """A session that wants many executors at once, as its client sees them."""
    found: list[float] = []
    with ExitStack() as stack:
        stack.enter_context(stage.daemon("flame.manager.daemon"))
        node = stack.enter_context(stage.node())
        connection = stack.enter_context(flame.connect(stage.endpoint))
        attributes = flame.ApplicationAttributes(
            command=sys.executable, arguments=[str(SERVICE)], warm_instances=MANY, delay_release=0
        )
        connection.register_application("echo", attributes)
        with connection.create_session("echo", min_instances=1, max_instances=1) as session:
            session.invoke(b"")
            for _ in range(rounds):
                fill(node, 1 + MANY)
                begun = time.perf_counter()
                many = connection.create_session("echo", min_instances=MANY)
                while (
                    sum(each.state == flame.ExecutorState.BOUND for each in connection.list_executors(many.id)) < MANY
                ):
                    time.sleep(POLL_S)
                found.append((time.perf_counter() - begun) * 1000)
                many.close()
                while connection.list_executors(many.id):
                    time.sleep(0.05)
    return {"warm, from the client": found}


def table(found: dict[str, list[float]], load: float) -> str:
    """The figures in Markdown; `load` is what the machine did besides."""
    middle = {name: statistics.median(values) for name, values in found.items()}
    rows = [
        ("the interpreter's own start", middle["interpreter"], "", "interpreter"),
        ("cold start, all of it", middle["cold, all of it"], "", "cold, all of it"),
        ("cold start above the interpreter's", middle["cold, all of it"] - middle["interpreter"], "cold", None),
        (f"{MANY} warm executors, START to the last Bound", middle["warm at the node"], "warm", "warm at the node"),
        (f"{MANY} warm executors, for the session's client", middle["warm, from the client"], "warm",
         "warm, from the client"),
    ]  # fmt: skip
    lines = ["| what | median ms | slowest ms | runs | must ms | aim ms |", "|---|---|---|---|---|---|"]
    for title, value, budget, name in rows:
        must, aim = BUDGETS_MS.get(budget, ("", ""))
        slowest, runs = (f"{max(found[name]):.1f}", len(found[name])) if name else ("", "")
        lines.append(f"| {title} | {value:.1f} | {slowest} | {runs} | {must} | {aim} |")
    cores = len(os.sched_getaffinity(0))
    machine = f"{cores} cores, Python {platform.python_version()}"
    note = f"{machine}, loopback, no TLS, durable journal; load average before: {load:.1f}."
    return "\n".join([*lines, "", note]) + "\n"


def main() -> int:
    """Measure, print the table, keep it in `benchmarks/results`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.starts", description=__doc__)
    parser.add_argument("--singles", type=int, default=20, help="cold starts")
    parser.add_argument("--rounds", type=int, default=5, help="starts of many at once")
    parser.add_argument("--port", type=int, default=19_300, help="the first of four free ports")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    found: dict[str, list[float]] = {}
    parts: list[Callable[[Stage], dict[str, list[float]]]] = [
        lambda stage: asyncio.run(at_the_node(stage, options.singles, options.rounds)),
        lambda stage: with_a_session(stage, options.rounds),
    ]
    for part in parts:
        with tempfile.TemporaryDirectory(prefix="fl") as folder:
            found |= part(Stage(Path(folder), options.port))
    text = table(found, load)
    print(text)
    into = Path(__file__).resolve().parent / "results"
    (into / "starts.md").write_text(text)
    (into / "starts.json").write_text(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

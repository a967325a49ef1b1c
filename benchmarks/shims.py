"""`python -m benchmarks.shims`: tasks per second through each shim, one instance, 100-byte payloads that come back.

The executor manager is the real daemon and the instances are real processes. This program is the session manager, so
that nothing but the node and the instance is measured. The ways take turns; medians over the rounds are printed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import NamedTuple

from benchmarks.starts import SERVICE, Stage
from flame.link import Frame, Kind, Link, serve, tcp
from flame.model.errors import FlameError
from flame.model.states import Shim
from flame.proto import link_pb2, shim_pb2, types_pb2

PAYLOAD = b"x" * 100
HELD = 512  # tasks that the instance has or will have, as of a session manager that knows how short they are
BATCH = 128
BUDGET = {"stdio, lines, Python": (10_000, 40_000)}  # must, aim

GRPC = f"import os, runpy; del os.environ['FLAME_INSTANCE_LINK']; runpy.run_path({str(SERVICE)!r}, run_name='__main__')"
LINES = """
import json, sys
for line in sys.stdin:
    task = json.loads(line)
    sys.stdout.write(json.dumps({"task_id": task["task_id"], "output": task["input"]}) + "\\n")
    sys.stdout.flush()
"""
HTTP_SERVER = """
import os
from http.server import BaseHTTPRequestHandler, HTTPServer
class Echo(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True
    def do_GET(self):
        self.answer(b"")
    def do_POST(self):
        self.answer(self.rfile.read(int(self.headers["Content-Length"])))
    def answer(self, body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *words):
        pass
HTTPServer(("127.0.0.1", int(os.environ["PORT"])), Echo).serve_forever()
"""
AIOHTTP = """
import os
from aiohttp import web
async def invoke(request):
    return web.Response(body=await request.read())
app = web.Application()
app.add_routes([web.post("/invoke", invoke)])
web.run_app(app, path=os.environ["FLAME_REST_SOCKET"], print=None, access_log=None)
"""


class Way(NamedTuple):
    """One way to run the echo, and how many tasks are enough to measure it."""

    shim: Shim
    tasks: int
    command: str
    arguments: Sequence[str]
    labels: Sequence[str] = ()


PYTHON = sys.executable
FOLDER = "FOLDER"  # stands for the one of the measurement
WAYS = {
    "host, link": Way(Shim.HOST, 50_000, PYTHON, [str(SERVICE)]),
    "host, gRPC": Way(Shim.HOST, 2_000, PYTHON, ["-c", GRPC]),
    "stdio, framed": Way(Shim.STDIO, 50_000, PYTHON, [str(SERVICE)], ["stdio=framed"]),
    "stdio, lines, Python": Way(Shim.STDIO, 50_000, PYTHON, ["-c", LINES], ["stdio=lines"]),
    "stdio, once, cat": Way(Shim.STDIO, 200, "cat", [], ["stdio=once"]),
    "stdio, once, Python": Way(Shim.STDIO, 50, PYTHON, ["-c", "import sys; sys.stdout.write(sys.stdin.read())"],
                               ["stdio=once"]),
    "wasm": Way(Shim.WASM, 20_000, f"{FOLDER}/echo.wasm", []),
    "rest, http.server, port": Way(Shim.REST, 2_000, PYTHON, ["-c", HTTP_SERVER]),
    "rest, aiohttp, socket": Way(Shim.REST, 2_000, PYTHON, ["-c", AIOHTTP]),
    "rest, aiohttp, socket, 16 at once": Way(Shim.REST, 4_000, PYTHON, ["-c", AIOHTTP], ["concurrency=16"]),
}  # fmt: skip


class Driver:
    """Takes the session manager's place for one node: one executor at a time, always with enough tasks."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._channels = count(1)
        self._link: asyncio.Future[Link] = asyncio.get_running_loop().create_future()
        self._reported: dict[int, asyncio.Future[None]] = {}
        self._channel = 0
        self._left = self._open = 0
        self._next_id = 1
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def open(self) -> None:
        """Listen; `ready` returns when the node is connected."""
        self._server = await serve(tcp("127.0.0.1", self._port + 2), self._accept)

    async def ready(self) -> None:
        await self._link

    async def close(self) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def measure(self, way: Way) -> float:
        """Tasks per second, of an instance that is warm."""
        self._channel = channel = next(self._channels)
        environment = [types_pb2.Environment(name="PYTHONPATH", value=os.pathsep.join(filter(None, sys.path)))]
        application = types_pb2.ApplicationSpec(
            shim=types_pb2.Shim.Name(way.shim.value),
            command=way.command,
            arguments=way.arguments,
            labels=way.labels,
            environments=environment,
        )
        context = shim_pb2.SessionContext(
            session_id=f"s-{channel}", application=shim_pb2.ApplicationContext(name="echo", command=way.command)
        )
        executor_id = f"bench-{os.getpid()}-{channel}"
        start = link_pb2.Start(executor_id=executor_id, context=context, application=application, token="token")
        await self._say(Kind.START, start, types_pb2.ExecutorBound)
        await self._run(max(10, way.tasks // 20))
        took = await self._run(way.tasks)
        await self._say(Kind.STOP, link_pb2.Stop(grace_ms=2000, reason="measured"), types_pb2.ExecutorReleased)
        return way.tasks / took

    async def _say(self, kind: Kind, message: link_pb2.Start | link_pb2.Stop, until: int) -> None:
        reported = self._reported[until] = asyncio.get_running_loop().create_future()
        self._link.result().send(kind, self._channel, message.SerializeToString())
        await reported

    async def _run(self, tasks: int) -> float:
        self._left, self._open = tasks, 0
        self._done = asyncio.get_running_loop().create_future()
        begun = time.perf_counter()
        self._fill()
        await self._done
        return time.perf_counter() - begun

    def _fill(self) -> None:
        while self._left and self._open + min(BATCH, self._left) <= HELD:
            size = min(BATCH, self._left)
            ids = range(self._next_id, self._next_id + size)
            tasks = link_pb2.Tasks(task_ids=ids, inputs=[PAYLOAD] * size)
            self._link.result().send(Kind.TASKS, self._channel, tasks.SerializeToString())
            self._next_id += size
            self._left -= size
            self._open += size

    async def _accept(self, link: Link) -> link_pb2.Welcome:
        link.on_frames = self._on_frames
        link.on_closed = self._on_closed
        self._link.set_result(link)
        return link_pb2.Welcome(max_payload=64 << 20, heartbeat_ms=5000)

    def _on_closed(self, link: Link, error: FlameError | None) -> None:
        """The figures are worth nothing."""
        for waiter in (self._done, *self._reported.values()):
            if not waiter.done():
                waiter.set_exception(error or ConnectionError("the node is gone"))

    def _on_frames(self, link: Link, frames: list[Frame]) -> None:
        for frame in frames:
            if frame.kind == Kind.REPORT:
                report = link_pb2.Report.FromString(frame.body)
                assert not report.code, report
                waiter = self._reported.pop(report.state, None)
                if waiter is not None:
                    waiter.set_result(None)
            elif frame.kind == Kind.RESULTS:
                results = link_pb2.Results.FromString(frame.body)
                assert not results.failures, results.failures[0]
                self._open -= len(results.task_ids)
        self._fill()
        if not self._open and not self._left and not self._done.done():
            self._done.set_result(None)


async def measure(port: int, rounds: int, chosen: Sequence[str]) -> dict[str, list[float]]:
    """The figures of each round, by way."""
    found: dict[str, list[float]] = {name: [] for name in WAYS if not chosen or name.split(",")[0] in chosen}
    with tempfile.TemporaryDirectory(prefix="fl") as folder:
        await asyncio.to_thread(Path(folder, "echo.wasm").write_bytes, echo_component())
        driver = Driver(port)
        await driver.open()
        with Stage(Path(folder), port).node():
            await driver.ready()
            for _ in range(rounds):
                for name, figures in found.items():
                    way = WAYS[name]
                    way = way._replace(command=way.command.replace(FOLDER, folder))
                    figures.append(await driver.measure(way))
        await driver.close()
    return found


def echo_component() -> bytes:
    """One that gives back what it is given, of those that are tested."""
    sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
    from components import ECHO, binary, component

    return binary(component(ECHO))


def table(found: dict[str, list[float]], load: float) -> str:
    """The figures in Markdown; `load` is what the machine did besides."""
    lines = ["| shim | median tasks/s | slowest | fastest | must | aim |", "|---|---|---|---|---|---|"]
    for name, figures in found.items():
        must, aim = (f"{figure:,}" for figure in BUDGET[name]) if name in BUDGET else ("", "")
        middle = statistics.median(figures)
        lines.append(f"| {name} | {middle:,.0f} | {min(figures):,.0f} | {max(figures):,.0f} | {must} | {aim} |")
    machine = f"{len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}"
    rounds = max(map(len, found.values()))
    note = f"{machine}, {rounds} rounds, one instance, 100-byte payloads; load average before: {load:.1f}."
    return "\n".join([*lines, "", note]) + "\n"


def main() -> int:
    """Measure, print the table, keep it in `benchmarks/results`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shims", description=__doc__)
    parser.add_argument("shims", nargs="*", help="host, stdio, wasm, rest; all of them without any")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--port", type=int, default=19_400, help="the first of four free ports")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    found = asyncio.run(measure(options.port, options.rounds, options.shims))
    text = table(found, load)
    print(text)
    into = Path(__file__).resolve().parent / "results"
    (into / "shims.md").write_text(text)
    (into / "shims.json").write_text(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

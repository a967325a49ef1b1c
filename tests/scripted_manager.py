"""A session manager that does what a test says: the other end of an executor manager's link."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import tempfile
import textwrap
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from ssl import SSLContext
from typing import Any, Self

from asyncinotify import Inotify, Mask

from flame.link import Address, Frame, Kind, Link, LinkServer, serve, unix
from flame.model.errors import FlameError
from flame.model.resources import Resources
from flame.model.states import ExecutorState
from flame.node import ExecutorManager, NodeSettings
from flame.proto import frontend_pb2, link_pb2, shim_pb2, types_pb2

SOURCE = Path(__file__).parent.parent / "src"
PATIENCE = 30.0  # how long a test waits for something that must come

# A service that answers with what it got.
ECHO = """
    class Echo(FlameService):
        def on_task_invoke(self, context):
            return context.input
    run(Echo())
"""

NODE_ALONE = """
import asyncio, sys
from pathlib import Path
from flame.link import parse
from flame.node import ExecutorManager, NodeSettings

async def main(manager, folder):
    node = ExecutorManager(NodeSettings(manager=parse(manager), work_dir=folder / "alone", socket_dir=folder / "t"))
    await node.start()
    await asyncio.Event().wait()

asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
"""


class ScriptedManager:
    """Listens for one node and keeps what it says, by channel."""

    def __init__(self, address: Address, ssl: SSLContext | None = None) -> None:
        self.address = address
        self._ssl = ssl
        self.link: Link | None = None
        self.hellos: list[link_pb2.Hello] = []
        self.discard: list[int] = []
        self.heartbeats: list[types_pb2.NodeStatus] = []
        self.reports: dict[int, list[link_pb2.Report]] = {}
        self.results: dict[int, list[link_pb2.Results]] = {}
        self.retracted: dict[int, list[int]] = {}
        self._answers: dict[int, dict[int, bytes | link_pb2.Failure | None]] = {}
        self._server: LinkServer | None = None
        self._news = asyncio.Event()
        self._task_id = 0
        self._run = uuid.uuid4().hex[:12]

    def executor_id(self, channel: int) -> str:
        """Ids of executors are unique on a machine: processes are found by them."""
        return f"{self._run}-{channel}"

    async def open(self) -> None:
        self._server = await serve(self.address, self._accept, ssl=self._ssl)
        self.address = self._server.address

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
            self._server = None

    async def _accept(self, link: Link) -> link_pb2.Welcome:
        self.hellos.append(link.hello)
        self.link = link
        link.on_frames = self._on_frames
        link.on_closed = self._on_closed
        self._news.set()
        return link_pb2.Welcome(max_payload=64 << 20, heartbeat_ms=200, discard=self.discard)

    def _on_closed(self, link: Link, error: FlameError | None) -> None:
        if self.link is link:
            self.link = None
        self._news.set()

    def _on_frames(self, link: Link, frames: list[Frame]) -> None:
        for kind, channel, body, _ in frames:
            if kind == Kind.REPORT:
                self.reports.setdefault(channel, []).append(link_pb2.Report.FromString(body))
            elif kind == Kind.RESULTS:
                self.results.setdefault(channel, []).append(link_pb2.Results.FromString(body))
                self._answered(channel, self.results[channel][-1])
            elif kind == Kind.RETRACTED:
                self.retracted.setdefault(channel, []).extend(link_pb2.Retracted.FromString(body).task_ids)
            elif kind == Kind.NODE_STATUS:
                self.heartbeats.append(types_pb2.NodeStatus.FromString(body))
        self._news.set()

    async def until(self, condition: Callable[[], Any], what: str = "something") -> Any:
        """Wait until the condition gives something true, looking whenever the node said something."""
        try:
            async with asyncio.timeout(PATIENCE):
                while True:
                    found = condition()
                    if found:
                        return found
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise AssertionError(f"waited in vain for {what}; reports: {self.reports}") from None

    # --- to the node -----------------------------------------------------------------------------------------------

    def send(self, kind: Kind, channel: int, message: Any) -> None:
        assert self.link is not None
        self.link.send(kind, channel, message.SerializeToString())

    def start(
        self,
        channel: int,
        command: str,
        *arguments: str,
        env: dict[str, str] | None = None,
        common_data: bytes | None = None,
        start_timeout_ms: int = 0,
        gpus: Sequence[int] = (),
        gang: types_pb2.Gang | None = None,
        memory: int = 1 << 30,
        name: str = "app",
        **spec: Any,
    ) -> str:
        """Start an executor of application `name`, with this in its spec; gives its id."""
        environment = {"PYTHONPATH": str(SOURCE), **(env or {})}
        application = types_pb2.ApplicationSpec(
            command=command,
            arguments=arguments,
            environments=[types_pb2.Environment(name=name, value=value) for name, value in environment.items()],
            start_timeout_ms=start_timeout_ms,
            **spec,
        )
        executor_id = self.executor_id(channel)
        context = shim_pb2.SessionContext(
            session_id=f"session-{channel}",
            application=shim_pb2.ApplicationContext(name=name, command=command),
            common_data=common_data,
        )
        start = link_pb2.Start(
            executor_id=executor_id,
            context=context,
            application=application,
            resreq=types_pb2.ResourceRequirement(cpu=1, memory=memory),
            gpus=gpus,
            token=f"token-{channel}",
            gang=gang,
        )
        self.send(Kind.START, channel, start)
        return executor_id

    def run(
        self, channel: int, *inputs: bytes | None, timeout_ms: int = 0, attempt: int = 1, first: int | None = None
    ) -> list[int]:
        """Send tasks; gives their ids."""
        first = self._task_id + 1 if first is None else first
        ids = list(range(first, first + len(inputs)))
        self._task_id = max(self._task_id, ids[-1])
        tasks = link_pb2.Tasks(
            task_ids=ids,
            inputs=[data or b"" for data in inputs],
            absent=[index for index, data in enumerate(inputs) if data is None],
            attempts=[attempt] * len(ids) if attempt != 1 else (),
            timeout_ms=timeout_ms,
        )
        self.send(Kind.TASKS, channel, tasks)
        return ids

    def cancel(self, channel: int, *task_ids: int, reason: str = "cancelled by the test") -> None:
        ranges = [link_pb2.Range(first=task_id, last=task_id) for task_id in task_ids]
        self.send(Kind.CANCEL, channel, link_pb2.Cancel(task_ids=ranges, reason=reason))

    def stop(self, channel: int, grace_ms: int = 5000, reason: str = "stopped by the test") -> None:
        self.send(Kind.STOP, channel, link_pb2.Stop(grace_ms=grace_ms, reason=reason))

    # --- from the node ---------------------------------------------------------------------------------------------

    async def bound(self, channel: int) -> link_pb2.Report:
        """Wait until the executor is bound; fails when it was released instead."""
        report = await self.until(lambda: self._report(channel, ExecutorState.BOUND, ExecutorState.RELEASED), "bound")
        assert report.state == ExecutorState.BOUND, report
        return report

    async def released(self, channel: int) -> link_pb2.Report:
        return await self.until(lambda: self._report(channel, ExecutorState.RELEASED), "released")

    def _report(self, channel: int, *states: ExecutorState) -> link_pb2.Report | None:
        return next((report for report in self.reports.get(channel, ()) if report.state in states), None)

    def answers(self, channel: int) -> dict[int, bytes | link_pb2.Failure | None]:
        """The result of each task so far: its output, or its failure."""
        return self._answers.setdefault(channel, {})

    def _answered(self, channel: int, results: link_pb2.Results) -> None:
        found = self.answers(channel)
        failures = {failure.index: failure for failure in results.failures}
        for index, (task_id, output) in enumerate(zip(results.task_ids, results.outputs, strict=True)):
            assert task_id not in found, "two results of one task"
            found[task_id] = failures.get(index) or (None if index in results.absent else output)

    async def answered(self, channel: int, task_ids: Sequence[int]) -> list[Any]:
        """Wait for the results of these tasks."""
        await self.until(lambda: set(task_ids) <= self.answers(channel).keys(), f"the results of {task_ids}")
        found = self.answers(channel)
        return [found[task_id] for task_id in task_ids]

    async def read_log(self, **request: Any) -> list[frontend_pb2.LogChunk]:
        assert self.link is not None
        body = frontend_pb2.GetLogsRequest(**request).SerializeToString()
        return [frontend_pb2.LogChunk.FromString(chunk) async for chunk in self.link.stream("ReadLog", body)]


class Node:
    """A scripted manager and a real executor manager connected to it."""

    def __init__(self, folder: Path, settings: NodeSettings) -> None:
        self.folder = folder
        self.manager = ScriptedManager(settings.manager)
        self.executors = ExecutorManager(settings)

    def service(self, source: str, name: str = "service") -> str:
        """Write a service's program; gives its path. `flame.service` is imported, `run(...)` is the program's own."""
        file = self.folder / f"{name}.py"
        file.write_text("import os, sys, time\nfrom flame.service import *\n" + textwrap.dedent(source))
        return str(file)

    def start(self, channel: int, source: str, **options: Any) -> str:
        """Start an executor whose program is this source."""
        return self.manager.start(channel, sys.executable, self.service(source, f"service{channel}"), **options)


@asynccontextmanager
async def a_node(folder: Path, **settings: Any) -> AsyncIterator[Node]:
    """A node that is connected; everything ends with the context."""
    chosen = {
        "manager": unix(folder / "manager"),
        "work_dir": folder / "work",
        "socket_dir": folder / "s",
        "name": "node-1",
        "capacity": Resources(cpu=4, memory=8 << 30),
        "cancel_grace": 0.5,
        "terminate_grace": 0.5,
        "reconnect_min": 0.02,
        **settings,
    }
    node = Node(folder, NodeSettings(**chosen))
    await node.manager.open()
    await node.executors.start()
    try:
        await node.manager.until(lambda: node.manager.link, "the node")
        yield node
    finally:
        await node.executors.stop()
        await node.manager.close()


@asynccontextmanager
async def a_node_here(**settings: Any) -> AsyncIterator[Node]:
    """A node in a folder of its own, with a path that is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="fl", dir="/tmp") as folder:
        async with a_node(Path(folder), **settings) as node:
            yield node


class Births:
    """The processes that wrote their number into a folder, so far."""

    def __init__(self, parent: Path, name: str = "app") -> None:
        self.folder = parent / f"born-{name}"
        self.folder.mkdir()

    @property
    def pids(self) -> set[int]:
        return {int(file.name) for file in self.folder.iterdir()}

    async def until(self, count: int) -> set[int]:
        """Wait until there were so many."""
        with Inotify() as inotify:
            inotify.add_watch(self.folder, Mask.CREATE)
            async with asyncio.timeout(PATIENCE):
                while len(self.pids) < count:
                    await inotify.get()
        return self.pids


class NodeLog(logging.Handler):
    """Lets a test wait for what a node, which runs in the test's event loop, says in its log."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""
        self._news = asyncio.Event()
        self._logger = logging.getLogger("flame.node")

    def __enter__(self) -> Self:
        self._level = self._logger.level
        self._logger.setLevel(logging.DEBUG)
        self._logger.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._logger.removeHandler(self)
        self._logger.setLevel(self._level)

    def emit(self, record: logging.LogRecord) -> None:
        self.text += record.getMessage() + "\n"
        self._news.set()

    async def until(self, text: str) -> None:
        """Wait until the log has this text."""
        async with asyncio.timeout(PATIENCE):
            while text not in self.text:
                self._news.clear()
                await self._news.wait()

    async def waits(self, pids: set[int]) -> None:
        """Wait until all these processes that were started ahead are ready."""
        for pid in pids:
            await self.until(f"process {pid} waits for a session")


async def a_node_apart(node: Node, **environ: str) -> asyncio.subprocess.Process:
    """An executor manager in a process of its own instead of the node's, with this in its environment; returns when it
    is connected."""
    await node.executors.stop()
    program = node.folder / "alone.py"
    program.write_text(NODE_ALONE)
    environ["PYTHONPATH"] = str(SOURCE)
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(program), str(node.manager.address), str(node.folder), env=environ
    )
    await node.manager.until(lambda: len(node.manager.hellos) == 2, "the other node")
    return process


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1])


def descendants(pid: int) -> list[int]:
    """The processes below this one."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                children.setdefault(parent_of(int(folder.name)), []).append(int(folder.name))
    found = list(children.get(pid, ()))
    for each in found:
        found += children.get(each, ())
    return found


async def gone(pid: int) -> None:
    """Wait until a process has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(descriptor, ended.set)
    try:
        await asyncio.wait_for(ended.wait(), PATIENCE)
    except TimeoutError:
        raise AssertionError(f"process {pid} still runs") from None
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def runs(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(") ")[2][0] not in "ZX"


async def appears(file: Path) -> str:
    """Wait until a file is there and has a full line; gives its text."""
    with Inotify() as inotify:
        inotify.add_watch(file.parent, Mask.CREATE | Mask.MODIFY | Mask.MOVED_TO | Mask.CLOSE_WRITE)
        async with asyncio.timeout(PATIENCE):
            while not _text(file).endswith("\n"):
                await inotify.get()
    return _text(file)


def _text(file: Path) -> str:
    return file.read_text() if file.exists() else ""

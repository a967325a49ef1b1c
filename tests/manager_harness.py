"""A session manager in the test's own loop, with nodes and clients that do what the test says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

from google.protobuf.message import Message

from flame.link import Frame, Kind, Link, connect, from_wire, unix
from flame.manager.manager import SessionManager
from flame.manager.settings import ManagerSettings
from flame.model.errors import FlameError
from flame.proto import frontend_pb2, link_pb2, types_pb2

PATIENCE = 20.0
M = TypeVar("M", bound=Message)


class Peer:
    """One connection to the manager and every frame that came over it."""

    def __init__(self, hello: link_pb2.Hello) -> None:
        self.hello = hello
        self.frames: list[Frame] = []
        self.link: Link
        self.end: FlameError | None = None
        self.closed = False
        self._news = asyncio.Event()

    async def open(self, path: Path) -> Self:
        self.closed = False
        self.link = await connect(unix(path), self.hello, on_frames=self._received, on_closed=self._closed)
        return self

    def _received(self, link: Link, frames: list[Frame]) -> None:
        self.frames += frames
        self._news.set()

    def _closed(self, link: Link, error: FlameError | None) -> None:
        self.closed = True
        self.end = error
        self._news.set()

    async def until(self, condition: Callable[[], Any]) -> Any:
        """Wait until the condition gives something true, looking again after each read."""
        async with asyncio.timeout(PATIENCE):
            while not (found := condition()):
                assert not self.closed, f"the connection ended: {self.end}"
                self._news.clear()
                await self._news.wait()
        return found

    async def take(self, kind: Kind, channel: int | None = None) -> Frame:
        """The next frame of this kind (on this channel), which is then forgotten."""

        def find() -> Frame | None:
            for frame in self.frames:
                if frame.kind == kind and channel in (None, frame.channel):
                    return frame
            return None

        frame: Frame = await self.until(find)
        self.frames.remove(frame)
        return frame

    async def ended(self) -> FlameError | None:
        """Wait for the end of the connection; its error."""
        async with asyncio.timeout(PATIENCE):
            while not self.closed:
                self._news.clear()
                await self._news.wait()
        return self.end

    async def round_trip(self) -> None:
        """After this everything that the manager sent before is here."""
        await self.link.call("GetCluster", b"")

    def send(self, kind: Kind, channel: int, message: Message | bytes = b"") -> None:
        self.link.send(kind, channel, message if isinstance(message, bytes) else message.SerializeToString())

    async def close(self) -> None:
        self.link.close()
        await self.link.wait_closed()


class Node(Peer):
    """A node with room for `cpu` executors, which do nothing by themselves."""

    def __init__(self, name: str = "node-1", cpu: int = 1, boot_id: str = "boot", held: Sequence[Any] = ()) -> None:
        capacity = types_pb2.ResourceRequirement(cpu=cpu, memory=cpu << 30)
        status = types_pb2.NodeStatus(state=types_pb2.Ready, capacity=capacity)
        node = link_pb2.NodeHello(node=types_pb2.Node(status=status), boot_id=boot_id, executors=held)
        super().__init__(link_pb2.Hello(role="node", id=name, node=node))

    async def start(self) -> tuple[int, link_pb2.Start]:
        """The next START, answered with Binding and Bound: its channel and message."""
        frame = await self.take(Kind.START)
        for state in (types_pb2.ExecutorBinding, types_pb2.ExecutorBound):
            self.send(Kind.REPORT, frame.channel, link_pb2.Report(state=state, pid=7, concurrency=1))
        return frame.channel, link_pb2.Start.FromString(frame.body)

    async def tasks(self, channel: int) -> link_pb2.Tasks:
        """The next tasks for this executor."""
        return link_pb2.Tasks.FromString((await self.take(Kind.TASKS, channel)).body)

    def answer(self, channel: int, ids: Sequence[int], outputs: Sequence[bytes], **more: Any) -> None:
        self.send(Kind.RESULTS, channel, link_pb2.Results(task_ids=ids, outputs=outputs, busy_us=10, **more))

    def released(self, channel: int, **more: Any) -> None:
        self.send(Kind.REPORT, channel, link_pb2.Report(state=types_pb2.ExecutorReleased, **more))


class Client(Peer):
    """A client of the link."""

    def __init__(self, client_id: str = "client-1", token: str = "") -> None:
        super().__init__(link_pb2.Hello(role="client", id=client_id, token=token))

    async def call(self, method: str, request: Message, answer: type[M]) -> M:
        return answer.FromString(await self.link.call(method, request.SerializeToString()))

    async def call_stream(self, method: str, request: Message, answer: type[M]) -> list[M]:
        return [answer.FromString(body) async for body in self.link.stream(method, request.SerializeToString())]

    async def register(self, name: str, **spec: Any) -> None:
        spec.setdefault("command", "/bin/true")
        request = frontend_pb2.RegisterApplicationRequest(name=name, application=types_pb2.ApplicationSpec(**spec))
        result = await self.call("RegisterApplication", request, types_pb2.Result)
        assert result.return_code == 0, result.message

    async def create(self, session_id: str = "s1", application: str = "app", **spec: Any) -> types_pb2.Session:
        """A session; `app` is registered when it is missing."""
        if application == "app":
            request = frontend_pb2.RegisterApplicationRequest(
                name="app", application=types_pb2.ApplicationSpec(command="/bin/true")
            )
            await self.call("RegisterApplication", request, types_pb2.Result)
        asked = frontend_pb2.CreateSessionRequest(
            session_id=session_id, session=types_pb2.SessionSpec(application=application, **spec)
        )
        return await self.call("CreateSession", asked, types_pb2.Session)

    async def session(self, session_id: str = "s1") -> types_pb2.SessionStatus:
        request = frontend_pb2.GetSessionRequest(session_id=session_id)
        return (await self.call("GetSession", request, types_pb2.Session)).status

    async def attach(self, session_id: str = "s1", channel: int = 1, **more: Any) -> link_pb2.Attached:
        self.send(Kind.ATTACH, channel, link_pb2.Attach(session_id=session_id, **{"next_seq": 1, **more}))
        return link_pb2.Attached.FromString((await self.take(Kind.ATTACHED, channel)).body)

    def submit(self, first_seq: int, *inputs: bytes, channel: int = 1, **more: Any) -> None:
        self.send(Kind.SUBMIT, channel, link_pb2.Submit(first_seq=first_seq, inputs=inputs, **more))

    async def accepted(self, channel: int = 1) -> link_pb2.Accepted:
        return link_pb2.Accepted.FromString((await self.take(Kind.ACCEPTED, channel)).body)

    async def results(self, channel: int = 1) -> link_pb2.Results:
        return link_pb2.Results.FromString((await self.take(Kind.RESULTS, channel)).body)

    async def refused(self, channel: int = 1) -> FlameError:
        """The error that ends this channel."""
        return from_wire(link_pb2.Error.FromString((await self.take(Kind.ERROR, channel)).body))


class World:
    """A running manager and those connected to it."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.path = folder / "m.sock"
        self.settings = ManagerSettings(links=(unix(self.path),), **settings)
        self.manager: SessionManager
        self._peers: list[Peer] = []

    async def start(self) -> None:
        self.manager = SessionManager(self.settings)
        await self.manager.start()

    async def stop(self) -> None:
        await self.manager.stop()

    async def node(self, *arguments: Any, **options: Any) -> Node:
        return await self._open(Node(*arguments, **options))

    async def client(self, *arguments: Any, **options: Any) -> Client:
        return await self._open(Client(*arguments, **options))

    async def _open(self, peer: Any) -> Any:
        self._peers.append(peer)
        return await peer.open(self.path)


@asynccontextmanager
async def a_world(folder: Path, **settings: Any) -> AsyncIterator[World]:
    """A manager that listens on a unix socket in `folder`."""
    world = World(folder, settings)
    async with AsyncExitStack() as stack:
        await world.start()
        stack.push_async_callback(world.stop)
        yield world

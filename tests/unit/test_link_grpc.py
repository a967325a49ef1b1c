"""The gRPC carrier gives the same link as the framed one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest

from flame.link import Frame, Kind, Link
from flame.link.grpc_carrier import connect_grpc, serve_grpc
from flame.model.errors import FlameError, NotFoundError, PermissionDeniedError, ProtocolError, UnavailableError
from flame.proto import link_pb2

HELLO = link_pb2.Hello(role="client", id="c1")


class Server:
    """A gRPC server whose links are kept."""

    def __init__(self) -> None:
        self.links: asyncio.Queue[Link] = asyncio.Queue()
        self.frames: asyncio.Queue[Frame] = asyncio.Queue()
        self.closed: asyncio.Queue[FlameError | None] = asyncio.Queue()
        self.refusal: FlameError | None = None
        self.target = ""

    async def accept(self, link: Link) -> link_pb2.Welcome:
        if self.refusal is not None:
            raise self.refusal
        link.on_frames = lambda _, frames: [self.frames.put_nowait(frame) for frame in frames] and None
        link.on_closed = lambda _, error: self.closed.put_nowait(error)
        link.on_call = self.answer
        self.links.put_nowait(link)
        return link_pb2.Welcome(server_id="server", max_payload=1000)

    def answer(self, link: Link, method: str, request: bytes) -> Any:
        async def numbers() -> AsyncIterator[bytes]:
            for number in range(int(request)):
                yield b"%d" % number

        async def echo() -> bytes:
            return request

        return numbers() if method == "Numbers" else echo()


class Client:
    def __init__(self) -> None:
        self.frames: asyncio.Queue[Frame] = asyncio.Queue()
        self.closed: asyncio.Queue[FlameError | None] = asyncio.Queue()

    async def connect(self, target: str, **options: Any) -> Link:
        return await connect_grpc(
            target,
            HELLO,
            on_frames=lambda _, frames: [self.frames.put_nowait(frame) for frame in frames] and None,
            on_closed=lambda _, error: self.closed.put_nowait(error),
            **options,
        )


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    made = Server()
    rpc = grpc.aio.server()
    serve_grpc(rpc, made.accept)
    made.target = f"127.0.0.1:{rpc.add_insecure_port('127.0.0.1:0')}"
    await rpc.start()
    yield made
    await rpc.stop(None)


async def test_frames_calls_and_streams_pass_both_ways(server: Server) -> None:
    client = Client()
    link = await client.connect(server.target)
    other = await server.links.get()
    assert other.hello.id == "c1"
    assert link.welcome.max_payload == 1000
    assert other.peer.loopback
    link.send(Kind.SUBMIT, 7, b"x" * 100_000, 1)
    assert await server.frames.get() == Frame(Kind.SUBMIT, 7, b"x" * 100_000, 1)
    for number in range(100):
        other.send(Kind.RESULTS, number, b"y")
    assert [(await client.frames.get()).channel for _ in range(100)] == list(range(100))
    assert await link.call("Echo", b"hello") == b"hello"
    assert [reply async for reply in link.stream("Numbers", b"3")] == [b"0", b"1", b"2"]
    link.close()
    await link.wait_closed()
    assert isinstance(await server.closed.get(), UnavailableError)


async def test_the_last_words_of_a_closing_side_arrive(server: Server) -> None:
    client = Client()
    link = await client.connect(server.target)
    other = await server.links.get()
    other.send(Kind.NOTICE, 1, b"last words")
    other.close(NotFoundError("gone"))
    assert isinstance(await client.closed.get(), NotFoundError)
    assert (await client.frames.get()).body == b"last words"
    await link.wait_closed()

    link = await client.connect(server.target)
    other = await server.links.get()
    link.send(Kind.CANCEL, 1, b"last words")
    link.close(ProtocolError("enough"))
    assert (await server.frames.get()).body == b"last words"
    closed = [await server.closed.get() for _ in range(2)]
    assert isinstance(closed[1], ProtocolError)
    await link.wait_closed()


async def test_a_refusal_reaches_the_client(server: Server) -> None:
    server.refusal = PermissionDeniedError("not you")
    with pytest.raises(PermissionDeniedError, match="not you"):
        await Client().connect(server.target)


async def test_nobody_listening_is_unavailable() -> None:
    with pytest.raises(UnavailableError):
        await Client().connect("127.0.0.1:1", timeout=2.0)


async def test_drain_waits_until_a_paused_peer_reads(server: Server) -> None:
    client = Client()
    link = await client.connect(server.target)
    other = await server.links.get()
    other.pause_reading()
    for _ in range(64):
        link.send(Kind.SUBMIT, 1, bytes(1 << 20))
    draining = asyncio.ensure_future(link.drain())
    done, _ = await asyncio.wait([draining], timeout=0.05)
    assert not done
    other.resume_reading()
    await draining
    assert sum([len((await server.frames.get()).body) for _ in range(64)]) == 64 << 20
    link.close()
    await link.wait_closed()


async def test_what_is_no_frame_ends_the_link(server: Server) -> None:
    async with grpc.aio.insecure_channel(server.target) as channel:
        stream: Any = channel.stream_stream("/flame.v1.Link/Connect")()
        await stream.write(b"\xff\xff")
        message = link_pb2.Frame.FromString(await stream.read())
        assert message.kind == Kind.ERROR
        assert link_pb2.Error.FromString(message.body).code == 14
        stream.cancel()

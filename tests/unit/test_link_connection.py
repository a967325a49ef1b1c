"""Links between two ends in one process: greeting, refusal, liveness, flow control, calls, TLS."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from flame import link
from flame.link import Address, Frame, Kind, Link, LinkServer
from flame.link.connection import HIGH_WATER, MAX_PINGS
from flame.link.frames import HEADER_SIZE, encode_header
from flame.model.errors import (
    FlameError,
    InvalidConfigError,
    NotFoundError,
    PermissionDeniedError,
    ProtocolError,
    TimedOutError,
    UnavailableError,
)
from flame.proto import link_pb2

HELLO = link_pb2.Hello(role="client", id="c1")


class End:
    """One side of a link: keeps frames and the closing, lets a test wait for them."""

    def __init__(self) -> None:
        self.link: Link | None = None
        self.frames: list[Frame] = []
        self.arrived = asyncio.Event()
        self.closed: asyncio.Future[FlameError | None] = asyncio.get_running_loop().create_future()

    def on_frames(self, link: Link, frames: list[Frame]) -> None:
        self.frames += frames
        self.arrived.set()

    def on_closed(self, link: Link, error: FlameError | None) -> None:
        self.closed.set_result(error)  # raises when it comes twice

    async def count(self, number: int) -> list[Frame]:
        while len(self.frames) < number:
            self.arrived.clear()
            await self.arrived.wait()
        return self.frames


class Pair:
    """A server with one end per accepted link, and the clients of a test."""

    def __init__(self) -> None:
        self.server: LinkServer
        self.ends: list[End] = []
        self.accepting: Callable[[Link], Awaitable[None]] | None = None
        self.on_call: Callable[[Link, str, bytes], Awaitable[bytes] | AsyncIterator[bytes]] | None = None
        self.heartbeat: float | None = 5.0
        self.clients: list[Link] = []

    async def accept(self, accepted: Link) -> link_pb2.Welcome:
        end = End()
        end.link = accepted
        accepted.on_frames, accepted.on_closed, accepted.on_call = end.on_frames, end.on_closed, self.on_call
        if self.accepting is not None:
            await self.accepting(accepted)
        self.ends.append(end)
        return link_pb2.Welcome(server_id="server", max_payload=1000)

    async def connect(self, **options: object) -> End:
        end = End()
        settings = {"heartbeat": self.heartbeat, **options}
        end.link = await link.connect(
            self.server.address, HELLO, on_frames=end.on_frames, on_closed=end.on_closed, **settings
        )  # type: ignore[arg-type]
        self.clients.append(end.link)
        return end


@pytest.fixture(params=["memory", "unix", "tcp"])
def carried(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def address(carried: str, tmp_path: Path) -> Address:
    return link.tcp("127.0.0.1", 0) if carried == "tcp" else link.unix(tmp_path / "s")


@pytest.fixture
async def pair(carried: str, address: Address) -> AsyncIterator[Pair]:
    pair = Pair()
    pair.server = await link.serve(address, pair.accept, near=carried == "memory")
    yield pair
    for client in pair.clients:
        client.close()
        await client.wait_closed()
    pair.server.close()
    await pair.server.wait_closed()


async def raw(address: Address) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if address.unix:
        return await asyncio.open_unix_connection(address.path)
    return await asyncio.open_connection(address.host, address.port)


async def read_error(reader: asyncio.StreamReader) -> link_pb2.Error:
    """The ERROR frame that ends a link, and the end itself."""
    data = await reader.read()
    assert data[4] == Kind.ERROR
    return link_pb2.Error.FromString(data[HEADER_SIZE:])


# --- greeting --------------------------------------------------------------------------------------------------------


async def test_both_sides_know_each_other_after_the_greeting(pair: Pair) -> None:
    client = await pair.connect()
    accepted = pair.ends[0].link
    assert accepted is not None
    assert client.link is not None
    assert accepted.hello.id == "c1"
    assert client.link.welcome.server_id == "server"
    assert accepted.peer.loopback
    if pair.server.address.unix:
        assert accepted.peer.uid is not None
        assert accepted.peer.pid is not None


async def test_frames_arrive_in_order_both_ways(pair: Pair) -> None:
    client = await pair.connect()
    sent = [Frame(Kind.SUBMIT, number, b"x" * number) for number in range(100)]
    for end, other in ((client, pair.ends[0]), (pair.ends[0], client)):
        assert end.link is not None
        for frame in sent:
            end.link.send(frame.kind, frame.channel, frame.body)
        assert await other.count(100) == sent


async def test_a_refused_link_gets_the_error_and_its_owner_hears_nothing_more(pair: Pair) -> None:
    async def refuse(accepted: Link) -> None:
        raise PermissionDeniedError("not you", remedy="ask somebody")

    pair.accepting = refuse
    with pytest.raises(PermissionDeniedError, match="not you; ask somebody"):
        await pair.connect()
    assert pair.ends == []


async def test_frames_that_accept_sends_come_after_the_welcome(pair: Pair) -> None:
    async def greet(accepted: Link) -> None:
        accepted.send(Kind.NOTICE, 3, b"early")

    pair.accepting = greet
    client = await pair.connect()
    assert await client.count(1) == [Frame(Kind.NOTICE, 3, b"early")]


async def test_a_peer_that_leaves_while_it_is_accepted_is_reported_closed(address: Address) -> None:
    left = asyncio.Event()
    told: asyncio.Future[FlameError | None] = asyncio.get_running_loop().create_future()

    async def accept(accepted: Link) -> link_pb2.Welcome:
        writer.close()
        await accepted.wait_closed()
        accepted.on_closed = lambda _, error: told.set_result(error)
        left.set()
        return link_pb2.Welcome()

    server = await link.serve(address, accept)
    _, writer = await raw(server.address)
    body = link_pb2.Hello(version=1).SerializeToString()
    writer.write(encode_header(Kind.HELLO, 0, len(body)) + body)
    assert isinstance(await told, UnavailableError)
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        encode_header(Kind.SUBMIT, 0, 0),
        encode_header(Kind.HELLO, 1, 0),
        encode_header(Kind.HELLO, 0, 65 * 1024),
        encode_header(Kind.HELLO, 0, 3) + b"\xff\xff\xff",
        encode_header(Kind.HELLO, 0, 2) + link_pb2.Hello(version=9).SerializeToString(),
        encode_header(Kind.HELLO, 0, 2)
        + link_pb2.Hello(version=1).SerializeToString()
        + encode_header(Kind.SUBMIT, 1, 0),
    ],
)
async def test_whoever_does_not_begin_with_a_hello_gets_an_error_and_the_end(pair: Pair, data: bytes) -> None:
    reader, writer = await raw(pair.server.address)
    writer.write(data)
    assert (await read_error(reader)).code == 14
    writer.close()
    assert pair.ends == []


async def test_a_missing_hello_ends_the_link(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flame.link.server.HELLO_TIMEOUT", 0.01)
    reader, writer = await raw(pair.server.address)
    assert "no HELLO" in (await read_error(reader)).message
    writer.close()


async def test_another_version_is_refused_by_the_connecting_side_too(tmp_path: Path) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        body = link_pb2.Welcome(version=2).SerializeToString()
        writer.write(encode_header(Kind.WELCOME, 0, len(body)) + body)
        await reader.read()
        writer.close()

    server = await asyncio.start_unix_server(answer, tmp_path / "s")
    end = End()
    with pytest.raises(ProtocolError, match="version 2"):
        await link.connect(link.unix(tmp_path / "s"), HELLO, on_frames=end.on_frames, on_closed=end.on_closed)
    server.close()
    await server.wait_closed()


async def test_nobody_listening_is_unavailable(tmp_path: Path) -> None:
    end = End()
    for nowhere in (link.unix(tmp_path / "none"), link.tcp("127.0.0.1", 1)):
        with pytest.raises(UnavailableError, match="can't connect"):
            await link.connect(nowhere, HELLO, on_frames=end.on_frames, on_closed=end.on_closed)


async def test_a_silent_listener_is_unavailable_after_the_timeout(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        end = End()
        with pytest.raises(UnavailableError, match="did not answer within"):
            await link.connect(
                link.unix(tmp_path / "s"), HELLO, on_frames=end.on_frames, on_closed=end.on_closed, timeout=0.01
            )


async def test_the_socket_file_is_private_and_goes_with_the_server(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "s"))
    server = await link.serve(link.unix(tmp_path / "s"), Pair().accept)
    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o600
    server.close()
    await server.wait_closed()
    assert not (tmp_path / "s").exists()


async def test_an_address_in_use_is_an_error_of_the_configuration() -> None:
    pair = Pair()
    server = await link.serve(link.tcp("127.0.0.1", 0), pair.accept)
    with pytest.raises(InvalidConfigError, match="can't listen at"):
        await link.serve(server.address, pair.accept)
    server.close()
    await server.wait_closed()


# --- closing and liveness --------------------------------------------------------------------------------------------


async def test_both_sides_hear_once_why_a_link_ended(pair: Pair) -> None:
    client = await pair.connect()
    server_end = pair.ends[0]
    assert client.link is not None
    assert server_end.link is not None
    server_end.link.send(Kind.NOTICE, 1, b"last words")
    server_end.link.close(NotFoundError("gone"))
    assert str(await client.closed) == str(NotFoundError("gone"))
    assert client.frames == [Frame(Kind.NOTICE, 1, b"last words")]
    assert isinstance(await server_end.closed, NotFoundError)
    client.link.send(Kind.SUBMIT, 1, b"into the void")
    client.link.close()
    assert client.link.buffered == 0


async def test_a_plain_close_is_no_error_here_and_unavailable_there(pair: Pair) -> None:
    client = await pair.connect()
    assert client.link is not None
    client.link.close()
    assert await client.closed is None
    assert isinstance(await pair.ends[0].closed, UnavailableError)


async def test_garbage_on_an_open_link_ends_it_with_an_error(pair: Pair) -> None:
    reader, writer = await raw(pair.server.address)
    body = link_pb2.Hello(version=1).SerializeToString()
    writer.write(encode_header(Kind.HELLO, 0, len(body)) + body)
    header = await reader.readexactly(HEADER_SIZE)
    await reader.readexactly(int.from_bytes(header[:4], "little"))
    writer.write(b"\xee" * 64)
    assert (await read_error(reader)).code == 14
    assert isinstance(await pair.ends[0].closed, ProtocolError)
    writer.close()


@pytest.mark.parametrize("kind", [Kind.HELLO, Kind.WELCOME])
async def test_a_second_greeting_ends_the_link(pair: Pair, kind: int) -> None:
    client = await pair.connect()
    assert client.link is not None
    client.link.send(kind, 0)
    assert isinstance(await client.closed, ProtocolError)


async def test_an_exception_in_a_handler_ends_only_its_link(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    client, bystander = await pair.connect(), await pair.connect()
    assert client.link is not None
    assert bystander.link is not None
    assert pair.ends[0].link is not None

    def fail(_: Link, frames: list[Frame]) -> None:
        raise ValueError("a fault of the handler")

    pair.ends[0].link.on_frames = fail
    client.link.send(Kind.SUBMIT, 1)
    assert "ValueError" in str(await client.closed)
    assert "a fault of the handler" in caplog.text
    bystander.link.send(Kind.SUBMIT, 1)
    await pair.ends[1].count(1)


async def test_a_silent_peer_is_given_up(pair: Pair) -> None:
    reader, writer = await raw(pair.server.address)

    async def quicken(accepted: Link) -> None:
        accepted.heartbeat = 0.01

    pair.accepting = quicken
    body = link_pb2.Hello(version=1).SerializeToString()
    writer.write(encode_header(Kind.HELLO, 0, len(body)) + body)
    data = await reader.read()
    assert data.count(encode_header(Kind.PING, 0, 0)) == 2
    writer.close()
    assert "nothing was heard" in str(await pair.ends[0].closed)


async def test_a_peer_that_only_answers_pings_is_alive(pair: Pair) -> None:
    client = await pair.connect(heartbeat=0.005)
    assert client.link is not None
    assert pair.ends[0].link is not None
    # Ten round trips of the other side's clock are more than three silent heartbeats of ours.
    for _ in range(10):
        await asyncio.sleep(0.005)
    assert not client.link.closed
    client.link.send(Kind.SUBMIT, 1)
    await pair.ends[0].count(1)


# --- flow control ----------------------------------------------------------------------------------------------------


async def test_drain_waits_for_a_peer_that_does_not_read(pair: Pair) -> None:
    client = await pair.connect()
    assert client.link is not None
    server_link = pair.ends[0].link
    assert server_link is not None
    server_link.pause_reading()
    body = bytes(1 << 20)
    for _ in range(32):
        client.link.send(Kind.SUBMIT, 1, body)
    draining = asyncio.ensure_future(client.link.drain())
    done, _ = await asyncio.wait([draining], timeout=0.05)
    assert not done
    assert client.link.buffered > link.HIGH_WATER
    server_link.resume_reading()
    await draining
    assert client.link.buffered <= link.HIGH_WATER
    assert [len(frame.body) for frame in await pair.ends[0].count(32)] == [1 << 20] * 32


async def test_drain_returns_when_the_link_is_closed(pair: Pair) -> None:
    client = await pair.connect()
    assert client.link is not None
    assert pair.ends[0].link is not None
    pair.ends[0].link.pause_reading()
    client.link.send(Kind.SUBMIT, 1, bytes(32 << 20))
    draining = asyncio.ensure_future(client.link.drain())
    await asyncio.sleep(0)
    client.link.abort()
    await draining


async def choked(pair: Pair) -> tuple[End, End]:
    """A client that does not read, and its server's end, which has much to say to it."""
    client = await pair.connect()
    client.link.pause_reading()
    [server] = pair.ends
    while server.link.buffered <= HIGH_WATER:
        server.link.send(Kind.RESULTS, 1, bytes(500))
        await asyncio.sleep(0)
    return client, server


async def test_pings_of_a_peer_that_does_not_read_cost_no_memory(pair: Pair) -> None:
    client, server = await choked(pair)
    waiting = server.link.buffered
    client.link.send(Kind.PING, 7)
    client.link.send(Kind.NOTICE, 1, b"behind it")
    await server.count(1)
    assert server.link.buffered <= waiting
    assert not server.link.closed


async def test_a_peer_that_sends_nothing_but_pings_is_thrown_out(pair: Pair) -> None:
    client = await pair.connect()
    for _ in range(MAX_PINGS + 1):
        client.link.send(Kind.PING, 0)
    error = await pair.ends[0].closed
    assert isinstance(error, ProtocolError)
    assert error.message == "more than 100 pings came at once"


async def test_calls_of_a_peer_that_does_not_read_are_not_answered(pair: Pair) -> None:
    asked: list[bytes] = []

    async def answer(link: Link, method: str, request: bytes) -> bytes:
        asked.append(request)
        return bytes(900)

    pair.on_call = answer
    client, server = await choked(pair)
    call = asyncio.get_running_loop().create_task(client.link.call("Echo", b"now"))
    await asyncio.sleep(0)
    client.link.send(Kind.NOTICE, 1, b"behind it")
    await server.count(1)
    assert asked == []
    client.link.resume_reading()
    assert len(await call) == 900
    assert asked == [b"now"]


async def test_refused_calls_of_a_peer_that_does_not_read_end_its_link(pair: Pair) -> None:
    client, server = await choked(pair)  # which serves no calls at all
    client.link.send(Kind.CALL, 1, link_pb2.Call(method="Echo").SerializeToString())
    error = await server.closed
    assert isinstance(error, ProtocolError)
    assert error.message == "the peer goes on calling, and does not read what it is answered"


@pytest.mark.parametrize("kind", [Kind.CALL, Kind.REPLY, Kind.HANGUP, Kind.TAKEN])
async def test_where_no_calls_are_made_they_end_the_link(pair: Pair, kind: Kind) -> None:
    client = await pair.connect()
    [server] = pair.ends
    server.link.refuse_calls()
    client.link.send(kind, 5)
    error = await server.closed
    assert isinstance(error, ProtocolError)
    assert error.message == "no calls are made here"


async def test_a_long_body_arrives_whole(pair: Pair) -> None:
    client = await pair.connect()
    assert client.link is not None
    body = bytes(range(256)) * (40 << 12)
    client.link.send(Kind.SUBMIT, 1, b"before")
    client.link.send(Kind.SUBMIT, 2, body)
    client.link.send(Kind.SUBMIT, 3, b"after")
    frames = await pair.ends[0].count(3)
    assert [frame.body == expected for frame, expected in zip(frames, (b"before", body, b"after"), strict=True)] == [
        True
    ] * 3


# --- calls -----------------------------------------------------------------------------------------------------------


async def test_calls_go_both_ways_at_once(pair: Pair) -> None:
    async def twice(_: Link, method: str, request: bytes) -> bytes:
        return request * 2 if method == "Twice" else b""

    pair.on_call = twice
    client = await pair.connect(on_call=twice)
    assert client.link is not None
    assert pair.ends[0].link is not None
    ours = [client.link.call("Twice", str(n).encode()) for n in range(50)]
    theirs = [pair.ends[0].link.call("Twice", b"x" * n) for n in range(50)]
    assert await asyncio.gather(*ours) == [str(n).encode() * 2 for n in range(50)]
    assert await asyncio.gather(*theirs) == [b"x" * 2 * n for n in range(50)]


async def test_errors_of_a_call_keep_their_kind(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    async def fail(_: Link, method: str, request: bytes) -> bytes:
        if method == "Ours":
            raise NotFoundError("no such thing", remedy="make it")
        raise KeyError("surprise")

    pair.on_call = fail
    client = await pair.connect()
    assert client.link is not None
    with pytest.raises(NotFoundError, match="no such thing; make it"):
        await client.link.call("Ours", b"")
    with pytest.raises(FlameError, match="KeyError"):
        await client.link.call("Theirs", b"")
    assert "surprise" in caplog.text


async def test_a_side_that_serves_no_calls_says_so(pair: Pair) -> None:
    client = await pair.connect()
    assert client.link is not None
    with pytest.raises(NotFoundError, match="GetSession"):
        await client.link.call("GetSession", b"")


async def test_a_call_that_times_out_ends_at_both_sides(pair: Pair) -> None:
    cancelled = asyncio.Event()

    async def hang(_: Link, method: str, request: bytes) -> bytes:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return b""

    pair.on_call = hang
    client = await pair.connect()
    assert client.link is not None
    with pytest.raises(TimedOutError, match="Hang was not answered"):
        await client.link.call("Hang", b"", timeout=0.01)
    await cancelled.wait()


async def test_calls_fail_when_the_link_ends(pair: Pair) -> None:
    started = asyncio.Event()
    cancelled = asyncio.Event()

    async def hang(_: Link, method: str, request: bytes) -> bytes:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return b""

    pair.on_call = hang
    client = await pair.connect()
    assert client.link is not None
    call = asyncio.ensure_future(client.link.call("Hang", b""))
    await started.wait()
    client.link.abort()
    with pytest.raises(UnavailableError):
        await call
    with pytest.raises(UnavailableError):
        await client.link.call("More", b"")
    await cancelled.wait()


class Counting:
    """A stream of replies that knows how far it got and that it was closed."""

    def __init__(self, total: int, size: int) -> None:
        self.total, self.size = total, size
        self.sent = 0
        self.ended = asyncio.Event()

    async def stream(self) -> AsyncIterator[bytes]:
        try:
            for _ in range(self.total):
                self.sent += 1
                yield bytes(self.size)
        finally:
            self.ended.set()


async def test_a_stream_gives_all_replies_and_then_its_error(pair: Pair) -> None:
    async def numbers() -> AsyncIterator[bytes]:
        for number in range(3):
            yield b"%d" % number
        raise NotFoundError("no more")

    pair.on_call = lambda link, method, request: numbers()
    client = await pair.connect()
    assert client.link is not None
    replies = client.link.stream("Numbers", b"")
    assert [await anext(replies) for _ in range(3)] == [b"0", b"1", b"2"]
    with pytest.raises(NotFoundError, match="no more"):
        await anext(replies)


async def test_a_stream_waits_for_a_slow_reader_without_stopping_others(pair: Pair) -> None:
    counting = Counting(10_000, 10_000)

    async def echo(request: bytes) -> bytes:
        return request

    def handle(_: Link, method: str, request: bytes) -> Awaitable[bytes] | AsyncIterator[bytes]:
        return counting.stream() if method == "Count" else echo(request)

    pair.on_call = handle
    client = await pair.connect()
    assert client.link is not None
    replies = client.link.stream("Count", b"")
    assert len(await anext(replies)) == 10_000
    for _ in range(100):
        assert await client.link.call("Echo", b"x") == b"x"
    assert counting.sent <= (1 << 20) / 10_000 + 2
    async for _ in replies:
        pass
    assert counting.sent == 10_000


async def test_a_stream_closed_early_stops_the_other_side(pair: Pair) -> None:
    counting = Counting(1_000_000, 1000)
    pair.on_call = lambda link, method, request: counting.stream()
    client = await pair.connect()
    assert client.link is not None
    replies = client.link.stream("Count", b"")
    await anext(replies)
    await replies.aclose()  # type: ignore[attr-defined]
    await counting.ended.wait()
    assert counting.sent < 1_000_000


async def test_too_many_calls_at_once_are_refused(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flame.link.calls.MAX_SERVED", 2)

    async def hang(_: Link, method: str, request: bytes) -> bytes:
        await asyncio.Event().wait()
        return b""

    pair.on_call = hang
    client = await pair.connect()
    assert client.link is not None
    calls = [asyncio.ensure_future(client.link.call("Hang", b"")) for _ in range(3)]
    with pytest.raises(FlameError, match="more than 2 calls"):
        await calls[2]
    assert not calls[0].done()
    for call in calls[:2]:
        call.cancel()
    await asyncio.wait(calls)


# --- addresses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["unix:/run/x.sock", "tcp:host:80", "tcp:[::1]:80"])
def test_addresses_survive_their_text_form(text: str) -> None:
    assert str(link.parse(text)) == text


@pytest.mark.parametrize(
    "text", ["", "unix:", "tcp:host", "tcp::80", "tcp:h:x", "tcp:h:70000", "http://h:1", "unix:" + "x" * 108]
)
def test_bad_addresses_are_errors_of_the_configuration(text: str) -> None:
    with pytest.raises(InvalidConfigError):
        link.parse(text)

"""The object cache over the link of an instance: both ends of it, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from flame.link import FRAME_SLACK, Link
from flame.link.framed import FramedCarrier
from flame.proto import link_pb2, shim_pb2, types_pb2
from flame.service import switch
from flame.service.wire import FrameBuffer, Wire
from flame.shims.link_dialect import LinkDialect

SECONDS = 20.0
RESULTS = 20
MIB = 1024 * 1024


class Door:
    """Sends back what comes, byte for byte, until the other side closes."""

    def __init__(self) -> None:
        self.path = Path("/nowhere")
        self.served = 0

    def belongs_to(self, session_id: str, readable: Sequence[str] = ()) -> None: ...
    def close(self) -> None: ...

    def adopt(self, connection: socket.socket) -> None:
        self.served += 1
        threading.Thread(target=self._echo, args=(connection,), daemon=True).start()

    def _echo(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(ConnectionError):
            while data := connection.recv(100_000):
                if data == b"end it":
                    return
                connection.sendall(data)


class Owner:
    def __init__(self) -> None:
        self.answers: list[bytes] = []
        self.why: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.all_answered = asyncio.Event()

    def results(self, body: bytes) -> None:
        self.answers.append(body)
        if len(self.answers) == RESULTS:
            self.all_answered.set()

    def retracted(self, body: bytes) -> None: ...

    def broken(self, why: str) -> None:
        if not self.why.done():
            self.why.set_result(why)


async def dialect_at(sock: socket.socket, door: Door | None) -> LinkDialect:
    """The executor manager's end of a link whose greeting is over."""
    sock.setblocking(False)
    link = Link(lambda link, frames: None, max_frame=MIB + FRAME_SLACK, heartbeat=None)

    def carrier() -> asyncio.Protocol:
        made = FramedCarrier(link, MIB + FRAME_SLACK)
        link.carry(made)
        return made

    await asyncio.get_running_loop().create_unix_connection(carrier, sock=sock)
    dialect = LinkDialect(link, Owner(), door)
    link.open(link_pb2.Welcome(max_payload=MIB))
    return dialect


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def at(environ: dict[str, str]) -> socket.socket:
    """A connection to where the environment says that the object cache is."""
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(SECONDS)
    sock.connect(environ["FLAME_CACHE_ENDPOINT"].removeprefix("relay:"))
    return sock


def exchanged(sock: socket.socket, data: bytes) -> bool:
    """Whether what is sent comes back."""
    sender = threading.Thread(target=sock.sendall, args=(data,), daemon=True)
    sender.start()
    found = bytearray()
    while len(found) < len(data) and (piece := sock.recv(100_000)):
        found += piece
    sender.join(SECONDS)
    return bytes(found) == data


async def test_connections_and_frames_share_a_link(ends: tuple[socket.socket, socket.socket], tmp_path: Path) -> None:
    door, environ = Door(), {"TMPDIR": str(tmp_path)}
    dialect = await dialect_at(ends[0], door)
    loop = switch.begin(ends[1], environ)
    wire = Wire(loop)

    def run_loop() -> None:
        """Enters, answers with large results while connections are busy, and leaves."""
        seen: list[tuple[int, bytes]] = []
        while not any(kind == link_pb2.LEAVE for kind, _ in seen):
            for kind, body in wire.read(wait=True):
                seen.append((kind, body))
                if kind == link_pb2.ENTER:
                    wire.write(link_pb2.ENTERED, types_pb2.Result().SerializeToString())
                    for number in range(RESULTS):
                        wire.write(link_pb2.RESULTS, bytes([number]) * MIB)
        wire.write(link_pb2.LEFT, types_pb2.Result().SerializeToString())

    running = asyncio.to_thread(run_loop)
    payload = os.urandom(3 * MIB)
    owner = dialect.owner
    assert isinstance(owner, Owner)

    def busy() -> bool:
        with at(environ) as sock:
            return exchanged(sock, payload)

    async with asyncio.timeout(SECONDS):
        work = asyncio.gather(running, *(asyncio.to_thread(busy) for _ in range(20)))
        await dialect.enter(shim_pb2.SessionContext(session_id="s", common_data=bytes(MIB)))
        await owner.all_answered.wait()
        await dialect.leave()
        assert (await work)[1:] == [True] * 20
    assert [body[0] for body in owner.answers] == list(range(RESULTS))
    assert all(len(body) == MIB for body in owner.answers)
    dialect.close()
    loop.close()


async def test_either_side_ends_a_connection(ends: tuple[socket.socket, socket.socket], tmp_path: Path) -> None:
    door, environ = Door(), {"TMPDIR": str(tmp_path)}
    dialect = await dialect_at(ends[0], door)
    loop = switch.begin(ends[1], environ)

    def use() -> list[bytes]:
        found: list[bytes] = []
        for _ in range(40):  # more than there may be at once
            with at(environ) as sock:
                sock.sendall(b"hello")
                found.append(sock.recv(100))
        with at(environ) as sock:
            sock.sendall(b"end it")
            found.append(sock.recv(100))
        return found

    assert await asyncio.wait_for(asyncio.to_thread(use), SECONDS) == [b"hello"] * 40 + [b""]
    assert door.served == 41
    dialect.close()
    loop.close()


async def test_what_is_said_last_leaves_before_the_process_ends(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    script = f"""
import os, socket
from flame.service import switch
loop = switch.begin(socket.socket(fileno={theirs.fileno()}), {{"TMPDIR": {str(tmp_path)!r}}})
loop.sendall(b"x" * 3_000_000 + b"last")
"""
    with theirs:
        child = await asyncio.create_subprocess_exec(sys.executable, "-c", script, pass_fds=[theirs.fileno()])
    with ours:
        found = bytearray()
        ours.setblocking(False)
        while data := await asyncio.get_running_loop().sock_recv(ours, 100_000):
            found += data
    assert await child.wait() == 0
    assert len(found) == 3_000_004
    assert found.endswith(b"last")


async def test_when_the_link_ends_everybody_hears_of_it(
    ends: tuple[socket.socket, socket.socket], tmp_path: Path
) -> None:
    environ = {"TMPDIR": str(tmp_path)}
    dialect = await dialect_at(ends[0], Door())
    loop = switch.begin(ends[1], environ)
    loop.settimeout(SECONDS)
    with at(environ) as sock:
        assert await asyncio.to_thread(exchanged, sock, b"hello")
        dialect.close()
        assert await asyncio.to_thread(sock.recv, 1) == b""
    assert await asyncio.to_thread(loop.recv, 1) == b""
    loop.close()


# --- instances that do not keep to it --------------------------------------------------------------------------------


def frame(kind: int, channel: int, body: bytes = b"") -> bytes:
    return struct.pack("<IBBHI", len(body), kind, 0, 0, channel) + body


_TOOK = link_pb2.Taken(bytes=99).SerializeToString()
LIES = {
    "channel 0": (frame(link_pb2.OBJECTS, 0, b"x"), "may not send objects here"),
    "too many": (b"".join(frame(link_pb2.OBJECTS, n, b"x") for n in range(1, 30)), "more than 16 connections"),
    "took what nobody sent": (
        frame(link_pb2.OBJECTS, 1, b"x") + frame(link_pb2.OBJECTS_TAKEN, 1, _TOOK),
        "took more than it was sent",
    ),
    "no Taken": (frame(link_pb2.OBJECTS, 1, b"x") + frame(link_pb2.OBJECTS_TAKEN, 1, b"\xff" * 9), "no valid message"),
    "ahead": (frame(link_pb2.OBJECTS, 1, bytes(300_000)), "sent more than 262144 bytes ahead"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
async def test_an_instance_that_breaks_the_rules_is_ended(ends: tuple[socket.socket, socket.socket], lie: str) -> None:
    dialect = await dialect_at(ends[0], Door())
    data, why = LIES[lie]
    await asyncio.to_thread(ends[1].sendall, data)
    owner = dialect.owner
    assert isinstance(owner, Owner)
    assert why in await asyncio.wait_for(owner.why, SECONDS)


async def test_without_a_cache_nobody_may_ask_for_objects(ends: tuple[socket.socket, socket.socket]) -> None:
    dialect = await dialect_at(ends[0], None)
    ends[1].sendall(frame(link_pb2.OBJECTS, 1, b"x"))
    owner = dialect.owner
    assert isinstance(owner, Owner)
    assert "may not send objects here" in await asyncio.wait_for(owner.why, SECONDS)


async def test_frames_of_a_connection_that_has_ended_are_dropped(ends: tuple[socket.socket, socket.socket]) -> None:
    door = Door()
    dialect = await dialect_at(ends[0], door)
    ends[1].sendall(frame(link_pb2.OBJECTS, 1, b"end it"))
    ends[1].setblocking(False)
    loop, buffer = asyncio.get_running_loop(), FrameBuffer()
    kinds: list[tuple[int, bytes]] = []
    async with asyncio.timeout(SECONDS):
        while (link_pb2.OBJECTS, b"") not in kinds:
            kinds += buffer.feed(await loop.sock_recv(ends[1], 1000))
        await loop.sock_sendall(ends[1], frame(link_pb2.OBJECTS, 1, b"x") + frame(link_pb2.OBJECTS, 2, b"hello"))
        while (link_pb2.OBJECTS, b"hello") not in kinds:
            kinds += buffer.feed(await loop.sock_recv(ends[1], 1000))
    assert door.served == 2
    dialect.close()

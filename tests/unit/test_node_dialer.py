"""Which way a node takes to its session manager."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import grpc.aio
import pytest

from flame.link import Address, Frame, Link, LinkServer, serve, tcp
from flame.link.grpc_carrier import serve_grpc
from flame.model.errors import PermissionDeniedError, UnavailableError
from flame.node.dialer import Dialer
from flame.node.settings import NodeSettings
from flame.proto import link_pb2


class Doors:
    """A session manager's two listeners. `entered` says by which of them each link came; the framed one may be shut."""

    def __init__(self) -> None:
        self.entered: list[str] = []
        self.refusal: PermissionDeniedError | None = None
        self._framed: LinkServer | None = None
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.address: Address = tcp("127.0.0.1", probe.getsockname()[1])
        self._grpc = grpc.aio.server()
        serve_grpc(self._grpc, self._by_grpc)
        self.grpc = tcp("127.0.0.1", self._grpc.add_insecure_port("127.0.0.1:0"))

    async def _by_link(self, link: Link) -> link_pb2.Welcome:
        if self.refusal is not None:
            raise self.refusal
        self.entered.append("framed")
        return link_pb2.Welcome()

    async def _by_grpc(self, link: Link) -> link_pb2.Welcome:
        self.entered.append("grpc")
        return link_pb2.Welcome()

    async def start(self) -> None:
        await self._grpc.start()

    async def open(self) -> None:
        self._framed = await serve(self.address, self._by_link)

    async def shut(self) -> None:
        if self._framed is not None:
            self._framed.close()
            await self._framed.wait_closed()
            self._framed = None

    async def stop(self) -> None:
        await self.shut()
        await self._grpc.stop(None)


@pytest.fixture
async def doors() -> AsyncIterator[Doors]:
    made = Doors()
    await made.start()
    yield made
    await made.stop()


class Caller:
    """A node that dials and hangs up."""

    def __init__(self, doors: Doors, *, grpc: bool = True) -> None:
        target = doors.grpc if grpc else None
        self.hellos = 0
        self._dialer = Dialer(NodeSettings(manager=doors.address, grpc=target, work_dir=Path("unused")))

    async def call(self) -> None:
        link = await self._dialer.dial(self._hello, self._nothing, lambda *_: None, self._unasked)
        link.close()
        await link.wait_closed()

    def _hello(self) -> link_pb2.Hello:
        self.hellos += 1
        return link_pb2.Hello(role="node", id="n", node=link_pb2.NodeHello())

    def _nothing(self, link: Link, frames: list[Frame]) -> None:
        raise AssertionError("nothing was to come")

    async def _unasked(self, link: Link, method: str, request: bytes) -> bytes:
        raise AssertionError("nothing was to be asked")


async def test_the_framed_link_is_preferred(doors: Doors) -> None:
    await doors.open()
    await Caller(doors).call()
    assert doors.entered == ["framed"]


async def test_over_grpc_until_the_framed_link_works(doors: Doors) -> None:
    caller = Caller(doors)
    await caller.call()
    await caller.call()
    await doors.open()
    await caller.call()
    assert doors.entered == ["grpc", "grpc", "framed"]
    assert caller.hellos == 5  # what a node holds may have changed between two attempts


async def test_where_the_framed_link_worked_it_is_waited_for(doors: Doors) -> None:
    """A session manager that starts again must not find its nodes on the slow way for ever."""
    await doors.open()
    caller = Caller(doors)
    await caller.call()
    await doors.shut()
    with pytest.raises(UnavailableError, match="can't connect to tcp:"):
        await caller.call()
    assert doors.entered == ["framed"]


async def test_a_refusal_is_no_reason_to_try_another_door(doors: Doors) -> None:
    await doors.open()
    doors.refusal = PermissionDeniedError("not you")
    with pytest.raises(PermissionDeniedError, match="not you"):
        await Caller(doors).call()
    assert doors.entered == []


async def test_without_another_door_the_first_failure_is_the_last(doors: Doors) -> None:
    with pytest.raises(UnavailableError, match="can't connect to tcp:"):
        await Caller(doors, grpc=False).call()
    assert doors.entered == []


async def test_where_nobody_listens_the_link_s_failure_is_told(doors: Doors) -> None:
    await doors.stop()
    with pytest.raises(UnavailableError, match="can't connect to tcp:") as caught:
        await Caller(doors).call()
    assert "gRPC" not in caught.value.message


async def test_both_failures_are_told(doors: Doors) -> None:
    """Somebody listens there who does not speak gRPC."""
    await doors.stop()
    stranger = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", doors.grpc.port)
    async with stranger:
        with pytest.raises(UnavailableError, match=r"can't connect to tcp:.*; and over gRPC at 127.0.0.1:\d+: "):
            await Caller(doors).call()

"""The proxy of an instance's network: what it carries, what it refuses, and nonsense."""

from __future__ import annotations

import asyncio
import select
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_address
from pathlib import Path

import pytest

from flame.model.network import Address, parse
from flame.shims import egress_proxy
from flame.shims.egress_proxy import CARRIED, Proxy, look_up
from flame.shims.isolation import PROXY_LIMITS

Handle = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Stage:
    """A proxy that listens, and what it said."""

    def __init__(self, network: str, hosts: dict[str, Sequence[str]]) -> None:
        self.log: list[str] = []
        self.looked_up: list[str] = []
        self._hosts = hosts
        self.carried = bytearray(CARRIED.size)
        self.proxy = Proxy(parse(network), self._resolve, self.log.append, self.carried)

    async def _resolve(self, name: str, port: int) -> list[Address]:
        self.looked_up.append(name)
        if name not in self._hosts:
            raise OSError("no such name")
        return [ip_address(address) for address in self._hosts[name]]

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def ask(self, data: bytes) -> bytes:
        """Send it, and read to the end."""
        reader, writer = await self.connect()
        writer.write(data)
        answer = await reader.read()
        writer.close()
        return answer


@asynccontextmanager
async def a_stage(network: str, **hosts: Sequence[str]) -> AsyncGenerator[Stage]:
    """`hosts` are names, with _ for their dots, and what they stand for."""
    stage = Stage(network, {name.replace("_", "."): addresses for name, addresses in hosts.items()})
    async with a_server(stage.proxy.serve) as stage.port:
        yield stage


@asynccontextmanager
async def a_server(handle: Handle) -> AsyncGenerator[int]:
    """The port of a server on the loopback. All of its connections have ended afterwards."""
    serving: set[asyncio.Task[None]] = set()

    async def noted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(task := asyncio.current_task())
        task.add_done_callback(serving.discard)
        await handle(reader, writer)
        await writer.wait_closed()

    async with await asyncio.start_server(noted, "127.0.0.1", 0, limit=32 * 1024) as server:
        yield server.sockets[0].getsockname()[1]
        await asyncio.gather(*serving, return_exceptions=True)


@asynccontextmanager
async def a_web_server() -> AsyncGenerator[tuple[int, list[bytes]]]:
    """Answers one request; the heads that it got."""
    heads: list[bytes] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(ANSWER)
        writer.close()

    async with a_server(handle) as port:
        yield port, heads


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


# --- what is carried -------------------------------------------------------------------------------------------------


async def test_a_request_goes_where_its_url_says() -> None:
    async with a_web_server() as (port, heads), a_stage("web.test, 127.0.0.0/8", web_test=["127.0.0.1"]) as stage:
        request = (
            f"GET http://web.test:{port}/a/b?c=d#e HTTP/1.1\r\nHost: other.test\r\nAccept: x\r\n"
            "Proxy-Authorization: secret\r\nProxy-Connection: keep-alive\r\nConnection: keep-alive\r\n\r\n"
        )
        assert await stage.ask(request.encode()) == ANSWER
        head = f"GET /a/b?c=d HTTP/1.1\r\nHost: web.test:{port}\r\nAccept: x\r\nConnection: close\r\n\r\n"
        assert heads == [head.encode()]
        assert stage.log == []


async def test_a_url_without_a_path() -> None:
    async with a_web_server() as (port, heads), a_stage("127.0.0.1") as stage:
        await stage.ask(f"HEAD http://127.0.0.1:{port} HTTP/1.0\r\n\r\n".encode())
        await stage.ask(f"GET http://127.0.0.1:{port}?q HTTP/1.0\r\n\r\n".encode())
        assert [head.split(b" ")[1] for head in heads] == [b"/", b"/?q"]


async def test_a_body_goes_with_its_request() -> None:
    bodies: list[bytes] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        bodies.append(await reader.readexactly(200_000))
        writer.write(ANSWER)
        writer.close()

    async with a_server(handle) as port, a_stage("127.0.0.1") as stage:
        head = f"POST http://127.0.0.1:{port}/ HTTP/1.1\r\nContent-Length: 200000\r\n\r\n".encode()
        assert await stage.ask(head + b"x" * 200_000) == ANSWER
        assert bodies == [b"x" * 200_000]


async def test_a_tunnel_carries_both_ways_until_both_have_ended() -> None:
    async with a_server(echo) as port, a_stage("web.test, 127.0.0.1", web_test=["127.0.0.1"]) as stage:
        reader, writer = await stage.connect()
        writer.write(f"CONNECT web.test:{port} HTTP/1.1\r\nHost: web.test\r\n\r\n".encode())
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 200 Connection established\r\n\r\n"
        data = bytes(range(256)) * 20_000

        async def send() -> None:
            writer.write(data)
            await writer.drain()
            writer.write_eof()

        received, _ = await asyncio.gather(reader.read(-1), send())
        assert received == data
        writer.close()
        assert stage.proxy.total() == (
            f"network: 1 connections, 0 refused; {len(data)} bytes out, {len(data)} bytes in"
        )
        assert CARRIED.unpack(stage.carried) == (len(data), len(data))


def socks(port: int, host: str = "", address: str = "", command: int = 1) -> bytes:
    where = bytes([3, len(host)]) + host.encode() if host else bytes([1]) + ip_address(address).packed
    return b"\5\1\0" + bytes([5, command, 0]) + where + struct.pack(">H", port)


@pytest.mark.parametrize("where", [{"host": "web.test"}, {"address": "127.0.0.1"}])
async def test_socks(where: dict[str, str]) -> None:
    async with a_server(echo) as port, a_stage("web.test, 127.0.0.1", web_test=["127.0.0.1"]) as stage:
        reader, writer = await stage.connect()
        writer.write(socks(port, **where))
        assert await reader.readexactly(12) == b"\5\0\5\0\0\1\0\0\0\0\0\0"
        writer.write(b"through")
        assert await reader.readexactly(7) == b"through"
        writer.close()


async def test_of_the_addresses_of_a_name_only_those_that_may_be_reached_are_tried() -> None:
    async with a_server(echo) as port:
        found = ["169.254.169.254", "10.0.0.1", "127.0.0.1"]
        async with a_stage("web.test, 127.0.0.1", web_test=found) as stage:
            reader, writer = await stage.connect()
            writer.write(f"CONNECT web.test:{port} HTTP/1.1\r\n\r\n".encode())
            assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
            writer.close()
            # Once: what a second look might say is never used.
            assert stage.looked_up == ["web.test"]


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("other.test:443", "other.test:443: it is not listed"),
        ("web.test:80", "web.test:80: web.test:443 does not list port 80"),
        ("127.0.0.1:443", "127.0.0.1:443: 127.0.0.1 is no public address, and not listed as an address"),
        ("169.254.169.254:80", "169.254.169.254 is no public address"),
        ("[::1]:443", "::1:443: ::1 is no public address"),
        ("web.test:443", "web.test:443, which web.test:443 lists: 127.0.0.1 is no public address"),
        ("clouds.test:80", "clouds.test:80, which clouds.test:80 lists: 169.254.169.254 is no public address"),
        ("127.1:443", "127.1:443: it is not listed"),
    ],
)
async def test_what_is_not_listed(where: str, words: str) -> None:
    hosts = {"web_test": ["127.0.0.1"], "clouds_test": ["169.254.169.254"]}
    async with a_stage("web.test:443, clouds.test:80", **hosts) as stage:
        for request in (f"CONNECT {where} HTTP/1.1\r\n\r\n", f"GET http://{where}/ HTTP/1.1\r\n\r\n"):
            answer = (await stage.ask(request.encode())).decode()
            assert answer.startswith("HTTP/1.1 403 Forbidden\r\n")
            assert f"refused by the network policy: {words}" in answer or f" {words}" in answer
        assert len(stage.log) == 1
        assert stage.log[0].startswith("network: refused ")
        assert stage.proxy.refused == 2


async def test_names_that_are_not_listed_are_not_even_looked_up() -> None:
    async with a_stage("web.test") as stage:
        await stage.ask(b"CONNECT secret-words.evil.test:443 HTTP/1.1\r\n\r\n")
        assert stage.looked_up == []


async def test_socks_is_refused_alike() -> None:
    async with a_stage("web.test") as stage:
        assert await stage.ask(socks(443, host="other.test")) == b"\5\0\5\2\0\1\0\0\0\0\0\0"
        assert await stage.ask(socks(443, address="169.254.169.254")) == b"\5\0\5\2\0\1\0\0\0\0\0\0"
        assert await stage.ask(socks(443, host="web.test", command=2)) == b"\5\0\5\7\0\1\0\0\0\0\0\0"
        assert stage.proxy.refused == 2


async def test_what_is_listed_and_not_there() -> None:
    async with a_server(echo) as port:
        pass
    async with a_stage("127.0.0.1, gone.test") as stage:
        answer = await stage.ask(f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\n\r\n".encode())
        assert answer.startswith(b"HTTP/1.1 502 Bad Gateway")
        assert b"Connect call failed" in answer
        answer = await stage.ask(b"CONNECT gone.test:443 HTTP/1.1\r\n\r\n")
        assert b"gone.test:443: its address can't be found: no such name" in answer
        assert stage.log == []


async def test_a_flood_of_refusals_does_not_fill_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(egress_proxy, "_TOLD", 3)
    async with a_stage("web.test") as stage:
        for number in range(10):
            await stage.ask(b"CONNECT n%d.test:443 HTTP/1.1\r\n\r\n" % number)
        assert len(stage.log) == 3
        assert stage.proxy.refused == 10


# --- nonsense --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET https://web.test/ HTTP/1.1\r\n\r\n",
        b"GET http://user@web.test/ HTTP/1.1\r\n\r\n",
        b"GET http:///path HTTP/1.1\r\n\r\n",
        b"GET http://web.test:x/ HTTP/1.1\r\n\r\n",
        b"GET http://[::1/ HTTP/1.1\r\n\r\n",
        b"GET http://web.test/ HTTP/2\r\n\r\n",
        b"CONNECT web.test HTTP/1.1\r\n\r\n",
        b"CONNECT web.test:443/path HTTP/1.1\r\n\r\n",
        b"CONNECT web.test:99999 HTTP/1.1\r\n\r\n",
        b"GET http://web.test/ HTTP/1.1\r\nno header\r\n\r\n",
        b"GET http://web.test/ HTTP/1.1\r\nA: b\r\n folded\r\n\r\n",
        b"GET http://web.test/ HTTP/1.1\r\nA: b\nHost: evil\r\n\r\n",
        b"GET http://web.test/ HTTP/1.1\r\nA: b\rHost: evil\r\n\r\n",
        b"GET http://web.test/ HTTP/1.1\r\nHost : evil\r\n\r\n",
        b"GET http://web.test/" + b"x" * 70_000,
    ],
)
async def test_what_is_no_request(request_: bytes) -> None:
    async with a_stage("web.test, 127.0.0.1", web_test=["127.0.0.1"]) as stage:
        assert (await stage.ask(request_)).startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert (stage.looked_up, stage.proxy.connections) == ([], 0)


async def test_who_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(egress_proxy, "_HEAD_S", 0.05)
    async with a_stage("web.test") as stage:
        assert await stage.ask(b"CONNECT web") == b""


@pytest.mark.parametrize("drop", [b"CONNECT 127.0.0.1:80 HTTP/1.1\r\nA: ", b"\5\xff"])
async def test_who_says_little_at_a_time_is_not_waited_for_either(drop: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(egress_proxy, "_HEAD_S", 0.1)
    async with a_stage("web.test") as stage:
        reader, writer = await stage.connect()
        writer.write(drop)
        ended = asyncio.ensure_future(reader.read())
        while not ended.done():
            writer.write(b"x")
            await asyncio.wait({ended}, timeout=0.01)
        assert isinstance(ended.exception(), ConnectionResetError) or ended.result() == b""
        writer.close()


async def test_many_headers_are_too_much_as_well() -> None:
    async with a_stage("web.test", web_test=["127.0.0.1"]) as stage:
        request = b"GET http://web.test/ HTTP/1.1\r\n" + b"A: b\r\n" * 10_000 + b"\r\n"
        assert (await stage.ask(request)).startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert stage.looked_up == []


@pytest.mark.parametrize(
    "host",
    [
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "127.1",
        "127.0.0.1.",
        "[::ffff:127.0.0.1]",
        "[::127.0.0.1]",
        "[::]",
        "0",
    ],
)
async def test_no_way_of_writing_an_address_leads_to_the_node(host: str) -> None:
    """Not even where all names are listed, and this machine takes the text for its loopback."""
    async with a_web_server() as (port, heads), a_stage("*") as stage:
        stage.proxy = Proxy(parse("*"), look_up, stage.log.append, stage.carried)
        async with a_server(stage.proxy.serve) as stage.port:
            answer = await stage.ask(f"GET http://{host}:{port}/ HTTP/1.1\r\n\r\n".encode())
        assert answer.startswith((b"HTTP/1.1 403 ", b"HTTP/1.1 502 "))
        assert (heads, stage.proxy.connections) == ([], 0)


async def test_where_a_server_sends_its_client_is_asked_for_anew() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    async with a_server(handle) as port, a_stage("127.0.0.1") as stage:
        assert (await stage.ask(f"GET http://127.0.0.1:{port}/ HTTP/1.1\r\n\r\n".encode())).startswith(b"HTTP/1.1 302 ")
        assert (await stage.ask(b"GET http://169.254.169.254/ HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 403 ")
        assert stage.proxy.connections == 1


async def test_a_tunnel_in_which_nothing_is_said_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(egress_proxy, "_IDLE_S", 0.05)
    async with a_server(echo) as port, a_stage("127.0.0.1") as stage:
        answer = await stage.ask(f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\n\r\n".encode())
        assert b" 200 " in answer


def test_a_hundred_connections_in_which_nobody_reads_fit_into_its_limit(tmp_path: Path) -> None:
    (tmp_path / "carried").write_bytes(bytes(CARRIED.size))
    command = [sys.executable, "-I", "-m", "flame.shims.egress_proxy", "127.0.0.1", "carried"]
    with socket.socket(socket.AF_UNIX) as door, socket.create_server(("127.0.0.1", 0), backlog=128) as server:
        door.bind(str(tmp_path / "door"))
        door.listen(128)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)  # so that it is the proxy that has to hold it
        proxy = subprocess.Popen(command, stdin=door.fileno(), stderr=subprocess.PIPE, text=True, cwd=tmp_path)
        ends: list[socket.socket] = []
        try:
            for _ in range(128):
                ends.append(client := socket.socket(socket.AF_UNIX))
                client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
                client.connect(str(tmp_path / "door"))
                client.sendall(f"CONNECT 127.0.0.1:{server.getsockname()[1]} HTTP/1.1\r\n\r\n".encode())
                ends.append(server.accept()[0])
                assert b" 200 " in client.recv(100)
                for end in ends[-2:]:
                    end.setblocking(False)
            while ready := select.select([], ends, [], 0.3)[1]:
                for end in ready:
                    with suppress(BlockingIOError):
                        end.send(bytes(65536))
            status = Path(f"/proc/{proxy.pid}/status").read_text()
            (peak,) = (int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))
            assert peak * 1024 < PROXY_LIMITS.memory
            proxy.send_signal(signal.SIGTERM)
            _, said = proxy.communicate(timeout=60)
        finally:
            proxy.kill()
            for end in ends:
                end.close()
    sent, received = CARRIED.unpack((tmp_path / "carried").read_bytes())
    assert min(sent, received) > 128 * 65536  # more than what it holds has passed
    assert said == f"network: 128 connections, 0 refused; {sent} bytes out, {received} bytes in\n"


async def test_connections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(egress_proxy, "_CONNECTIONS", 1)
    async with a_server(echo) as port, a_stage("127.0.0.1") as stage:
        reader, writer = await stage.connect()
        writer.write(f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\n\r\n".encode())
        await reader.readuntil(b"\r\n\r\n")
        assert await stage.ask(b"") == b""
        assert stage.log == ["network: more than 1 connections at a time"]
        writer.close()

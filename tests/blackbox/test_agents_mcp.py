"""flame-mcp with the client of the official SDK, over both of its transports and in both eras of the protocol."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import httpx2
import pytest
from mcp import Client
from mcp.client.stdio import StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp.types import BlobResourceContents, EmbeddedResource, ImageContent, TextContent

import flame
from blackbox.trouble import until
from cluster import PATIENCE, Cluster
from sandboxes import cluster_for_sandboxes

FLAME_MCP = str(Path(sys.executable).parent / "flame-mcp")
ERAS = ("legacy", "auto")  # with a handshake and sessions; each request for itself
GIF = b"GIF89a\x01\0\x01\0\0\0\0;"
PLOT = "class Plot:\n    def _repr_png_(self): return b'\\x89PNG\\r\\n'\nPlot()"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster_for_sandboxes(tmp_path_factory.mktemp("mcp")) as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def _nothing_left(cluster: Cluster) -> Iterator[None]:
    yield
    until(lambda: not sandboxes(cluster), "the end of the sandboxes")


def sandboxes(cluster: Cluster) -> list[str]:
    """Those that are open."""
    with flame.connect(cluster.endpoint) as connection:
        found = connection.list_sessions([flame.SessionState.OPEN])
    return [session.id for session in found if session.id.startswith("sandbox-")]


class Server:
    """flame-mcp over HTTP, as a process."""

    def __init__(self, cluster: Cluster, *arguments: str, **variables: str) -> None:
        self.process = subprocess.Popen(
            [FLAME_MCP, "--http", "--port", "0", *arguments],
            env=cluster.environ(**variables),
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stderr is not None
        said = self.process.stderr.readline()
        assert said.startswith("flame-mcp listens at http://"), said + self.process.stderr.read()
        self.url = said.split()[-1]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.stderr is not None
        with self.process.stderr as stream:
            rest = stream.read()
        assert self.process.wait(PATIENCE) in (0, -signal.SIGTERM)
        assert "Traceback" not in rest, rest


@asynccontextmanager
async def stdio(cluster: Cluster, era: str, *arguments: str) -> AsyncIterator[Client]:
    command = StdioServerParameters(command=FLAME_MCP, args=list(arguments), env=cluster.environ())
    async with Client(command, mode=era) as client:
        yield client


async def text(client: Client, name: str, **arguments: Any) -> str:
    """What a tool says that has done what it was asked for."""
    result = await client.call_tool(name, arguments)
    first = result.content[0]
    assert isinstance(first, TextContent)
    assert not result.is_error, first.text
    return first.text


async def complaint(client: Client, name: str, **arguments: Any) -> str:
    result = await client.call_tool(name, arguments)
    first = result.content[0]
    assert isinstance(first, TextContent)
    assert result.is_error, first.text
    return first.text


async def try_binary_files(client: Client) -> None:
    """Pictures are seen as such; other files come and go in base64."""
    data = bytes(range(256))
    content = base64.b64encode(data).decode()
    assert await text(client, "write_file", path="out/a b.zip", content=content, encoding="base64") == (
        "wrote 256 bytes to out/a b.zip"
    )
    assert await text(client, "run_code", code="open('out/a b.zip', 'rb').read() == bytes(range(256))") == "True"
    said, resource = (await client.call_tool("read_file", {"path": "out/a b.zip"})).content
    assert isinstance(said, TextContent)
    assert said.text == "[out/a b.zip is no text: 256 bytes of application/zip; look at it with code]"
    assert isinstance(resource, EmbeddedResource)
    assert resource.resource == BlobResourceContents(
        uri="sandbox:///out/a%20b.zip", mime_type="application/zip", blob=content
    )
    await text(client, "run_code", code=f"open('plot', 'wb').write({GIF!r})")
    picture = (await client.call_tool("read_file", {"path": "plot"})).content[1]
    assert isinstance(picture, ImageContent)
    assert (picture.mime_type, base64.b64decode(picture.data)) == ("image/gif", GIF)
    await text(client, "run_command", command="head -c 2000000 /dev/urandom >noise")
    assert "over the limit of 1048576 bytes" in await complaint(client, "read_file", path="noise")
    assert "can't be written as base64" in await complaint(
        client, "write_file", path="b", content="no!", encoding="base64"
    )


async def try_all_tools(client: Client) -> None:
    """In the one sandbox of this client."""
    tools = (await client.list_tools()).tools
    assert {tool.name for tool in tools} == {
        *("run_code", "run_command", "read_file", "write_file", "list_files", "reset")
    }
    assert await text(client, "run_code", code="number = 41\nprint('so')\nnumber + 1") == "so\n42"
    assert await text(client, "run_code", code="number") == "41"
    assert await text(client, "write_file", path="notes/a.txt", content="hey\n") == "wrote 4 bytes to notes/a.txt"
    assert await text(client, "run_command", command="cat notes/a.txt; echo no >&2; exit 3") == (
        "hey\n[stderr]\nno\n[exit code 3]"
    )
    assert await text(client, "read_file", path="notes/a.txt") == "hey\n"
    assert await text(client, "list_files", path="notes") == "a.txt  4"
    picture = (await client.call_tool("run_code", {"code": PLOT})).content[1]
    assert isinstance(picture, ImageContent)
    assert (picture.mime_type, picture.data) == ("image/png", "iVBORw0K")
    assert (await complaint(client, "run_code", code="1/0")).endswith("ZeroDivisionError: division by zero")
    assert await complaint(client, "read_file", path="nothing") == "error: there is no nothing"
    assert "its time was over" in await complaint(client, "run_command", command="sleep 600", timeout=0.2)
    assert "TimeoutError" in await complaint(client, "run_code", code="while True: pass", timeout=0.2)
    long = await text(client, "run_command", command="seq 100000")
    assert len(long) < 21_000
    assert "characters left out" in long
    await text(client, "run_command", command="head -c 5000000 /dev/zero >large")
    assert "read a part of it" in await complaint(client, "read_file", path="large")
    await try_binary_files(client)
    assert await text(client, "reset") == "the sandbox was closed"
    assert "NameError" in await complaint(client, "run_code", code="number")


@pytest.mark.parametrize("era", ERAS)
async def test_all_tools_over_stdio(cluster: Cluster, era: str) -> None:
    async with stdio(cluster, era) as client:
        assert sandboxes(cluster) == []  # made at first use
        await try_all_tools(client)
        assert len(sandboxes(cluster)) == 1


async def test_all_tools_in_a_session_over_http(cluster: Cluster) -> None:
    with Server(cluster) as server:
        async with Client(server.url, mode="legacy") as client, Client(server.url, mode="legacy") as other:
            await try_all_tools(client)
            assert "NameError" in await complaint(other, "run_code", code="Plot")
            assert len(sandboxes(cluster)) == 2
        until(lambda: not sandboxes(cluster), "the end of the sandboxes with their sessions")


async def test_clients_without_sessions_are_given_a_handle(cluster: Cluster) -> None:
    with Server(cluster) as server:
        async with Client(server.url) as client:
            said = await text(client, "run_code", code="number = 6 * 7")
            handle = said.partition("[sandbox: ")[2].partition(";")[0]
            assert len(handle) == 16
            assert await text(client, "run_code", code="number", sandbox=handle) == (
                f"42\n[sandbox: {handle}; give it with the next call]"
            )
            assert "NameError" in await complaint(client, "run_code", code="number")
            assert "there is no sandbox guessed" in await complaint(client, "run_code", code="1", sandbox="guessed")
            (mine, _) = sandboxes(cluster)
            assert "there is no sandbox" in await complaint(client, "run_code", code="1", sandbox=mine)
            assert await text(client, "reset", sandbox=handle) == "the sandbox was closed"
            assert "there is no sandbox" in await complaint(client, "run_code", code="number", sandbox=handle)


def test_a_client_over_stdio_that_vanishes_takes_its_sandbox_along(cluster: Cluster) -> None:
    code = (
        "import asyncio, os, sys; from mcp import Client; from mcp.client.stdio import StdioServerParameters\n"
        "async def main():\n"
        f"    command = StdioServerParameters(command={FLAME_MCP!r}, env=dict(os.environ))\n"
        "    async with Client(command) as client:\n"
        "        await client.call_tool('run_code', {'code': '1'})\n"
        "        print('called', flush=True)\n"
        "        await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], env=cluster.environ(), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"called\n"
        assert len(sandboxes(cluster)) == 1
        process.kill()
    until(lambda: not sandboxes(cluster), "the end of the sandbox")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_over_stdio_that_is_ended_takes_its_sandbox_along(cluster: Cluster, number: signal.Signals) -> None:
    with subprocess.Popen(
        [FLAME_MCP], env=cluster.environ(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        about = '"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"test","version":"1"}'
        for line in (
            f'{{"jsonrpc":"2.0","id":1,"method":"initialize","params":{{{about}}}}}',
            '{"jsonrpc":"2.0","method":"notifications/initialized"}',
            "this is no JSON",
            '{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"run_code","arguments":{"code":"6*7"}}}',
        ):
            process.stdin.write(line + "\n")
        process.stdin.flush()
        while '"42"' not in process.stdout.readline():
            pass
        process.send_signal(number)
        assert process.wait(PATIENCE) == 128 + number
    assert sandboxes(cluster) == []


async def test_a_silent_client_loses_its_sandbox_and_is_told_once(cluster: Cluster) -> None:
    with Server(cluster, "--idle-timeout", "1") as server:
        async with Client(server.url, mode="legacy") as client:  # its session has a stream open and lasts
            assert await text(client, "run_code", code="number = 1; number") == "1"
            await asyncio.to_thread(until, lambda: not sandboxes(cluster), "the end of the sandbox")
            said = await complaint(client, "run_code", code="number")
            assert said.startswith("error: the sandbox was closed: nothing was asked of it for 1 s\nhint: this call")
            assert "NameError" in await complaint(client, "run_code", code="number")


async def test_a_client_over_http_that_vanishes_loses_its_sandbox(cluster: Cluster) -> None:
    with Server(cluster, "--idle-timeout", "1") as server:
        transport = streamable_http_client(server.url, terminate_on_close=False)
        async with Client(transport, mode="legacy") as client:
            await text(client, "run_code", code="1")
        assert len(sandboxes(cluster)) == 1
        await asyncio.to_thread(until, lambda: not sandboxes(cluster), "the end of the sandbox")


async def test_a_sandbox_that_somebody_closed_is_told_and_replaced(cluster: Cluster) -> None:
    async with stdio(cluster, "auto") as client:
        await text(client, "run_code", code="number = 1")
        with flame.connect(cluster.endpoint) as connection:
            flame.Sandbox.open(sandboxes(cluster)[0], connection=connection).close()
        assert "the next one begins with a new sandbox" in await complaint(client, "run_code", code="number")
        assert "NameError" in await complaint(client, "run_code", code="number")


async def test_no_more_sandboxes_than_allowed(cluster: Cluster) -> None:
    with Server(cluster, "--max-sandboxes", "1") as server:
        async with Client(server.url, mode="legacy") as client, Client(server.url, mode="legacy") as other:
            await text(client, "run_code", code="1")
            assert "1 sandboxes are open already" in await complaint(other, "run_code", code="1")
            await text(client, "reset")
            assert await text(other, "run_code", code="1") == "1"


async def test_options_are_those_of_the_sandboxes(cluster: Cluster) -> None:
    async with stdio(cluster, "auto", "--memory", "128Mi", "--limit", "pids=20", "--network", "pypi.org") as client:
        await text(client, "run_code", code="1")
        with flame.connect(cluster.endpoint) as connection:
            spec = connection.get_session(sandboxes(cluster)[0]).message.spec
        assert (spec.isolation, spec.network, spec.limits.memory, spec.limits.pids) == (
            *("process", "pypi.org"),
            128 * 1024**2,
            20,
        )


@pytest.mark.parametrize("tool", ["run_command", "run_code"])
async def test_a_call_that_is_given_up_is_ended_in_the_sandbox(cluster: Cluster, tool: str) -> None:
    program = {
        "run_command": {"command": "touch begun; sleep 600; touch ended"},
        "run_code": {"code": "import time; open('begun', 'w').close()\nwhile True: time.sleep(0.01)"},
    }[tool]
    async with stdio(cluster, "auto") as client:
        await text(client, "run_code", code="number = 1")
        call = asyncio.ensure_future(client.call_tool(tool, program))
        while "begun" not in await text(client, "list_files"):
            pass  # each look is a call that takes its time
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert await text(client, "run_code", code="number") == "1"  # once the kernel is free
        with flame.connect(cluster.endpoint) as connection:
            sandbox = flame.Sandbox.open(sandboxes(cluster)[0], connection=connection)
            await asyncio.to_thread(until, lambda: not sandbox.commands(), "the end of the command")
            assert not sandbox.files.exists("ended")


async def test_several_calls_at_once_share_one_sandbox(cluster: Cluster) -> None:
    async with stdio(cluster, "auto") as client:
        said = await asyncio.gather(*(text(client, "run_command", command=f"echo {number}") for number in range(5)))
        assert said == [f"{number}\n[exit code 0]" for number in range(5)]
        assert len(sandboxes(cluster)) == 1


async def test_a_token_is_asked_for_and_other_hosts_and_pages_are_refused(cluster: Cluster) -> None:
    with Server(cluster, FLAME_MCP_TOKEN="secret") as server:
        async with httpx2.AsyncClient() as http:
            assert (await http.post(server.url, json={})).status_code == 401
            shown = {"Authorization": "Bearer secret"}
            assert (await http.post(server.url, json={}, headers={**shown, "Host": "evil.example"})).status_code == 421
            page = {**shown, "Origin": "http://evil.example"}
            assert (await http.post(server.url, json={}, headers=page)).status_code == 403
        with pytest.raises(BaseException, match=r".*"):
            async with Client(server.url, mode="legacy"):
                pass
        async with (
            httpx2.AsyncClient(headers=shown) as http,
            Client(streamable_http_client(server.url, http_client=http), mode="legacy") as client,
        ):
            assert await text(client, "run_code", code="6 * 7") == "42"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--http", "--host", "0.0.0.0"), 2, "whoever reaches 0.0.0.0 could run code in the cluster"),
        (("--http", "--insecure", "--host", "no.such.host.invalid"), 2, "can't listen at no.such.host.invalid"),
        (("--memory", "1"), 2, "nothing would start"),
        (("--idle-timeout", "0"), 2, "idle-timeout"),
    ],
)
def test_what_it_can_not_do_it_says(cluster: Cluster, arguments: tuple[str, ...], code: int, message: str) -> None:
    environ = cluster.environ()
    done = subprocess.run([FLAME_MCP, *arguments], env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr


async def test_without_a_cluster_the_tools_say_so(cluster: Cluster, tmp_path: Path) -> None:
    arguments = ["--endpoint", f"unix:{tmp_path}/none"]
    command = StdioServerParameters(command=FLAME_MCP, args=arguments, env=dict(os.environ, HOME=str(tmp_path)))
    async with Client(command) as client:
        assert (await client.list_tools()).tools
        assert (await complaint(client, "run_code", code="1")).startswith("error: ")

"""Programs in virtual machines that are connected to: HTTP servers, and services that speak gRPC."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from flame.proto import types_pb2
from microvms import DISK, LIMITS, MIB, cached, found, run, wrapped
from scripted_manager import Node, a_node_here, gone

HELD = types_pb2.Limits(memory=LIMITS.memory, pids=LIMITS.pids, disk=DISK)
REST = '''
import os, socketserver
from http.server import BaseHTTPRequestHandler
class Service(BaseHTTPRequestHandler):
    asked = 0
    def do_GET(self):  # it is ready when it was asked three times
        Service.asked += 1
        self.send_response(503 if Service.asked < 3 else 200)
        self.end_headers()
    def do_POST(self):
        data = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()
        for piece in eval(data) if self.path == "/invoke" else []:
            self.wfile.write(piece)
class Server(socketserver.ThreadingUnixStreamServer):
    def get_request(self):
        return super().get_request()[0], ("here", 0)
Server(os.environ["FLAME_REST_SOCKET"], Service).serve_forever()
'''


@pytest.fixture(scope="module", autouse=True)
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """QEMU and a kernel have to be there: `make test` installs them. The system's disk is made before a test waits."""
    folder = tmp_path_factory.mktemp("microvm")
    level = found(folder / "probe")
    assert level.missing == ""
    assert run(wrapped(level, "/bin/sh", "-c", ":")).returncode == 0
    with cached():
        yield folder


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with a_node_here() as node:
        yield node


async def test_an_http_server_in_a_machine(node: Node, service: Path) -> None:
    file = service / "server.py"
    file.write_text(REST)
    node.manager.start(
        1, sys.executable, str(file), isolation="microvm", shim=types_pb2.Rest, limits=HELD, labels=["concurrency=4"],
        start_timeout_ms=110_000,
    )  # fmt: skip
    assert (await node.manager.bound(1)).concurrency == 4
    ids = node.manager.run(
        1,
        b"[b'one']",
        b"[os.uname().release.encode()]",
        f"(bytes([n]) * {MIB} for n in range(5))".encode(),
        b"[]",
        b"[b'%d' % sum(" + bytes(str(list(range(100_000))), "ascii") + b")]",
    )
    one, kernel, large, empty, total = await node.manager.answered(1, ids)
    assert (one, empty, total) == (b"one", b"", b"4999950000")
    assert kernel != os.uname().release.encode()
    assert large == b"".join(bytes([n]) * MIB for n in range(5))
    node.manager.run(1, b"os._exit(3)")
    released = await node.manager.released(1)
    assert released.crashed
    assert released.message.startswith(("the instance exited with status 3", "the call of task"))
    await gone(released.pid)

"""Programs in virtual machines that are connected to: HTTP servers, and services that speak gRPC."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from cluster import ROOT
from flame.proto import types_pb2
from microvms import DISK, LIMITS, MIB, at_hand
from scripted_manager import Node, a_node_here, gone

FOREIGN = ROOT / ".venv-foreign" / "bin" / "python"
HELD = types_pb2.Limits(memory=LIMITS.memory, pids=LIMITS.pids, disk=DISK)
REST = """
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
"""


@pytest.fixture(scope="module", autouse=True)
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where programs lie."""
    folder = tmp_path_factory.mktemp("microvm")
    with at_hand(folder):
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
    # An answer without a length ends with its connection, which ends with the server: all of it comes.
    last = f"(os._exit(3) if n else bytes({3 * MIB}) for n in range(2))".encode()
    (answer,) = await node.manager.answered(1, node.manager.run(1, last))
    assert answer == bytes(3 * MIB)
    released = await node.manager.released(1)
    assert released.crashed
    assert released.message.startswith("the instance exited with status 3")
    await gone(released.pid)


GRPC = """
import os, sys, time
print("imported", flush=True)
%s
class Evaluate(FlameService):
    def on_session_enter(self, context):
        pass
    def on_task_invoke(self, context):
        return None if context.input is None else eval(context.input.decode())
    def on_session_leave(self):
        print("left", flush=True)
run(Evaluate())
"""
SDKS = {
    "flamepy": "from flamepy import FlameService, run",
    "flame": "from flame.service import *; del os.environ['FLAME_INSTANCE_STDIO']",
}
# Who kills all that its user may takes the way to itself with it.
END = {"flamepy": b"os._exit(3)", "flame": b"os.kill(-1, 9) or time.sleep(3600)"}
ENDED = {"flamepy": "the instance exited with status 3", "flame": "the instance was killed by SIGKILL"}


@pytest.mark.parametrize("sdk", SDKS)
async def test_a_grpc_service_in_a_machine(node: Node, service: Path, sdk: str) -> None:
    if sdk == "flamepy" and not FOREIGN.exists():
        pytest.fail("the foreign SDK is not installed in .venv-foreign: run make foreign")
    file = service / f"with_{sdk}.py"
    file.write_text(GRPC % SDKS[sdk])
    python = str(FOREIGN) if sdk == "flamepy" else sys.executable
    given = {"isolation": "microvm", "limits": HELD, "start_timeout_ms": 110_000}
    node.manager.start(1, python, str(file), **given)
    assert (await node.manager.bound(1)).concurrency == 1
    ids = node.manager.run(1, b"b'one'", b"1 / 0", None, b"b''", b"bytes(5 * 1024 * 1024)")
    one, failure, absent, empty, large = await node.manager.answered(1, ids)
    assert (one, absent, empty, len(large)) == (b"one", None, b"", 5 * MIB)
    assert (failure.state, failure.message) == (types_pb2.Failed, "division by zero")
    node.manager.stop(1)
    released = await node.manager.released(1)
    assert not released.crashed
    (chunk,) = await node.manager.read_log(executor_id=node.manager.executor_id(1), stream="stdout")
    assert chunk.data == b"imported\nleft\n"
    await gone(released.pid)
    node.manager.start(2, python, str(file), **given)
    await node.manager.bound(2)
    node.manager.run(2, END[sdk])
    released = await node.manager.released(2)
    assert released.crashed
    assert released.message.startswith(ENDED[sdk])

"""Levels and limits with every shim: what ran out is said, what can't be reached is said, and where sessions go."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import flame
from cluster import Cluster
from flame.proto import link_pb2, types_pb2
from scripted_manager import Node, a_node_here
from untrusted import MIB, require_sandboxes

LINES = """
import json, sys
for line in sys.stdin:
    held = eval(json.loads(line)["input"])
    print(json.dumps({"task_id": json.loads(line)["task_id"], "output": str(len(held))}), flush=True)
"""
FRAMED = """
import flame
class Service(flame.FlameService):
    def on_task_invoke(self, context):
        return str(len(eval(context.input))).encode()
flame.run(Service())
"""
REST = """
import os, socketserver, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
class Service(BaseHTTPRequestHandler):
    def do_POST(self):
        data = self.rfile.read(int(self.headers["Content-Length"]))
        answer = str(len(eval(data))).encode() if self.path == "/invoke" else b""
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)
class Server(socketserver.UnixStreamServer):
    def get_request(self):
        return super().get_request()[0], ("here", 0)
if sys.argv[1:] == ["port"]:
    HTTPServer(("127.0.0.1", int(os.environ.get("PORT", 8000))), Service).serve_forever()
Server(os.environ["FLAME_REST_SOCKET"], Service).serve_forever()
"""
ONCE = "import sys; held = eval(sys.stdin.read()); sys.stdout.write(str(len(held)))"
SHIMS = {
    "lines": (LINES, {"shim": types_pb2.Stdio}),
    "framed": (FRAMED, {"shim": types_pb2.Stdio, "labels": ["stdio=framed"]}),
    "rest": (REST, {"shim": types_pb2.Rest}),
}
ONCE_SPEC: dict[str, Any] = {"shim": types_pb2.Stdio, "labels": ["stdio=once"]}
TOO_MUCH = f"bytearray({200 * MIB})".encode()
RAN_OUT = f"ran out of memory: it needed more than its limit of {100 * MIB} bytes"


@pytest.fixture(scope="module", autouse=True)
def sandboxes(tmp_path_factory: pytest.TempPathFactory) -> None:
    require_sandboxes(tmp_path_factory.mktemp("probe"))


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with a_node_here() as node:
        yield node


@pytest.mark.parametrize("level", ["none", "process"])
@pytest.mark.parametrize("shim", SHIMS)
async def test_a_lack_of_memory_is_said(node: Node, shim: str, level: str) -> None:
    source, spec = SHIMS[shim]
    node.start(1, source, isolation=level, limits=types_pb2.Limits(memory=100 * MIB), **spec)
    await node.manager.bound(1)
    assert await node.manager.answered(1, node.manager.run(1, b"bytearray(1000)")) == [b"1000"]
    node.manager.run(1, TOO_MUCH)
    released = await node.manager.released(1)
    assert released.crashed
    assert released.message.startswith(f"the instance {RAN_OUT}")
    assert released.peak_memory >= 90 * MIB


@pytest.mark.parametrize("level", ["none", "process"])
async def test_a_lack_of_memory_fails_one_task_where_each_has_its_own_program(node: Node, level: str) -> None:
    spec = {**ONCE_SPEC, "isolation": level, "limits": types_pb2.Limits(memory=100 * MIB, pids=9)}
    node.start(1, ONCE, **spec)
    await node.manager.bound(1)
    before, failure, after = await node.manager.answered(
        1, node.manager.run(1, b"bytearray(1000)", TOO_MUCH, b"bytearray(2000)")
    )
    assert (before, after) == (b"1000", b"2000")
    assert isinstance(failure, link_pb2.Failure)
    assert (failure.code, failure.message, failure.retryable) == (137, f"the program {RAN_OUT}", False)
    node.manager.stop(1)
    released = await node.manager.released(1)
    assert released.peak_memory >= 90 * MIB
    assert released.cpu_ms


@pytest.mark.parametrize("level", ["none", "process"])
async def test_a_lack_of_memory_of_what_a_program_started_is_said_too(node: Node, level: str) -> None:
    script = f"{sys.executable} -c 'bytearray({200 * MIB})'; exit 3"
    spec = {**ONCE_SPEC, "isolation": level, "limits": types_pb2.Limits(memory=100 * MIB)}
    node.manager.start(1, "/bin/sh", "-c", script, **spec)
    await node.manager.bound(1)
    [failure] = await node.manager.answered(1, node.manager.run(1, None))
    assert isinstance(failure, link_pb2.Failure)
    why = f"and a process of it was killed for want of memory: its limit is {100 * MIB} bytes"
    assert failure.message.startswith(f"the program exited with status 3, {why}")


@pytest.mark.parametrize("level", ["none", "process"])
@pytest.mark.parametrize("shim", SHIMS)
async def test_a_crash_is_no_lack_of_memory(node: Node, shim: str, level: str) -> None:
    source, spec = SHIMS[shim]
    node.start(1, source, isolation=level, limits=types_pb2.Limits(memory=100 * MIB), **spec)
    await node.manager.bound(1)
    node.manager.run(1, b"__import__('os').kill(__import__('os').getpid(), 9)")
    released = await node.manager.released(1)
    assert released.message.startswith("the instance was killed by SIGKILL")


BUSY = b"[sum(range(10**6)) for _ in range(8)]"


@pytest.mark.parametrize("shim", SHIMS)
async def test_what_a_task_used_comes_with_its_result(node: Node, shim: str) -> None:
    source, spec = SHIMS[shim]
    node.start(1, source, isolation="process", **spec)
    await node.manager.bound(1)
    await node.manager.answered(1, node.manager.run(1, BUSY))
    [results] = node.manager.results[1]
    assert 50_000 < results.cpu_us < 1.5 * results.busy_us + 50_000
    assert results.peak_memory > MIB


async def test_each_program_of_a_task_is_counted_by_itself(node: Node) -> None:
    node.start(1, ONCE, isolation="process", **ONCE_SPEC)
    await node.manager.bound(1)
    await node.manager.answered(1, node.manager.run(1, f"bytearray({150 * MIB})".encode(), BUSY))
    large, busy = node.manager.results[1]
    assert large.peak_memory > 150 * MIB
    assert busy.peak_memory < 100 * MIB
    assert busy.cpu_us > 50_000


async def test_what_nobody_limits_is_not_counted(node: Node) -> None:
    source, spec = SHIMS["lines"]
    node.start(1, source, **spec)
    await node.manager.bound(1)
    await node.manager.answered(1, node.manager.run(1, BUSY))
    [results] = node.manager.results[1]
    assert (results.cpu_us, results.peak_memory) == (0, 0)


def test_a_task_shows_what_it_used(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(LINES)
    with Cluster(tmp_path) as cluster, flame.connect(cluster.endpoint) as connection:
        connection.register_application(
            "app", {"shim": flame.Shim.STDIO, "command": sys.executable, "arguments": [str(program)]}
        )
        attributes = flame.SessionAttributes("app", limits=flame.Limits(memory=100 * MIB))
        with connection.create_session(attributes) as session:
            future = session.submit(BUSY)
            future.result(30)
            task = session.get_task(future.task_id)
            assert task.cpu_seconds > 0.05
            assert MIB < task.peak_memory < 100 * MIB
            done = subprocess.run(
                [str(Path(sys.executable).with_name("flmctl")), "view", "-s", session.id, "-t", str(future.task_id)],
                env=cluster.environ(), capture_output=True, text=True, check=True,
            )  # fmt: skip
            assert "ms of processor time" in done.stdout
            session.close()
            while not session.peak_memory:
                session.refresh()
            assert session.cpu_seconds >= task.cpu_seconds
            assert session.written == 0


async def test_a_server_in_a_network_of_its_own_has_no_port(node: Node) -> None:
    (node.folder / "server.py").write_text(REST)
    spec: dict[str, Any] = {"shim": types_pb2.Rest, "isolation": "process", "start_timeout_ms": 1500}
    node.manager.start(1, sys.executable, str(node.folder / "server.py"), "port", **spec)
    released = await node.manager.released(1)
    assert released.code == 11
    assert "it is reached at FLAME_REST_SOCKET only: listen there, or ask for network host" in released.message


async def test_a_server_in_the_network_of_its_node_has_a_port(node: Node) -> None:
    (node.folder / "server.py").write_text(REST)
    spec: dict[str, Any] = {"shim": types_pb2.Rest, "isolation": "process", "network": "host"}
    node.manager.start(1, sys.executable, str(node.folder / "server.py"), "port", **spec)
    await node.manager.bound(1)
    assert await node.manager.answered(1, node.manager.run(1, b"'xyz'")) == [b"3"]


async def test_a_server_can_not_send_its_node_to_another_socket(node: Node) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        path = node.folder / "other.sock"
        other.bind(str(path))
        other.listen()
        source = f"import os, time; os.symlink({str(path)!r}, os.environ['FLAME_REST_SOCKET']); time.sleep(3600)"
        node.start(1, source, shim=types_pb2.Rest, isolation="process")
        released = await node.manager.released(1)
        assert released.code == 11
        assert released.message.endswith("is no socket")
        other.setblocking(False)
        with pytest.raises(BlockingIOError):
            other.accept()


async def test_a_program_sees_its_common_data_in_a_sandbox(node: Node) -> None:
    source = "import os, sys; sys.stdout.write(open(os.environ['FLAME_COMMON_DATA_FILE']).read())"
    node.start(1, source, isolation="process", common_data=b"shared", **ONCE_SPEC)
    await node.manager.bound(1)
    assert await node.manager.answered(1, node.manager.run(1, None)) == [b"shared"]


@pytest.mark.parametrize(
    ("attributes", "label"),
    [
        ({"shim": flame.Shim.CONTAINER, "image": "docker.io/library/busybox"}, "flame.shim.container"),
        ({"isolation": "gvisor"}, "flame.isolation.gvisor"),
    ],
)
def test_a_session_that_no_node_can_run_says_what_it_waits_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attributes: dict[str, Any], label: str
) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    with Cluster(tmp_path) as cluster, flame.connect(cluster.endpoint) as connection:
        [node] = connection.list_nodes()
        assert node.labels[label] == "no"
        assert node.labels["flame.shim.stdio"] == "yes"
        connection.register_application("app", {"command": "/bin/true", **attributes})
        with connection.create_session("app") as session:
            future = session.submit(b"")
            done = subprocess.run(
                [str(Path(sys.executable).with_name("flmctl")), "explain", "session", session.id],
                env=cluster.environ(), capture_output=True, text=True, check=True,
            )  # fmt: skip
            assert label in done.stdout
            future.cancel()

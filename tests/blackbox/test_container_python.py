"""Services of our SDK, and HTTP servers, in an image: it is made of the Python that runs the tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from flame.proto import types_pb2
from images import python_image
from scripted_manager import Node, NodeLog, a_node_here

LEVELS = ("none", "process", "gvisor")
SERVICE = """
import os, flame
class Where(flame.FlameService):
    def on_session_enter(self, context):
        self.word = (context.common_data() or b"").decode()
    def on_task_invoke(self, context):
        print("a line")
        return f"{self.word} {context.input.decode()} {os.path.dirname(flame.__file__)} {os.getcwd()}".encode()
flame.run(Where())
"""
SERVER = """
import os, socketserver
from http.server import BaseHTTPRequestHandler
class Service(BaseHTTPRequestHandler):
    def do_POST(self):
        data = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[::-1])
class Server(socketserver.UnixStreamServer):
    def get_request(self):
        return super().get_request()[0], ("here", 0)
Server(os.environ["FLAME_REST_SOCKET"], Service).serve_forever()
"""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("image")
    (folder / "service.py").write_text(SERVICE)
    (folder / "server.py").write_text(SERVER)
    programs = {name: folder / name for name in ("service.py", "server.py")}
    with python_image(folder / "image.tar", programs, 'CMD ["python", "service.py"]') as name:
        yield name


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with a_node_here() as node:
        yield node


def start(node: Node, image: str, *command: str, channel: int = 1, **spec: Any) -> str:
    wanted: dict[str, Any] = {"shim": types_pb2.Container, "image": image, "env": {"PYTHONPATH": "/sdk"}, **spec}
    return node.manager.start(channel, *(command or ("",)), **wanted)


@pytest.mark.parametrize("level", LEVELS)
async def test_a_service_of_our_sdk_needs_no_label(node: Node, image: str, level: str) -> None:
    identity = start(node, image, isolation=level, common_data=b"shared")
    await node.manager.bound(1)
    assert await node.manager.answered(1, node.manager.run(1, b"x", b"y")) == [
        b"shared x /sdk/flame /app",
        b"shared y /sdk/flame /app",
    ]
    node.manager.stop(1)
    await node.manager.released(1)
    printed = b"".join([chunk.data for chunk in await node.manager.read_log(executor_id=identity, stream="stdout")])
    assert printed.count(b"a line\n") == 2


@pytest.mark.parametrize("level", LEVELS)
async def test_an_http_server(node: Node, image: str, level: str) -> None:
    start(node, image, "python", "server.py", isolation=level, labels=["container=rest"])
    await node.manager.bound(1)
    assert await node.manager.answered(1, node.manager.run(1, b"abc")) == [b"cba"]


async def test_an_instance_is_started_ahead_too(node: Node, image: str) -> None:
    with NodeLog() as log:
        start(node, image, warm_instances=1)
        await node.manager.bound(1)
        await log.until("waits for a session")
    start(node, image, warm_instances=1, channel=2)
    bound = await node.manager.bound(2)
    assert f"process {bound.pid} waits for a session" in log.text
    assert await node.manager.answered(2, node.manager.run(2, b"x")) == [b" x /sdk/flame /app"]

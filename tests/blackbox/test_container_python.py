"""Services of our SDK, and HTTP servers, in an image: it is made of the Python that runs the tests."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import google.protobuf
import pytest

import flame
from flame.proto import types_pb2
from scripted_manager import Node, NodeLog, a_node_here

LEVELS = ("none", "process", "gvisor")
NAME = f"localhost/flame-python-{os.getpid()}:1"
LEFT_OUT = {"test", "tests", "idlelib", "lib2to3", "ensurepip", "tkinter", "site-packages", "__pycache__", "pydoc_data"}
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
    """Python in /python, the SDK in /sdk, the programs in /app."""
    folder = tmp_path_factory.mktemp("image")
    (folder / "service.py").write_text(SERVICE)
    (folder / "server.py").write_text(SERVER)
    archive = folder / "image.tar"
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    interpreter = Path(sys.base_prefix, "bin", version).resolve()
    with tarfile.open(archive, "w") as tar:
        tar.add(interpreter, "python/bin/python")
        tar.add(Path(sys.base_prefix, "lib", version), f"python/lib/{version}", filter=kept)
        modules = Path(sys.base_prefix, "lib", version, "lib-dynload").glob("*.so")
        for library in libraries(interpreter, *modules):
            tar.add(library.resolve(), str(library).lstrip("/"))
        tar.add(Path(flame.__file__).parent, "sdk/flame", filter=kept)
        tar.add(Path(google.protobuf.__file__).parents[1], "sdk/google", filter=kept)
        for name in ("service.py", "server.py"):
            tar.add(folder / name, f"app/{name}")
    loader = f"ENV LD_LIBRARY_PATH={Path(sys.base_prefix, 'lib')}"
    changes = ["ENV PATH=/python/bin", "ENV PYTHONPATH=/sdk", loader, "WORKDIR /app", 'CMD ["python", "service.py"]']
    options = [word for change in changes for word in ("--change", change)]
    subprocess.run(["podman", "import", "--quiet", *options, str(archive), NAME], check=True, capture_output=True)
    yield NAME
    subprocess.run(["podman", "rmi", "--force", NAME], check=True, capture_output=True)


def kept(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if set(Path(member.name).parts) & LEFT_OUT or "/config-" in member.name else member


def libraries(*files: Path) -> set[Path]:
    """What the loader needs for these, by the paths that it looks at."""
    listed = subprocess.run(["ldd", *map(str, files)], capture_output=True, text=True, check=True).stdout
    return {Path(path) for path in re.findall(r"(/\S+) \(0x", listed)}


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

"""Programs of OCI images in virtual machines, with the real podman and QEMU: nothing of the node is in their root."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

import flame
from cluster import Cluster
from flame.proto import types_pb2
from images import add_busybox, imported, podman, python_image
from microvms import DISK, LIMITS, cached, owned
from scripted_manager import Node, a_node_apart, a_node_here, gone

HELD = types_pb2.Limits(memory=LIMITS.memory, pids=LIMITS.pids, disk=DISK)
PROGRAMS = ("sh", "cat", "ls", "id", "stat", "env", "touch", "sed", "uname")
SERVICE = """
import os, time, flame
class Where(flame.FlameService):
    def on_prepare(self):
        self.prepared = time.monotonic()
    def on_session_enter(self, context):
        self.word = (context.common_data() or b"").decode()
    def on_task_invoke(self, context):
        places = f"{os.path.dirname(flame.__file__)} {os.getcwd()}"
        return f"{self.word} {context.input.decode()} {places} {self.prepared}".encode()
flame.run(Where())
"""
SERVER = """
import os, socketserver
from http.server import BaseHTTPRequestHandler
class Service(BaseHTTPRequestHandler):
    def do_POST(self):
        data = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(data[::-1])
class Server(socketserver.UnixStreamServer):
    def get_request(self):
        return super().get_request()[0], ("here", 0)
Server(os.environ["FLAME_REST_SOCKET"], Service).serve_forever()
"""


@pytest.fixture(scope="module", autouse=True)
def machines() -> Iterator[None]:
    with cached():
        yield


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of busybox alone, with a user, a file that only its owner reads, one that nobody reads, and a link in the place
    of a folder that machines have themselves."""
    archive = tmp_path_factory.mktemp("image") / "image.tar"
    with tarfile.open(archive, "w") as tar:
        add_busybox(tar, PROGRAMS)
        for name, mode, text in (
            ("etc/passwd", 0o644, "app:x:1001:45::/:/bin/sh\n"),
            ("etc/mine", 0o600, "mine\n"),
            ("etc/closed", 0o000, "closed\n"),
        ):
            member = tarfile.TarInfo(name)
            member.size, member.mode, member.uid = len(text), mode, 77
            tar.addfile(member, io.BytesIO(text.encode()))
        link = tarfile.TarInfo("tmp")
        link.type, link.linkname = tarfile.SYMTYPE, "etc"
        tar.addfile(link)
    with imported(archive, "USER app", "WORKDIR /etc", "ENV COLOR=blue") as name:
        yield name


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with a_node_here() as node:
        yield node


def start(node: Node, channel: int, image: str, command: str = "", *arguments: str, **spec: Any) -> None:
    given: dict[str, Any] = {
        "shim": types_pb2.Container, "image": image, "isolation": "microvm", "limits": HELD,
        "start_timeout_ms": 110_000, "env": {"PYTHONPATH": ""}, **spec,
    }  # fmt: skip
    node.manager.start(channel, command, *arguments, **given)


async def output(node: Node, channel: int, text: bytes | None = None) -> str:
    [answer] = await node.manager.answered(channel, node.manager.run(channel, text))
    assert isinstance(answer, bytes), answer
    return answer.decode()


async def test_a_command_sees_its_image_and_its_own_kernel(node: Node, image: str) -> None:
    script = """
        cat; echo; pwd; echo $COLOR; ls -d /usr /root /etc/shadow 2>&1 | sed 's/.*No/No/'
        id -u; id -g; cat /etc/mine; stat -c '%u %g %a' /etc/mine /etc/closed
        touch /etc/x 2>/dev/null || touch /bin/x 2>/dev/null || touch /tmp/x && ls /tmp/x
        cat "$FLAME_COMMON_DATA_FILE"
    """
    start(node, 1, image, "sh", "-c", script, labels=["stdio=once"], common_data=b"shared")
    await node.manager.bound(1)
    lines = (await output(node, 1, b"input")).split("\n")
    assert lines[:3] == ["input", "/etc", "blue"]
    assert lines[3:6] == ["No such file or directory"] * 3
    assert lines[6:11] == ["1001", "45", "mine", "1001 45 600", "1001 45 0"]
    assert lines[11:] == ["/tmp/x", "shared"]


async def test_the_disk_of_an_image_is_made_once_and_goes_with_it(node: Node, image: str) -> None:
    kept = node.folder / "work" / "shims" / "container"
    identity = podman("image", "inspect", "--format", "{{.Id}}", image).strip()
    for channel in (1, 2):  # at once
        start(node, channel, image, "cat", labels=["stdio=once"])
    for channel in (1, 2):
        await node.manager.bound(channel)
    assert {path.name for path in kept.iterdir()} == {identity, f"{identity}.note", f"{identity}.disk"}
    assert await output(node, 2, b"x") == "x"


async def test_what_it_reaches(node: Node, image: str) -> None:
    """The way to what is listed is another user's than the program, whatever number that has."""
    script = """
        for each in /proc/[0-9]*; do stat -c %u $each; done | sed -n '/^100[0-9]$/p'
        env | sed -n 's/^http_proxy=.*:.*/listed/p'; cat /etc/resolv.conf
    """
    start(node, 1, image, "sh", "-c", script, labels=["stdio=once"], network="127.0.0.2:80")
    await node.manager.bound(1)
    found = (await output(node, 1)).split()
    assert found[-1] == "listed"
    assert set(found[:-1]) == {"1001", "1002"}
    start(node, 2, image, "cat", "/etc/resolv.conf", labels=["stdio=once"], network="host")
    await node.manager.bound(2)
    assert await output(node, 2) == "nameserver 10.0.2.3\n"


async def test_its_machine_ends_with_an_executor_manager_that_is_killed(node: Node, image: str) -> None:
    environ = {name: os.environ[name] for name in ("PATH", "FLAME_MICROVM_CACHE")}
    process = await a_node_apart(node, **environ)
    answer = """read -r line; echo '{"task_id": 1, "output": "here"}'; cat"""
    start(node, 1, image, "sh", "-c", answer, labels=["stdio=lines"])
    await node.manager.bound(1)
    assert await output(node, 1, b"x") == "here"
    pids = owned(node.manager.executor_id(1))
    assert len(pids) > 1
    process.kill()
    await process.wait()
    for pid in pids:
        await gone(pid)
    assert owned(node.manager.executor_id(1)) == []


async def test_an_http_server(node: Node, tmp_path: Path) -> None:
    (tmp_path / "server.py").write_text(SERVER)
    programs = {"server.py": tmp_path / "server.py"}
    with python_image(tmp_path / "image.tar", programs, 'CMD ["python", "server.py"]') as name:
        start(node, 1, name, labels=["container=rest"], env={"PYTHONPATH": "/sdk"})
        await node.manager.bound(1)
        assert await output(node, 1, b"abc") == "cba"


def test_services_of_our_sdk_are_copies_of_a_machine_that_was_saved(tmp_path: Path) -> None:
    (tmp_path / "service.py").write_text(SERVICE)
    programs = {"service.py": tmp_path / "service.py"}
    with (
        python_image(tmp_path / "image.tar", programs, 'CMD ["python", "service.py"]') as name,
        Cluster(tmp_path) as cluster,
        flame.connect(cluster.endpoint) as connection,
    ):
        limits = flame.Limits(memory=LIMITS.memory, pids=LIMITS.pids)
        spec = {"shim": flame.Shim.CONTAINER, "image": name, "isolation": "microvm", "limits": limits}
        connection.register_application("where", {**spec, "start_timeout": 110.0})
        prepared: list[list[str]] = []
        for word in ("one", "two"):
            with connection.create_session("where", common_data=word.encode()) as session:
                prepared.append((session.invoke(b"x", timeout=120) or b"").decode().split())
        assert [found[:4] for found in prepared] == [
            ["one", "x", "/sdk/flame", "/app"],
            ["two", "x", "/sdk/flame", "/app"],
        ]
        assert prepared[0][4] == prepared[1][4]  # by the clock of both

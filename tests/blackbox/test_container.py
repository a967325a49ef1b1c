"""Programs of OCI images as instances, with the real podman and no registry: the image is made here, of busybox."""

from __future__ import annotations

import asyncio
import io
import os
import shutil
import socket
import sys
import tarfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

import flame
from cluster import Cluster
from flame.proto import link_pb2, types_pb2
from images import add_busybox, imported, oci_layout, podman
from scripted_manager import Node, NodeLog, a_node_apart, a_node_here, gone, parent_of
from untrusted import MIB, named

LEVELS = ("none", "process", "gvisor")
NAME = f"localhost/flame-test-{os.getpid()}:1"
PROGRAMS = ("sh", "cat", "ls", "id", "sleep", "sed", "touch", "tail", "env", "dd", "nc")
LINES = """#!/bin/sh
while read -r line; do
  task=$(echo "$line" | sed 's/.*"task_id": *\\([0-9]*\\).*/\\1/')
  echo "{\\"task_id\\": $task, \\"output\\": \\"$COLOR $(cat /etc/marker)\\"}"
done
"""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A small one, with an entry point, a variable and a working directory."""
    tree = tmp_path_factory.mktemp("image")
    for folder in ("bin", "etc", "app"):
        (tree / folder).mkdir()
    (tree / "bin/busybox").write_bytes(Path("/bin/busybox").read_bytes())
    (tree / "bin/busybox").chmod(0o755)
    for name in PROGRAMS:
        (tree / "bin" / name).symlink_to("busybox")
    (tree / "etc/marker").write_text("image")
    (tree / "app/lines").write_text(LINES)
    (tree / "app/lines").chmod(0o755)
    archive = tree / "image.tar"
    with tarfile.open(archive, "w") as tar:
        for folder in ("bin", "etc", "app"):
            tar.add(tree / folder, folder)
    changes = [word for text in ('ENTRYPOINT ["./lines"]', "ENV COLOR=blue", "WORKDIR /app") for word in ("-c", text)]
    podman("import", "--quiet", *changes, str(archive), NAME)
    yield NAME
    podman("rmi", "--force", NAME)


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with a_node_here() as node:
        yield node


def start(node: Node, channel: int, image: str, command: str = "", *arguments: str, **spec: Any) -> str:
    wanted: dict[str, Any] = {"shim": types_pb2.Container, "image": image, "env": {"PYTHONPATH": ""}, **spec}
    return node.manager.start(channel, command, *arguments, **wanted)


def script(node: Node, channel: int, image: str, text: str, **spec: Any) -> str:
    """Start an executor whose tasks are this script, with the input as its stdin."""
    return start(node, channel, image, "sh", "-c", text, labels=["stdio=once"], **spec)


async def output(node: Node, channel: int, text: bytes | None = None) -> str:
    [answer] = await node.manager.answered(channel, node.manager.run(channel, text))
    assert isinstance(answer, bytes), answer
    return answer.decode()


# --- what it runs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
async def test_the_entry_point_of_an_image(node: Node, image: str, level: str) -> None:
    start(node, 1, image, isolation=level, labels=["stdio=lines"])
    await node.manager.bound(1)
    assert await output(node, 1, b"x") == "blue image"


@pytest.mark.parametrize("level", LEVELS)
async def test_a_command_sees_the_image_and_nothing_of_the_node(node: Node, image: str, level: str) -> None:
    script(node, 1, image, "cat; echo; pwd; echo $COLOR $HOME; ls -d /usr /etc/shadow /root 2>&1 | sed 's/.*No/No/'",
           isolation=level)  # fmt: skip
    await node.manager.bound(1)
    lines = (await output(node, 1, b"input")).split("\n")
    assert lines[:3] == ["input", "/app", "blue /tmp"]
    assert lines[3:6] == ["No such file or directory"] * 3


@pytest.mark.parametrize("level", LEVELS)
async def test_an_image_is_not_written_to(node: Node, image: str, level: str) -> None:
    script(node, 1, image, "touch /app/x; touch /etc/marker; touch /tmp/x && echo tmp", isolation=level)
    await node.manager.bound(1)
    assert await output(node, 1) == "tmp\n"
    script(node, 2, image, "ls /app; ls /tmp", isolation=level)
    await node.manager.bound(2)
    assert await output(node, 2) == "lines\n"


@pytest.mark.parametrize("level", ["process", "gvisor"])
@pytest.mark.parametrize("user", ["", "app", "4321", "4321:99"])
async def test_the_user_of_an_image(node: Node, image: str, user: str, level: str) -> None:
    """Its number; all files are that user's."""
    archive = node.folder / "users.tar"
    with tarfile.open(archive, "w") as tar:
        add_busybox(tar, PROGRAMS)
        text = b"app:x:123:45::/:/bin/sh\n"
        member = tarfile.TarInfo("etc/passwd")
        member.size, member.uid, member.mode = len(text), 77, 0o600
        tar.addfile(member, io.BytesIO(text))
    with imported(archive, *([f"USER {user}"] if user else [])) as name:
        script(node, 1, name, "id -u; id -g; cat /etc/passwd", isolation=level)
        await node.manager.bound(1)
        numbers = {"": "1000\n1000", "app": "123\n45", "4321": "4321\n0", "4321:99": "4321\n99"}[user]
        assert await output(node, 1) == f"{numbers}\n{text.decode()}"


async def test_common_data_and_variables(node: Node, image: str) -> None:
    for channel, level in enumerate(LEVELS, 1):
        text = 'cat "$FLAME_COMMON_DATA_FILE"; echo " $COLOR $FLAME_SESSION_ID"'
        script(node, channel, image, text, isolation=level, common_data=b"shared", env={"COLOR": "red"})
        await node.manager.bound(channel)
        assert await output(node, channel) == f"shared red session-{channel}\n"


async def test_the_network(node: Node, image: str) -> None:
    for channel, level in enumerate(("none", "process"), 1):
        script(node, channel, image, "sed -n 's/^ *\\([a-z0-9]*\\):.*/\\1/p' /proc/net/dev", isolation=level)
        await node.manager.bound(channel)
    inside, alone = (await output(node, 1)).split(), (await output(node, 2)).split()
    assert set(inside) == {name for _, name in socket.if_nameindex()}
    assert alone == ["lo"]


async def test_at_level_gvisor_an_image_in_the_network_of_the_node_is_roots(node: Node, image: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        text = f"id -u; nc 127.0.0.1 {server.getsockname()[1]} </dev/null && echo there"
        script(node, 1, image, text, isolation="gvisor", network="host")
        await node.manager.bound(1)
        task = asyncio.ensure_future(output(node, 1))
        connection, _ = await asyncio.to_thread(server.accept)
        connection.close()
        assert await task == "0\nthere\n"


async def test_a_gvisor_that_has_root_only_runs_images_as_root(
    tmp_path: Path, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runsc = tmp_path / "runsc"
    runsc.write_text(f"""#!/bin/sh
for each in "$@"; do
    case $each in --bundle=*) ! grep -q uidMappings "${{each#*=}}/config.json" || exit 1 ;; esac
done
exec {shutil.which("runsc")} "$@"
""")
    runsc.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # where it is noted what runsc can
    for _ in range(2):
        async with a_node_here() as node:
            script(node, 1, image, "id -u", isolation="gvisor")
            await node.manager.bound(1)
            assert await output(node, 1) == "0\n"


async def test_what_an_image_says_is_not_expanded_and_what_the_application_says_is(node: Node, tmp_path: Path) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        add_busybox(tar, PROGRAMS)
    script = 'HOME=mine; echo "$HOME $LITERAL" "$@"'
    name = oci_layout(
        tmp_path / "layout", [stream.getvalue()],
        Env=["PATH=/bin", "LITERAL=$PATH $HOME"], Entrypoint=["sh", "-c", script, "sh"], Cmd=["$LITERAL"],
    )  # fmt: skip
    try:
        start(node, 1, name, "", "$FLAME_SESSION_ID", labels=["stdio=once"])
        await node.manager.bound(1)
        assert await output(node, 1) == "mine $PATH $HOME $LITERAL session-1\n"
        start(node, 2, name, "env", labels=["stdio=once"], env={"OWN": "$HOME"})
        await node.manager.bound(2)
        assert {"LITERAL=$PATH $HOME", "OWN=/tmp"} <= set((await output(node, 2)).splitlines())
    finally:
        podman("rmi", "--force", f"localhost{tmp_path}/layout")


async def test_what_an_image_says_to_the_loader_is_not_said_to_the_node(node: Node, image: str) -> None:
    start(node, 1, image, labels=["stdio=lines"], env={"LD_PRELOAD": "/app/evil.so"})
    bound = await node.manager.bound(1)
    assert await output(node, 1, b"x") == "blue image"
    assert b"LD_PRELOAD=" not in environment_of(bound.pid)


def environment_of(pid: int) -> bytes:
    return Path(f"/proc/{pid}/environ").read_bytes()


# --- limits, its life ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
async def test_a_lack_of_memory_is_said(node: Node, image: str, level: str) -> None:
    text = "dd if=/dev/zero of=/tmp/x bs=1M count=200; tail /dev/zero"
    script(node, 1, image, text, isolation=level, limits=types_pb2.Limits(memory=64 * MIB))
    await node.manager.bound(1)
    [failure] = await node.manager.answered(1, node.manager.run(1, None))
    assert isinstance(failure, link_pb2.Failure)
    assert "want of memory" in failure.message or "ran out of memory" in failure.message


@pytest.mark.parametrize("level", LEVELS)
async def test_nothing_outlives_an_executor_manager_that_is_killed(node: Node, image: str, level: str) -> None:
    process = await a_node_apart(node)
    start(node, 1, image, "sh", "-c", "sleep 3600 & ./lines", isolation=level, labels=["stdio=lines"])
    main = (await node.manager.bound(1)).pid
    assert await output(node, 1, b"x") == "blue image"
    keeper = parent_of(main)
    process.kill()
    await process.wait()
    await gone(keeper)
    await gone(main)
    assert named(node.manager.executor_id(1)) == []


# --- images ----------------------------------------------------------------------------------------------------------


async def test_an_image_is_unpacked_once(node: Node, image: str) -> None:
    for channel in (1, 2, 3):  # at once
        start(node, channel, image, labels=["stdio=lines"])
    for channel in (1, 2, 3):
        await node.manager.bound(channel)
    identity = podman("image", "inspect", "--format", "{{.Id}}", image).strip()
    kept = node.folder / "work" / "shims" / "container"
    assert {path.name for path in kept.iterdir()} == {identity, f"{identity}.note"}
    assert podman("ps", "--all", "--quiet", "--filter", f"ancestor={image}") == ""


@pytest.mark.parametrize("transport", ["docker-archive", "oci-archive"])
async def test_an_image_in_a_file(node: Node, image: str, tmp_path: Path, transport: str) -> None:
    file = tmp_path / "image.tar"
    podman("save", "--quiet", f"--format={transport}", f"--output={file}", image)
    with NodeLog() as log:
        start(node, 1, f"{transport}:{file}", labels=["stdio=lines"])
        await node.manager.bound(1)
        assert await output(node, 1, b"x") == "blue image"
    assert f"podman fetches image {transport}:{file}" in log.text


async def test_an_image_that_can_not_be_fetched(node: Node) -> None:
    start(node, 1, "docker-archive:/nowhere/image.tar")
    released = await node.manager.released(1)
    assert released.code == 10
    assert released.message.startswith("podman can't fetch image 'docker-archive:/nowhere/image.tar': ")
    assert "no such file or directory" in released.message
    node.manager.start(2, "", shim=types_pb2.Container, image="--help")
    assert (await node.manager.released(2)).message.startswith("podman can't fetch image '--help': ")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"command": "nonsense"}, "command 'nonsense' was not found in image"),
        ({"image": ""}, "the application has no image"),
        ({"labels": ["stdio=nonsense"]}, "unknown label stdio=nonsense"),
        ({"labels": ["container=resty"]}, "unknown label container=resty: write container=rest"),
    ],
)
async def test_what_can_not_be_run_says_why(node: Node, image: str, spec: dict[str, Any], message: str) -> None:
    wanted: dict[str, Any] = {"shim": types_pb2.Container, "image": image, **spec}
    node.manager.start(1, wanted.pop("command", ""), **wanted)
    released = await node.manager.released(1)
    assert released.code == 11
    assert message in released.message


def test_sessions_go_to_nodes_that_run_images(tmp_path: Path, image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Cluster(tmp_path, nodes=0) as cluster:
        with monkeypatch.context() as bare:
            bare.setenv("PATH", str(Path(sys.executable).parent))
            cluster.start_node("bare")
        cluster.start_node("able")
        with flame.connect(cluster.endpoint) as connection:
            labels = {node.name: node.labels["flame.shim.container"] for node in connection.list_nodes()}
            assert labels == {"bare": "no", "able": "yes"}
            assert "no shim container: podman is not installed: put it into" in cluster.nodes["bare"].log
            connection.register_application(
                "busy", {"shim": flame.Shim.CONTAINER, "image": image, "labels": ["stdio=lines"]}
            )
            with connection.create_session("busy") as session:
                assert list(session.map([b"1", b"2", b"3"])) == [b"blue image"] * 3
                assert {executor.node for executor in connection.list_executors(session.id)} == {"able"}

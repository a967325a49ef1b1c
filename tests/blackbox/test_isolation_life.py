"""Sandboxes and limited instances from start to end: signals, started ahead, placed, refused, cleaned up."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import flame
from cluster import Cluster
from flame.proto import frontend_pb2, types_pb2
from package_builder import pack
from scripted_manager import Node, NodeLog, a_node_apart, a_node_here, gone, parent_of
from untrusted import MIB, SERVICE, ask, begin, control_groups, require_sandboxes


@pytest.fixture(scope="module", autouse=True)
def sandboxes(tmp_path_factory: pytest.TempPathFactory) -> None:
    require_sandboxes(tmp_path_factory.mktemp("probe"))


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with a_node_here() as node:
        yield node


@pytest.mark.parametrize("level", ["none", "process"])
async def test_an_instance_inherits_no_more_than_its_three_streams(node: Node, level: str) -> None:
    await begin(node, 1, level)
    source = (
        "answer = [os.readlink(f'/proc/self/fd/{n}') for n in range(3, 200) if os.path.islink(f'/proc/self/fd/{n}')]"
    )
    opened = await ask(node, 1, source)
    assert not [name for name in opened if name.startswith(("/", "pipe:"))]


# --- its life --------------------------------------------------------------------------------------------------------


async def test_sigterm_reaches_the_service_inside(node: Node) -> None:
    source = """
        import signal
        class Slow(FlameService):
            def on_task_invoke(self, context):
                signal.signal(signal.SIGTERM, lambda *_: (print("asked to end", flush=True), os._exit(0)))
                print("begun", flush=True)
                time.sleep(3600)
        run(Slow())
    """
    node.start(1, source, isolation="process")
    await node.manager.bound(1)
    node.manager.run(1, b"")
    identity = node.manager.executor_id(1)

    async def printed() -> bytes:
        return b"".join(chunk.data for chunk in await node.manager.read_log(executor_id=identity, stream="stdout"))

    async with asyncio.timeout(30):
        async for chunk in follow(node, identity):
            if b"begun" in chunk:
                break
    node.manager.stop(1, grace_ms=100)
    await node.manager.released(1)
    assert b"asked to end" in await printed()


async def follow(node: Node, identity: str) -> AsyncIterator[bytes]:
    assert node.manager.link is not None
    body = frontend_pb2.GetLogsRequest(executor_id=identity, stream="stdout", follow=True).SerializeToString()
    async for chunk in node.manager.link.stream("ReadLog", body):
        yield frontend_pb2.LogChunk.FromString(chunk).data


async def test_a_node_leaves_no_control_group_behind() -> None:
    async with a_node_here() as node:
        await begin(node, 1, "process")
        assert groups_of(os.getpid())
    assert not groups_of(os.getpid())


def groups_of(pid: int) -> list[Path]:
    return control_groups(f"flame-{pid}-")


@pytest.mark.parametrize("change", [{"isolation": "process"}, {"limits": types_pb2.Limits(memory=256 * MIB)}])
async def test_an_instance_that_waits_is_not_used_for_another_level(node: Node, change: dict[str, Any]) -> None:
    node.start(1, SERVICE, warm_instances=1)
    await node.manager.bound(1)
    node.manager.start(2, sys.executable, str(node.folder / "service1.py"), warm_instances=1, **change)
    await node.manager.bound(2)
    assert [group for group in groups_of(os.getpid()) if (group / node.manager.executor_id(2)).exists()]
    boxed = await ask(node, 2, "answer = [p for p in os.listdir('/proc') if p.isdigit()] == ['1', '2']")
    assert boxed == ("isolation" in change)


async def test_a_sandbox_is_started_ahead_too(node: Node) -> None:
    with NodeLog() as log:
        node.start(1, SERVICE, isolation="process", warm_instances=1)
        await node.manager.bound(1)
        await log.until("waits for a session")
    node.manager.start(2, sys.executable, str(node.folder / "service1.py"), isolation="process", warm_instances=1)
    bound = await node.manager.bound(2)
    assert f"process {bound.pid} waits for a session" in log.text
    assert await ask(node, 2, "answer = [p for p in os.listdir('/proc') if p.isdigit()]") == ["1", "2"]


# --- in a cluster ----------------------------------------------------------------------------------------------------


def test_sessions_go_to_nodes_that_can_isolate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = tmp_path / "where.py"
    service.write_text(
        "import os, flame\n"
        "class Where(flame.FlameService):\n"
        "    def on_task_invoke(self, context):\n"
        "        return f'{os.path.exists(\"/run\")} {os.uname().nodename}'.encode()\n"
        "flame.run(Where())\n"
    )
    with Cluster(tmp_path, nodes=0) as cluster:
        with monkeypatch.context() as bare:
            bare.setenv("PATH", str(Path(sys.executable).parent))
            cluster.start_node("bare")
        with flame.connect(cluster.endpoint) as connection:
            connection.register_application("where", {"command": sys.executable, "arguments": [str(service)]})
            [bare_node] = connection.list_nodes()
            assert bare_node.labels["flame.isolation.process"] == "no"
            attributes = flame.SessionAttributes("where", isolation="process", limits=flame.Limits(memory=256 * MIB))
            with connection.create_session(attributes) as session:
                future = session.submit(b"")
                cluster.start_node("able")
                assert future.result(30) == b"False flame"
                [executor] = [e for e in connection.list_executors() if e.session_id == session.id]
                assert executor.node == "able"


async def test_what_an_instance_used_is_reported(node: Node) -> None:
    await begin(node, 1, "process")
    await ask(node, 1, f"held = b'x' * {100 * MIB}")
    node.manager.stop(1)
    released = await node.manager.released(1)
    assert released.cpu_ms > 0
    assert 100 * MIB < released.peak_memory < 1024 * MIB
    await begin(node, 2, "none")
    node.manager.stop(2)
    assert not (await node.manager.released(2)).peak_memory


def test_scripts_run_in_a_sandbox(tmp_path: Path) -> None:
    with Cluster(tmp_path) as cluster, flame.connect(cluster.endpoint) as connection:
        plain = connection.get_application("flmexec")
        connection.register_application("safe", {"command": plain.command, "isolation": "process"})
        command = [str(Path(sys.executable).parent / "flmexec"), "-a", "safe", "-c", "id -un; ls /etc/shadow /run"]
        done = subprocess.run(command, env=cluster.environ(), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == "flame\n"
    assert "cannot access '/etc/shadow'" in done.stderr


def test_memory_is_named_in_the_error_of_a_task_and_the_events_of_its_session(tmp_path: Path) -> None:
    service = tmp_path / "bomb.py"
    service.write_text(
        "import flame\n"
        "class Bomb(flame.FlameService):\n"
        "    def on_task_invoke(self, context):\n"
        "        return str(len(b'x' * (1 << 28))).encode()\n"
        "flame.run(Bomb())\n"
    )
    with Cluster(tmp_path) as cluster, flame.connect(cluster.endpoint) as connection:
        connection.register_application(
            "bomb",
            {
                "command": sys.executable,
                "arguments": [str(service)],
                "isolation": "process",
                "limits": flame.Limits(memory=64 * MIB),
            },
        )
        assert connection.get_application("bomb").limits == flame.Limits(memory=64 * MIB)
        with connection.create_session("bomb") as session:
            with pytest.raises(flame.TaskFailedError, match="ran out of memory: it needed more than its limit"):
                session.invoke(b"")
            events = [event.message or "" for event in connection.get_session(session.id).events or ()]
            assert any("ran out of memory" in event for event in events)


# --- refused, cleaned up ---------------------------------------------------------------------------------------------


async def test_a_folder_that_would_take_the_sandbox_apart_is_refused(node: Node) -> None:
    node.start(1, SERVICE, isolation="process", working_directory="/")
    released = await node.manager.released(1)
    assert released.message == "working_directory '/' can't be shown to a sandbox: name another one"
    assert not [group for group in groups_of(os.getpid()) if any(entry.is_dir() for entry in group.iterdir())]


async def test_a_working_directory_can_be_read_and_not_written(node: Node) -> None:
    folder = node.folder / "code"
    folder.mkdir()
    (folder / "data").write_text("42")
    node.start(1, SERVICE, isolation="process", working_directory=str(folder))
    await node.manager.bound(1)
    assert await ask(node, 1, "answer = open('data').read()") == "42"
    assert await ask(node, 1, "answer = open('data', 'w')") == {"error": "EROFS"}


async def test_nothing_outlives_an_executor_manager_that_is_killed(node: Node) -> None:
    process = await a_node_apart(node)
    await begin(node, 1, "process")
    await ask(node, 1, "subprocess.Popen(['sleep', '3600'], start_new_session=True, env={})")
    main = (await node.manager.bound(1)).pid
    keeper = parent_of(main)
    process.kill()
    await process.wait()
    await gone(keeper)
    await gone(main)
    left = groups_of(process.pid)
    async with a_node_here():  # the next node of this machine removes what was left
        assert not any(group.exists() for group in left)


def test_a_package_is_there_in_a_sandbox(tmp_path: Path) -> None:
    """One with a virtual environment of its own, and one of plain files, both in folders that are hidden otherwise."""
    source = (
        "import os, flame, helper\n"
        "class Where(flame.FlameService):\n"
        "    def on_task_invoke(self, context):\n"
        "        return f'{helper.WORD} {os.access(helper.__file__, os.W_OK)} {os.path.exists(\"/run\")}'.encode()\n"
        "flame.run(Where())\n"
    )
    files = {"main.py": source, "helper.py": "WORD = 'packed'\n"}
    archive = pack(tmp_path / "where.tar.gz", files)
    binary = pack(
        tmp_path / "binary.tar.gz", {"bin/where": f"#!{sys.executable}\n{source}", "bin/helper.py": files["helper.py"]}
    )
    with Cluster(tmp_path) as cluster, flame.connect(cluster.endpoint) as connection:
        for name, attributes in {
            "python": {"command": "python", "arguments": ["${FLAME_APP_DIR}/main.py"], "url": archive.as_uri()},
            "binary": {"command": "where", "url": binary.as_uri()},
        }.items():
            connection.register_application(name, {**attributes, "installer": name, "isolation": "process"})
            with connection.create_session(name) as session:
                assert session.invoke(b"") == b"packed False False"

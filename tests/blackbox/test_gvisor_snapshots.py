"""Instances at level gvisor that are copies of one, saved when its service was prepared."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from asyncinotify import Inotify, Mask

import flame
from cluster import Cluster
from flame.proto import frontend_pb2, types_pb2
from images import python_image
from prepared import ASYNC, FAILS, PREPARED, are_apart, program
from scripted_manager import PATIENCE, Node, NodeLog, a_node_apart, a_node_here, descendants, gone, runs
from untrusted import MIB, ask

LEVEL = "gvisor"
NOT_USED = b"no snapshot is used, the instance is started"


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where snapshots are kept."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("FLAME_GVISOR_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where programs lie: at the same place for all, since where they lie is a part of what they are."""
    return tmp_path_factory.mktemp("programs")


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with a_node_here() as node:
        yield node


def start(node: Node, folder: Path, channel: int, source: str, name: str, **options: Any) -> None:
    node.manager.start(channel, sys.executable, program(folder, source, name), **{"isolation": LEVEL, **options})


async def begin(node: Node, folder: Path, channels: range, source: str, name: str, **options: Any) -> None:
    """Start one after the other. The first one on a node is never a copy, the second saves itself."""
    for channel in channels:
        start(node, folder, channel, source, name, **options)
        await node.manager.bound(channel)


async def written(node: Node, channel: int) -> bytes:
    """What an instance wrote to stderr, and what is in front of it."""
    chunks = await node.manager.read_log(executor_id=node.manager.executor_id(channel))
    return b"".join(chunk.data for chunk in chunks)


async def until_written(node: Node, channel: int, words: bytes) -> None:
    """Wait until an instance has written these words to stderr."""
    assert node.manager.link is not None
    request = frontend_pb2.GetLogsRequest(executor_id=node.manager.executor_id(channel), follow=True)
    async with asyncio.timeout(PATIENCE):
        async for chunk in node.manager.link.stream("ReadLog", request.SerializeToString()):
            if words in frontend_pb2.LogChunk.FromString(chunk).data:
                return
    raise AssertionError(f"it ended without {words!r}")


def unfinished(cache: Path) -> list[Path]:
    return list(cache.glob("snapshot-*.making"))


def command_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()


def images(cache: Path) -> set[Path]:
    return set(cache.glob("snapshot-*/checkpoint.img"))


async def test_copies_share_what_was_prepared_and_nothing_else(node: Node, folder: Path) -> None:
    await begin(node, folder, range(1, 4), PREPARED, "prepared")
    states = [await ask(node, channel, "answer = state") for channel in (1, 2, 3)]
    assert states[0] != states[1] == states[2]  # on_prepare has run once for both of them
    assert states[1][1] is False  # and knew nobody's identity
    await are_apart(node, 2, 3)
    for channel in (2, 3):
        moments = [await ask(node, channel, "answer = time.monotonic()") for _ in range(2)]
        assert states[1][0] < moments[0] < moments[1]
    tokens = [await ask(node, channel, "answer = os.environ['FLAME_INSTANCE_TOKEN']") for channel in (2, 3)]
    assert tokens[0] != tokens[1]


async def test_copies_have_the_data_of_their_sessions(node: Node, folder: Path) -> None:
    for channel, data in ((1, None), (2, b"two"), (3, b"three"), (4, None)):
        start(node, folder, channel, PREPARED, "data", common_data=data)
        await node.manager.bound(channel)
    read = "path = os.environ.get('FLAME_COMMON_DATA_FILE'); answer = path and open(path).read()"
    assert [await ask(node, channel, read) for channel in (2, 3, 4)] == ["two", "three", None]
    states = [await ask(node, channel, "answer = state") for channel in (2, 3, 4)]
    assert states == states[:1] * 3


async def test_a_copy_is_held_as_any_other_instance(node: Node, folder: Path) -> None:
    await begin(node, folder, range(1, 3), PREPARED, "held", limits=types_pb2.Limits(memory=128 * MIB, pids=24))
    assert await written(node, 2) == b""
    assert (await ask(node, 2, "answer = state"))[1] is False
    assert "Starting gVisor" in await ask(node, 2, "answer = subprocess.check_output('dmesg').decode()")
    assert await ask(node, 2, "answer = [os.path.exists(p) for p in ('/etc/shadow', '/run')]") == [False, False]
    assert await ask(node, 2, "answer = os.listdir('/dev/shm')") == []
    assert await ask(node, 2, "answer = open('/.flame/x', 'w')") == {"error": "EROFS"}
    assert await ask(node, 2, "answer = socket.socket().connect(('169.254.169.254', 80))") == {"error": "EHOSTUNREACH"}
    node.manager.run(2, b"held = [bytearray(1 << 20) for _ in range(4000)]")
    released = await node.manager.released(2)
    assert released.message == f"the instance ran out of memory: it needed more than its limit of {128 * MIB} bytes"


WITHOUT: dict[str, dict[str, Any]] = {
    "label": {"labels": ["snapshot=off"]},
    "network": {"network": "host"},
    "list": {"network": "127.0.0.2:80"},
    "little memory": {"limits": types_pb2.Limits(memory=64 * MIB)},
}


@pytest.mark.parametrize("options", WITHOUT.values(), ids=WITHOUT)
async def test_who_does_without(node: Node, folder: Path, options: dict[str, Any]) -> None:
    await begin(node, folder, range(1, 4), PREPARED, "without", **options)
    states = [await ask(node, channel, "answer = state") for channel in (1, 2, 3)]
    assert [known for _, known in states] == [True] * 3


async def test_copies_in_an_image(node: Node, tmp_path: Path, cache: Path) -> None:
    before = images(cache)
    service = Path(program(tmp_path, PREPARED, "service"))
    spec: dict[str, Any] = {"shim": types_pb2.Container, "env": {"PYTHONPATH": "/sdk"}, "isolation": LEVEL}
    with python_image(tmp_path / "image.tar", {"service.py": service}, 'CMD ["python", "service.py"]') as image:
        for channel in range(1, 5):
            node.manager.start(channel, "", image=image, **spec)
            await node.manager.bound(channel)
            assert await written(node, channel) == b""
        states = [await ask(node, channel, "answer = state") for channel in range(1, 5)]
        assert states[0] != states[1] == states[2] == states[3]
        await are_apart(node, 2, 3)
        assert await ask(node, 4, "answer = [os.getcwd(), os.path.exists('/usr/bin/dpkg')]") == ["/app", False]
    assert len(images(cache) - before) == 1


async def test_none_is_kept(node: Node, folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLAME_GVISOR_SNAPSHOTS", "0")
    async with a_node_here() as other:
        before = images(cache)
        await begin(other, folder, range(1, 4), PREPARED, "none")
        assert images(cache) == before


async def test_a_changed_program_is_not_the_saved_one(node: Node, folder: Path) -> None:
    await begin(node, folder, range(1, 3), PREPARED, "changing")
    file = folder / "changing.py"
    file.write_text(file.read_text().replace("state = []", "state = ['changed']"))
    await begin(node, folder, range(3, 6), PREPARED, "changing")
    states = [await ask(node, channel, "answer = state") for channel in (2, 3, 4, 5)]
    assert [len(state) for state in states] == [2, 3, 3, 3]
    assert states[2] == states[3]


@pytest.mark.parametrize("damage", ["cut", "garbage", "gone"])
async def test_a_snapshot_that_is_damaged_is_made_anew(node: Node, folder: Path, cache: Path, damage: str) -> None:
    before = images(cache)
    await begin(node, folder, range(1, 3), PREPARED, f"damaged-{damage}")
    [image] = images(cache) - before
    if damage == "cut":
        os.truncate(image, 1000)
    elif damage == "garbage":
        image.write_bytes(os.urandom(100_000))
    else:
        image.unlink()
    await begin(node, folder, range(3, 6), PREPARED, f"damaged-{damage}")
    states = [await ask(node, channel, "answer = state") for channel in (3, 4, 5)]
    assert states[1] == states[2]
    if damage != "gone":
        assert states[0][1] is True
        assert NOT_USED in await written(node, 3)
    assert NOT_USED not in await written(node, 4) + await written(node, 5)


REMEDY = b"make room there, or name another folder in FLAME_GVISOR_CACHE, or set FLAME_GVISOR_SNAPSHOTS=0"


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A disk on which there is no room for a snapshot."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


async def remount(disk: Path, options: str) -> None:
    await asyncio.to_thread(subprocess.run, ["mount", "-o", f"remount,{options}", str(disk)], check=True)


async def test_a_disk_that_can_only_be_read(small: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there is used."""
    monkeypatch.setenv("FLAME_GVISOR_CACHE", str(small))
    await remount(small, "size=64m")
    async with a_node_here() as node:
        await begin(node, folder, range(1, 3), PREPARED, "read")
        await remount(small, "ro")
        await begin(node, folder, range(3, 4), PREPARED, "read")
        assert await ask(node, 2, "answer = state") == await ask(node, 3, "answer = state")
        assert await written(node, 3) == b""
        await begin(node, folder, range(4, 5), PREPARED, "read-other")
        words = await written(node, 4)
        assert NOT_USED + f": they can't be kept: {small}/locks/".encode() in words
        assert words.endswith(b": Read-only file system; " + REMEDY + b"\n")


async def test_a_disk_that_is_full(small: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLAME_GVISOR_CACHE", str(small))
    async with a_node_here() as node:
        await begin(node, folder, range(1, 3), PREPARED, "full")
        assert (await ask(node, 2, "answer = state"))[1] is True
        words = await written(node, 2)
        assert NOT_USED + f": runsc can't save the instance in {small}: ".encode() in words
        assert words.endswith(b": no space left on device; " + REMEDY + b"\n")
        assert images(small) == set()
        await remount(small, "size=64m")
        await begin(node, folder, range(3, 5), PREPARED, "full")
        assert await ask(node, 3, "answer = state") == await ask(node, 4, "answer = state")


async def test_a_program_that_takes_no_part(node: Node, folder: Path) -> None:
    """One that is of no use in a saved state, such as one of another SDK, is started each time."""
    source = "os.environ.pop('FLAME_SNAPSHOT_FD', None)\n" + PREPARED
    await begin(node, folder, range(1, 4), source, "other")
    assert await ask(node, 3, "answer = state[1]") is True
    assert b"the program takes no part in snapshots" in await written(node, 2)
    assert await written(node, 3) == b""  # nobody tries again


async def test_one_that_makes_a_socket_takes_no_part(node: Node, folder: Path) -> None:
    source = "del os.environ['FLAME_INSTANCE_LINK']\n" + PREPARED
    await begin(node, folder, range(1, 4), source, "served")
    assert await ask(node, 3, "answer = state[1]") is True
    assert b"the program takes no part in snapshots" in await written(node, 2)


async def test_a_runsc_that_can_not_save(
    folder: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shutil.which("runsc")
    (tmp_path / "runsc").write_text(
        f'#!/bin/sh\ncase "$*" in *" checkpoint "*) echo not here >&2; exit 2;; esac\nexec {real} "$@"\n'
    )
    (tmp_path / "runsc").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    async with a_node_here() as node:
        await begin(node, folder, range(1, 4), PREPARED, "old")
        assert [(await ask(node, channel, "answer = state"))[1] for channel in (1, 2, 3)] == [True] * 3
        why = f": runsc can't save the instance in {cache}: not here\n"
        assert await written(node, 2) == b"flame: " + NOT_USED + why.encode()
        assert await written(node, 3) == b""


async def test_several_nodes_make_one_snapshot(node: Node, folder: Path, cache: Path) -> None:
    before = images(cache)
    await begin(node, folder, range(1, 2), PREPARED, "several")
    async with a_node_here() as other:
        for each in (node, other):
            for channel in (11, 12):
                start(each, folder, channel, PREPARED, "several")
        for each in (node, other):
            for channel in (11, 12):
                await each.manager.bound(channel)
        states = [await ask(each, channel, "answer = state") for each in (node, other) for channel in (11, 12)]
        assert states == states[:1] * 4
        assert len(images(cache) - before) == 1
        assert {await written(each, channel) for each in (node, other) for channel in (11, 12)} == {b""}


@pytest.mark.parametrize("how", ["stopped", "killed"])
async def test_what_one_leaves_that_ends_while_it_is_saved(node: Node, folder: Path, cache: Path, how: str) -> None:
    """Neither processes nor a half of a snapshot that is used."""
    before, name = images(cache), f"slow-{how}"
    slow = PREPARED.replace(
        "state.append(time.monotonic())", "print('here', file=sys.stderr, flush=True); time.sleep(3600)"
    )
    for channel in (1, 2):
        start(node, folder, channel, slow, name)
        [runs] = await node.manager.until(lambda channel=channel: node.manager.reports.get(channel))
        await until_written(node, channel, b"here")
    assert len(unfinished(cache)) == 1
    below = descendants(runs.pid)
    if how == "stopped":
        node.manager.stop(2, grace_ms=100)
    else:
        os.kill(runs.pid, signal.SIGKILL)
    await node.manager.released(2)
    assert b"no snapshot" not in await written(node, 2)
    for each in below:
        await gone(each)
    node.manager.stop(1, grace_ms=100)
    await node.manager.released(1)
    file = folder / f"{name}.py"
    file.write_text(
        file.read_text().replace(
            "print('here', file=sys.stderr, flush=True); time.sleep(3600)", "state.append(time.monotonic())"
        )
    )
    await begin(node, folder, range(4, 7), slow, name)
    assert await ask(node, 5, "answer = state") == await ask(node, 6, "answer = state")
    assert len(images(cache) - before) == 1
    assert unfinished(cache) == []


# In front of the real runsc: one that restores is stopped as soon as its sandbox reads what was saved.
HALTING = """#!{python} -IS
import os, signal, sys
parent = os.getpid()
if "restore" in sys.argv and os.path.exists("{armed}") and not os.fork():
    os.close(1), os.close(2)
    while os.getppid() == parent:
        for thread in os.listdir(f"/proc/{{parent}}/task"):
            for child in open(f"/proc/{{parent}}/task/{{thread}}/children").read().split():
                try:
                    opened = [os.readlink(f"/proc/{{child}}/fd/{{each}}") for each in os.listdir(f"/proc/{{child}}/fd")]
                except OSError:
                    continue
                if any("checkpoint.img" in each for each in opened):
                    os.kill(int(child), signal.SIGSTOP)
                    os.unlink("{armed}")
                    os._exit(0)
    os._exit(0)
os.execv("{real}", ["runsc", *sys.argv[1:]])
"""


@pytest.fixture
def armed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file; the next copy is stopped while it is restored when it is there, and then it is not any more."""
    file, runsc = tmp_path / "armed", tmp_path / "runsc"
    runsc.write_text(HALTING.format(python=sys.executable, armed=file, real=shutil.which("runsc")))
    runsc.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return file


async def halted(node: Node, folder: Path, armed: Path, name: str) -> int:
    """The third instance of this name is a copy that is being restored, and gets no further; the process in front."""
    await begin(node, folder, range(1, 3), PREPARED, name)
    await asyncio.to_thread(armed.touch)
    with Inotify() as inotify:
        inotify.add_watch(armed.parent, Mask.DELETE)
        start(node, folder, 3, PREPARED, name)
        [runs] = await node.manager.until(lambda: node.manager.reports.get(3))
        async with asyncio.timeout(PATIENCE):
            await inotify.get()
    parts = {command_of(each).split("\0")[0] for each in descendants(runs.pid)}
    assert parts >= {"runsc", "runsc-sandbox", "runsc-gofer"}
    return runs.pid


LOG = {"session"}


def left_of(node: Node, channel: int) -> set[str]:
    """What is in the folders of an executor."""
    name = node.manager.executor_id(channel)
    return {file.name for folder in node.folder.rglob(name) for file in folder.rglob("*")}


@pytest.mark.parametrize("how", ["stopped", "killed"])
async def test_one_that_ends_while_it_is_restored(folder: Path, armed: Path, how: str) -> None:
    async with a_node_here() as node:
        pid = await halted(node, folder, armed, "restored")
        below = descendants(pid)
        assert left_of(node, 3) > LOG
        if how == "stopped":
            node.manager.stop(3, grace_ms=100)
        else:
            os.kill(pid, signal.SIGKILL)
        released = await node.manager.released(3)
        if how == "killed":
            assert "the instance was killed by SIGKILL" in released.message
        for each in (pid, *below):
            await gone(each)
        assert await written(node, 3) == b""
        await begin(node, folder, range(4, 5), PREPARED, "restored")
        assert await ask(node, 4, "answer = state") == await ask(node, 2, "answer = state")
        await node.executors.stop()
        assert left_of(node, 3) == LOG


@pytest.mark.parametrize("part", ["runsc-sandbox", "runsc-gofer", "runsc"])
async def test_a_part_that_is_killed_while_it_is_restored(folder: Path, armed: Path, part: str) -> None:
    """The instance is started, then."""
    async with a_node_here() as node:
        pid = await halted(node, folder, armed, "part")
        below = descendants(pid)
        [victim] = [each for each in below if command_of(each).split("\0")[0] == part]
        os.kill(victim, signal.SIGKILL)
        await node.manager.bound(3)
        assert (await ask(node, 3, "answer = state"))[1] is True
        assert NOT_USED in await written(node, 3)
        for each in below:
            await gone(each)


async def test_an_executor_manager_that_is_killed_while_it_restores(
    node: Node, folder: Path, armed: Path, cache: Path
) -> None:
    process = await a_node_apart(node, FLAME_GVISOR_CACHE=str(cache), PATH=os.environ["PATH"])
    pid = await halted(node, folder, armed, "restored-node")
    below = descendants(process.pid)
    assert pid in below
    process.kill()
    await process.wait()
    for each in below:
        await gone(each)
    assert unfinished(cache) == []


def test_a_task_whose_node_is_killed_while_it_restores_is_done_on_another(armed: Path, tmp_path: Path) -> None:
    service = program(tmp_path, PREPARED, "service")
    settings = {"recovery": {"node": {"drain": 1}}}  # seconds that a node may be away
    with (
        Cluster(tmp_path / "cluster", nodes=2, settings=settings) as cluster,
        flame.connect(cluster.endpoint) as connection,
    ):
        connection.register_application(
            "prepared", {"command": sys.executable, "arguments": [service], "isolation": LEVEL, "delay_release": 0}
        )
        for _ in range(2):
            with connection.create_session("prepared") as session:
                assert session.invoke(b"answer = 1") == b"1"
        armed.touch()
        with Inotify(sync_timeout=PATIENCE) as inotify, connection.create_session("prepared") as session:
            inotify.add_watch(armed.parent, Mask.DELETE)
            task = session.submit(b"answer = 1")
            assert next(iter(inotify)).mask & Mask.DELETE
            [executor] = connection.list_executors(session.id)
            node = cluster.nodes[executor.node]
            below = descendants(node.pid)
            assert {"runsc-sandbox", "runsc-gofer"} <= {command_of(each).split("\0")[0] for each in below}
            node.kill()
            assert task.result(timeout=2 * PATIENCE) == b"1"
            [executor] = connection.list_executors(session.id)
            assert cluster.nodes[executor.node] is not node
            assert not [each for each in below if runs(each)]


async def test_copies_end_with_their_node(node: Node, folder: Path) -> None:
    process = await a_node_apart(node)
    await begin(node, folder, range(1, 4), PREPARED, "apart")
    assert await ask(node, 2, "answer = state") == await ask(node, 3, "answer = state")
    pids = [(await node.manager.bound(channel)).pid for channel in (2, 3)]
    below = [each for pid in pids for each in descendants(pid)]
    assert len(below) >= 8
    process.kill()
    await process.wait()
    for pid in (*pids, *below):
        await gone(pid)


@pytest.mark.parametrize("part", ["runsc-sandbox", "runsc-gofer"])
async def test_a_part_of_a_copy_that_is_killed(node: Node, folder: Path, part: str) -> None:
    await begin(node, folder, range(1, 3), PREPARED, "parts")
    below = descendants((await node.manager.bound(2)).pid)
    [victim] = [pid for pid in below if command_of(pid).startswith(part)]
    os.kill(victim, signal.SIGKILL)
    assert (await node.manager.released(2)).crashed
    for pid in below:
        await gone(pid)


async def test_signals_reach_a_copy(node: Node, folder: Path) -> None:
    await begin(node, folder, range(1, 3), PREPARED, "signals")
    await ask(node, 2, "signal.signal(signal.SIGTERM, lambda *_: (print('it ends', file=sys.stderr), os._exit(0)))")
    node.manager.run(2, b"print('here', file=sys.stderr)\ntime.sleep(3600)")
    await until_written(node, 2, b"here")
    node.manager.stop(2, grace_ms=100)
    await node.manager.released(2)
    assert await written(node, 2) == b"here\nit ends\n"


async def test_copies_that_wait_for_a_session(node: Node, folder: Path) -> None:
    with NodeLog() as log:
        start(node, folder, 1, PREPARED, "warm", warm_instances=1)
        await node.manager.bound(1)
        await log.until("waits for a session of app")
        start(node, folder, 2, PREPARED, "warm", warm_instances=1)
        bound = await node.manager.bound(2)
    assert f"process {bound.pid} waits for a session" in log.text
    start(node, folder, 3, PREPARED, "warm", labels=["other"])
    await node.manager.bound(3)
    assert await ask(node, 2, "answer = state") == await ask(node, 3, "answer = state")
    known = await ask(node, 2, "answer = [os.environ['FLAME_EXECUTOR_ID'], os.environ['FLAME_SESSION_ID']]")
    assert known == [node.manager.executor_id(2), "session-2"]


async def test_a_service_that_prepares_itself_only_where_it_serves(node: Node, folder: Path) -> None:
    """What it needs for it may be there for sessions only: it is started each time."""
    source = PREPARED.replace("state.append(time.monotonic())", "state.append(os.environ['FLAME_EXECUTOR_ID'])")
    await begin(node, folder, range(1, 4), source, "served-only")
    assert await ask(node, 3, "answer = state") == [node.manager.executor_id(3), True]
    assert b"the program ended with exit status 1 before it was prepared" in await written(node, 2)
    assert await written(node, 3) == b""


async def test_a_service_is_prepared_in_the_loop_that_it_works_in(node: Node, folder: Path) -> None:
    await begin(node, folder, range(1, 4), ASYNC, "async")
    for channel in (1, 2, 3):
        assert await node.manager.answered(channel, node.manager.run(channel, b"")) == [b"the same"]


async def test_a_service_that_can_not_be_prepared(node: Node, folder: Path) -> None:
    for channel in (1, 2, 3):
        start(node, folder, channel, FAILS, "failing")
        released = await node.manager.released(channel)
        assert "the instance exited with status 1 before it was ready" in released.message
        assert "RuntimeError: no model here" in released.message

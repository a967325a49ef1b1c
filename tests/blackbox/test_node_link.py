"""The executor manager and its link: what it says of itself, and what survives when the link does not."""

from __future__ import annotations

import asyncio
import signal
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from flame.link import tcp
from flame.model.errors import InvalidConfigError, NotFoundError
from flame.node import ExecutorManager, NodeSettings
from flame.node.folders import Folders
from flame.proto import types_pb2
from flame.security import make_certificates, server_ssl
from scripted_manager import ECHO, PATIENCE, Node, ScriptedManager, a_node_here, appears, gone


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with a_node_here() as node:
        yield node


def waiting(node: Node) -> str:
    """A service whose task ends when the file `go on` exists."""
    return f"""
        class Wait(FlameService):
            def on_task_invoke(self, context):
                print(file=open({str(node.folder / "entered")!r}, "w"))
                while not os.path.exists({str(node.folder / "go on")!r}):
                    time.sleep(0.001)
                if context.input == b"exit":
                    os._exit(1)
                return context.input
        run(Wait())
    """


async def test_a_node_introduces_itself_and_says_regularly_that_it_is_well(node: Node) -> None:
    (hello,) = node.manager.hellos
    assert (hello.role, hello.id, len(hello.node.boot_id)) == ("node", "node-1", 32)
    assert hello.node.node.status.capacity == types_pb2.ResourceRequirement(cpu=4, memory=8 << 30)
    assert hello.node.node.status.info.os == "linux"
    assert not hello.node.executors
    await node.manager.until(lambda: len(node.manager.heartbeats) > 1, "heartbeats")
    assert node.manager.heartbeats[0].state == types_pb2.Ready


async def test_executors_go_on_without_the_manager_and_report_afterwards(node: Node) -> None:
    node.start(1, waiting(node))
    await node.manager.bound(1)
    running, queued = node.manager.run(1, b"first", b"second", attempt=2)
    await appears(node.folder / "entered")
    await node.manager.close()
    (node.folder / "go on").touch()
    await until_idle(node, 1)
    await node.manager.open()
    await node.manager.until(lambda: len(node.manager.hellos) == 2, "the node to come back")
    first, second = node.manager.hellos
    assert second.node.boot_id == first.node.boot_id
    (held,) = second.node.executors
    assert (held.executor_id, held.channel, held.session_id) == (node.manager.executor_id(1), 1, "session-1")
    assert held.state == types_pb2.ExecutorBound
    assert held.resreq == types_pb2.ResourceRequirement(cpu=1, memory=1 << 30)
    # Their results have not been heard, so the node still holds them.
    assert dict(zip(held.task_ids, held.attempts, strict=True)) == {running: 2, queued: 2}
    assert await node.manager.answered(1, [running, queued]) == [b"first", b"second"]
    assert await node.manager.answered(1, node.manager.run(1, b"third")) == [b"third"]


async def until_idle(node: Node, channel: int) -> None:
    """Wait until an executor holds no task: its results are in the outbox."""
    async with asyncio.timeout(PATIENCE):
        while node.executors.executors[channel].outstanding:  # noqa: ASYNC110 - nothing tells it while the link is down
            await asyncio.sleep(0.005)


async def test_the_death_of_an_instance_is_told_after_the_reconnection(node: Node) -> None:
    node.start(1, waiting(node))
    await node.manager.bound(1)
    (running,) = node.manager.run(1, b"exit")
    await appears(node.folder / "entered")
    await node.manager.close()
    (node.folder / "go on").touch()
    await node.executors.executors[1].life
    await node.manager.open()
    released = await node.manager.released(1)
    assert released.crashed
    (held,) = node.manager.hellos[-1].node.executors
    assert list(held.task_ids) == [running]
    assert not node.executors.executors


async def test_executors_that_nobody_wants_any_more_are_killed(node: Node) -> None:
    node.start(1, ECHO)
    node.start(2, ECHO)
    unwanted = await node.manager.bound(1)
    await node.manager.bound(2)
    await node.manager.close()
    node.manager.discard = [1]
    await node.manager.open()
    await node.manager.released(1)
    await gone(unwanted.pid)
    assert await node.manager.answered(2, node.manager.run(2, b"kept")) == [b"kept"]


async def test_what_a_discarded_executor_had_to_say_is_dropped(node: Node) -> None:
    node.start(1, waiting(node))
    await node.manager.bound(1)
    node.manager.run(1, b"exit")
    await appears(node.folder / "entered")
    await node.manager.close()
    (node.folder / "go on").touch()
    await node.executors.executors[1].life
    node.manager.discard = [1]
    node.manager.heartbeats.clear()
    await node.manager.open()
    await node.manager.until(lambda: node.manager.heartbeats, "a heartbeat")
    assert not any(report.state == types_pb2.ExecutorReleased for report in node.manager.reports[1])
    assert not node.executors.executors


async def test_stopping_what_is_gone_is_answered_again(node: Node) -> None:
    node.manager.stop(9)
    assert (await node.manager.released(9)).state == types_pb2.ExecutorReleased


async def test_stopping_during_the_start_leaves_nothing(node: Node) -> None:
    node.start(1, "time.sleep(3600)")
    await node.manager.until(lambda: node.manager.reports.get(1), "the process")
    node.manager.stop(1, grace_ms=0)
    released = await node.manager.released(1)
    assert not released.code
    await gone(released.pid)


async def test_stopping_at_once_after_the_start(node: Node) -> None:
    node.start(1, ECHO)
    node.manager.stop(1, grace_ms=0)
    await node.manager.released(1)
    await node.executors.stop()
    assert not any((node.folder / "work" / "executors").iterdir())


async def test_an_unknown_method_is_refused(node: Node) -> None:
    assert node.manager.link is not None
    with pytest.raises(NotFoundError, match="no method 'Reboot' here"):
        await node.manager.link.call("Reboot", b"")


async def test_instances_wait_with_their_results_while_the_manager_does_not_read(node: Node) -> None:
    source = """
        class Large(FlameService):
            def on_task_invoke(self, context):
                return bytes(1024 * 1024)
        run(Large())
    """
    node.start(1, source)
    await node.manager.bound(1)
    assert node.manager.link is not None
    node.manager.link.pause_reading()
    ids = node.manager.run(1, *[b""] * 100)
    async with asyncio.timeout(PATIENCE):
        while not node.executors.congested:  # noqa: ASYNC110 - the one who would be told does not listen
            await asyncio.sleep(0.005)
    assert len(node.executors.executors[1].outstanding) > 50
    node.manager.link.resume_reading()
    assert await node.manager.answered(1, ids) == [bytes(1024 * 1024)] * 100
    assert not node.executors.congested


async def test_instances_wait_with_their_results_while_there_is_no_manager(node: Node) -> None:
    source = """
        class Large(FlameService):
            def on_task_invoke(self, context):
                while not os.path.exists(context.input):
                    time.sleep(0.01)
                return bytes(1024 * 1024)
        run(Large())
    """
    node.start(1, source)
    await node.manager.bound(1)
    go_on = node.folder / "go on"
    ids = node.manager.run(1, *[str(go_on).encode()] * 100)
    async with asyncio.timeout(PATIENCE):
        while len(node.executors.executors[1].outstanding) < 100:  # noqa: ASYNC110 - nothing tells it
            await asyncio.sleep(0.005)
    await node.manager.close()
    go_on.touch()
    async with asyncio.timeout(PATIENCE):
        while not node.executors.congested:  # noqa: ASYNC110 - nothing tells it while the link is down
            await asyncio.sleep(0.005)
    assert len(node.executors.executors[1].outstanding) > 50
    await node.manager.open()
    assert await node.manager.answered(1, ids) == [bytes(1024 * 1024)] * 100
    assert not node.executors.congested


async def test_the_link_speaks_tls_with_certificates_on_both_sides(tmp_path: Path) -> None:
    made = make_certificates(tmp_path)
    manager = ScriptedManager(tcp("127.0.0.1", 0), server_ssl(made.server))
    await manager.open()
    settings = NodeSettings(manager=manager.address, work_dir=tmp_path / "work", tls=made.node)
    node = ExecutorManager(settings)
    await node.start()
    try:
        await manager.until(lambda: manager.link, "the node")
        assert manager.link is not None
        certificate = manager.link.peer.certificate
        assert certificate is not None
        assert ("organizationName", "flame:node") in [pair for entry in certificate["subject"] for pair in entry]
    finally:
        await node.stop()
        await manager.close()


async def test_two_nodes_can_not_share_a_folder(node: Node) -> None:
    with pytest.raises(InvalidConfigError, match="another executor manager uses"):
        await ExecutorManager(node.executors.settings).start()


async def test_what_a_node_and_its_keeper_left_when_both_were_killed_is_ended_by_the_next(tmp_path: Path) -> None:
    executor_id = uuid.uuid4().hex
    (tmp_path / "executors" / executor_id).mkdir(parents=True)
    sockets = tmp_path / "s" / "nold"
    sockets.mkdir(parents=True)
    (tmp_path / "sockets").symlink_to(sockets)
    orphan = await asyncio.create_subprocess_exec("sleep", "3600", env={"FLAME_INSTANCE_ID": executor_id})
    folders = await asyncio.to_thread(Folders.take, tmp_path, tmp_path / "s")
    assert await orphan.wait() == -signal.SIGKILL
    assert list(folders.executors.iterdir()) == []
    assert not sockets.exists()
    folders.release()
    assert not folders.sockets.exists()


async def test_stopping_the_node_ends_its_executors(node: Node) -> None:
    node.start(1, ECHO)
    bound = await node.manager.bound(1)
    await node.executors.stop()
    assert (await node.manager.released(1)).message == "the node stops"
    await gone(bound.pid)

"""Instances that speak gRPC: services written with the unmodified foreign SDK, and ours when no link is offered."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from flame.link import Kind
from flame.proto import link_pb2, types_pb2
from scripted_manager import Births, Node, NodeLog, a_node_here, appears, gone

FOREIGN = Path(__file__).parent.parent.parent / ".venv-foreign" / "bin" / "python"

SERVICE = """
    if sys.argv[1:]:
        open(os.path.join(sys.argv[1], str(os.getpid())), "w").close()
    class Evaluate(FlameService):
        def on_session_enter(self, context):
            if context.common_data() == b"refuse":
                raise ValueError("refused")
        def on_task_invoke(self, context):
            return None if context.input is None else eval(context.input.decode())
        def on_session_leave(self):
            print("left", flush=True)
    run(Evaluate())
"""


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with a_node_here() as node:
        yield node


@pytest.fixture
def log() -> Iterator[NodeLog]:
    with NodeLog() as log:
        yield log


@pytest.fixture(params=["flamepy", "flame", "flame, async def"])
def dialect(request: pytest.FixtureRequest) -> str:
    if request.param == "flamepy" and not FOREIGN.exists():
        pytest.fail("the foreign SDK is not installed in .venv-foreign: run make foreign")
    return request.param


def start(node: Node, dialect: str, channel: int = 1, *arguments: str, **options: object) -> None:
    """Start the service as executor `channel`, written with the SDK that `dialect` names."""
    source = SERVICE
    if dialect == "flamepy":
        file = node.service(source)
        program = Path(file).read_text().replace("from flame.service import *", "from flamepy import FlameService, run")
        Path(file).write_text(program)
        node.manager.start(channel, str(FOREIGN), file, *arguments, **options)
    else:
        if "async" in dialect:
            source = source.replace("def on_task", "async def on_task").replace(
                "def on_session_e", "async def on_session_e"
            )
        file = node.service('    del os.environ["FLAME_INSTANCE_LINK"]\n' + source)
        node.manager.start(channel, sys.executable, file, *arguments, **options)


async def test_tasks_of_a_grpc_service(node: Node, dialect: str) -> None:
    start(node, dialect)
    assert (await node.manager.bound(1)).concurrency == 1
    ids = node.manager.run(1, b"b'one'", b"1 / 0", None, b"b''", b"bytes(5 * 1024 * 1024)")
    one, failure, absent, empty, large = await node.manager.answered(1, ids)
    assert (one, absent, empty, len(large)) == (b"one", None, b"", 5 * 1024 * 1024)
    assert (failure.state, failure.code, failure.message) == (types_pb2.Failed, -1, "division by zero")
    node.manager.stop(1)
    released = await node.manager.released(1)
    assert not released.crashed
    (chunk,) = await node.manager.read_log(executor_id=node.manager.executor_id(1), stream="stdout")
    assert chunk.data == b"left\n"
    await gone(released.pid)


async def test_a_grpc_service_that_refuses_its_session(node: Node, dialect: str) -> None:
    start(node, dialect, common_data=b"refuse")
    released = await node.manager.released(1)
    assert (released.code, released.message) == (12, "refused")


async def test_a_grpc_instance_that_dies_in_a_task_has_crashed(node: Node, dialect: str) -> None:
    start(node, dialect)
    await node.manager.bound(1)
    node.manager.run(1, b"os._exit(3)", b"b'never'")
    released = await node.manager.released(1)
    assert released.crashed
    assert released.message.startswith("the instance exited with status 3")
    assert not node.manager.answers(1)


async def test_too_large_an_output_of_a_grpc_service_fails_its_task_only(dialect: str) -> None:
    async with a_node_here(max_payload=1024 * 1024) as node:
        start(node, dialect)
        await node.manager.bound(1)
        ids = node.manager.run(1, b"bytes(20 * 1024 * 1024)", b"bytes(2 * 1024 * 1024)", b"b'fine'")
        *failures, fine = await node.manager.answered(1, ids)
        assert all("cluster.limits.max_payload" in failure.message for failure in failures)
        assert fine == b"fine"


async def test_cancelling_queued_and_running_tasks_of_a_grpc_service(node: Node, dialect: str) -> None:
    start(node, dialect)
    await node.manager.bound(1)
    entered = node.folder / "entered"
    sleep = f"print(file=open({str(entered)!r}, 'w')) or time.sleep(3600)".encode()
    running, queued, taken_back = node.manager.run(1, sleep, b"b''", b"b''")
    await appears(entered)
    node.manager.send(Kind.RETRACT, 1, link_pb2.Retract(keep=2))
    await node.manager.until(lambda: node.manager.retracted.get(1) == [taken_back], "the retracted task")
    node.manager.cancel(1, queued)
    (failure,) = await node.manager.answered(1, [queued])
    assert failure.state == types_pb2.Cancelled
    # A call can't be interrupted: what does not end in the grace time is killed.
    node.manager.cancel(1, running)
    (failure,) = await node.manager.answered(1, [running])
    assert failure.state == types_pb2.Cancelled
    assert not (await node.manager.released(1)).crashed


async def test_a_grpc_task_that_outlives_its_time_out(node: Node, dialect: str) -> None:
    start(node, dialect)
    await node.manager.bound(1)
    quick, slow = node.manager.run(1, b"b'quick'", b"time.sleep(3600)", timeout_ms=200)
    output, failure = await node.manager.answered(1, [quick, slow])
    assert output == b"quick"
    assert (failure.message, failure.retryable) == ("task timed out after 200 ms", True)
    await node.manager.released(1)


async def test_a_grpc_instance_that_was_started_ahead_enters_the_session_that_comes(
    node: Node, dialect: str, log: NodeLog
) -> None:
    births = Births(node.folder)
    start(node, dialect, 1, str(births.folder), warm_instances=1)
    first = (await node.manager.bound(1)).pid
    waiting = await births.until(2) - {first}
    await log.waits(waiting)
    start(node, dialect, 2, str(births.folder), warm_instances=1)
    assert {(await node.manager.bound(2)).pid} == waiting
    assert await node.manager.answered(2, node.manager.run(2, b"b'one'")) == [b"one"]
    waiting = await births.until(3) - {first} - waiting
    await log.waits(waiting)
    start(node, dialect, 3, str(births.folder), warm_instances=1, common_data=b"refuse")
    released = await node.manager.released(3)
    assert (released.code, released.message, {released.pid}) == (12, "refused", waiting)


async def test_a_socket_without_a_server_behind_it_is_given_up(node: Node) -> None:
    source = """
        import socket
        server = socket.socket(socket.AF_UNIX)
        server.bind(os.environ["FLAME_INSTANCE_ENDPOINT"])
        time.sleep(3600)
    """
    node.start(1, source, start_timeout_ms=500)
    released = await node.manager.released(1)
    assert released.code == 11
    assert "did not become ready" in released.message


@pytest.mark.parametrize("made", ["open(path, 'w').close()", "os.symlink(os.environ['FLAME_INSTANCE_LINK'], path)"])
async def test_what_is_no_socket_of_its_own_is_not_connected_to(node: Node, made: str) -> None:
    """A link could name any socket that the executor manager may connect to, from inside of a sandbox too."""
    node.start(1, f"path = os.environ['FLAME_INSTANCE_ENDPOINT']\n{made}\ntime.sleep(3600)\n", isolation="process")
    released = await node.manager.released(1)
    assert released.code == 11
    assert released.message.endswith("is no socket")

"""Instances that turn against their node: what they do costs themselves, and neither the node nor other sessions."""

from __future__ import annotations

import errno
import os
import resource
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from blackbox.trouble import connect
from cluster import Cluster
from flame.proto import frontend_pb2
from scripted_manager import ECHO, Node, a_node_here
from untrusted import MIB, ask, begin, require_sandboxes

# Speaks the link without our SDK, and not as it should.
LIAR = """
    import socket, struct
    from flame.proto import link_pb2 as L, types_pb2 as T
    def connect():
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(os.environ["FLAME_INSTANCE_LINK"])
        return sock
    def frame(kind, message=b"", channel=0):
        body = message if isinstance(message, bytes) else message.SerializeToString()
        return struct.pack("<IBBHI", len(body), kind, 0, 0, channel) + body
    def receive():
        length, kind, *_ = struct.unpack("<IBBHI", sock.recv(12, socket.MSG_WAITALL))
        return kind, sock.recv(length, socket.MSG_WAITALL) if length else b""
    def enter(**result):
        known = dict(version=1, role="instance", id=os.environ["FLAME_EXECUTOR_ID"])
        sock.sendall(frame(L.HELLO, L.Hello(**known, token=os.environ["FLAME_INSTANCE_TOKEN"])))
        receive()
        receive()
        sock.sendall(frame(L.ENTERED, T.Result(**result)))
    def tell(text):
        print(text, flush=True)
        time.sleep(3600)
"""


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with a_node_here() as node:
        yield node


async def said(node: Node, channel: int) -> str:
    """The first line that this instance prints."""
    link = node.manager.link
    assert link is not None
    request = frontend_pb2.GetLogsRequest(executor_id=node.manager.executor_id(channel), follow=True)
    text = b""
    stream = link.stream("ReadLog", request.SerializeToString())
    try:
        async for chunk in stream:
            text += frontend_pb2.LogChunk.FromString(chunk).data
            if b"\n" in text:
                break
    finally:
        await stream.aclose()  # type: ignore[attr-defined]
    return text.decode().splitlines()[0]


async def others_work(node: Node, channel: int) -> None:
    """Whether an executor of another session still does what it is for."""
    assert await node.manager.answered(channel, node.manager.run(channel, b"well")) == [b"well"]


# --- connections -----------------------------------------------------------------------------------------------------


async def test_an_instance_that_connects_without_end_is_given_up(node: Node) -> None:
    source = f"""{LIAR}
    kept = []
    while True:
        kept.append(connect())
    """
    node.start(1, source)
    released = await node.manager.released(1)
    assert "the instance connected more than 4 times without saying who it is" in released.message


async def test_an_instance_that_came_in_can_not_come_in_again(node: Node) -> None:
    source = f"""{LIAR}
    sock = connect()
    enter()
    kept = []
    try:
        while len(kept) < 100:
            kept.append(connect())
    except (ConnectionRefusedError, FileNotFoundError):
        pass
    tell(len(kept))
    """
    node.start(1, source)
    await node.manager.bound(1)
    assert await said(node, 1) == "0"


# --- floods ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flood", "why"),
    [
        ("frame(L.PING) * 200", "more than 100 pings came at once"),
        ("frame(L.CALL, L.Call(method='GetSession'), 1)", "no calls are made here"),
        ("frame(L.HANGUP, channel=1)", "no calls are made here"),
        ("frame(L.RESULTS, L.Results())", "the instance sent results of no task"),
        ("frame(L.RETRACTED, L.Retracted())", "the instance gave back tasks that nobody asked for"),
        ("struct.pack('<IBBHI', 2**32 - 1, L.RESULTS, 0, 0, 0)", "a frame of 4294967295 bytes is over the limit"),
    ],
)
async def test_what_could_be_sent_without_end_ends_the_instance(node: Node, flood: str, why: str) -> None:
    node.start(2, ECHO)
    await node.manager.bound(2)
    source = f"""{LIAR}
    sock = connect()
    enter()
    receive()
    sock.sendall({flood})
    time.sleep(3600)
    """
    node.start(1, source)
    await node.manager.bound(1)
    node.manager.run(1, b"")
    released = await node.manager.released(1)
    assert released.crashed
    assert released.message.startswith(f"the instance broke its contract: {why}")
    await others_work(node, 2)


async def test_an_endless_reason_is_cut_short(node: Node) -> None:
    source = f"""{LIAR}
    sock = connect()
    enter(return_code=3, message="never " * 1000000)
    """
    node.start(1, source)
    released = await node.manager.released(1)
    assert released.code == 12
    assert released.message.startswith("never never")
    assert len(released.message) == 16 * 1024


async def test_half_a_frame_holds_nobody_up(node: Node) -> None:
    node.start(2, ECHO)
    await node.manager.bound(2)
    source = f"""{LIAR}
    sock = connect()
    enter()
    sock.sendall(struct.pack('<IBBHI', 1 << 20, L.RESULTS, 0, 0, 0) + bytes(1000))
    time.sleep(3600)
    """
    node.start(1, source)
    await node.manager.bound(1)
    await others_work(node, 2)
    node.manager.stop(1, grace_ms=0)
    assert (await node.manager.released(1)).message == "stopped by the test"


async def test_tasks_that_are_never_read_do_not_fill_the_memory_of_the_node(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flame.node.executor._LEAST_UNREAD", 16 * MIB)
    source = f"""{LIAR}
    sock = connect()
    enter(concurrency=1000000)
    time.sleep(3600)
    """
    node.start(1, source, memory=16 * MIB)
    bound = await node.manager.bound(1)
    assert bound.concurrency == 1000000
    for _ in range(40):
        node.manager.run(1, bytes(MIB))
    released = await node.manager.released(1)
    assert released.crashed
    assert released.message == (
        f"the instance broke its contract: it asked for tasks and left more than {16 * MIB} bytes of them unread"
    )


# --- what all of a machine share -------------------------------------------------------------------------------------


async def test_buffers_of_tcp_count_as_memory(node: Node, tmp_path: Path) -> None:
    require_sandboxes(tmp_path)
    await begin(node, 1, "process", memory=64 * MIB)
    source = """
server = socket.create_server(("127.0.0.1", 0), backlog=100)
kept, answer = [], 0
for _ in range(60):
    near = socket.create_connection(server.getsockname())
    kept += [near, server.accept()[0]]
    near.setblocking(False)
    try:
        while True:
            answer += near.send(bytes(1 << 18))
    except BlockingIOError:
        pass
"""
    assert await ask(node, 1, source) < 64 * MIB


async def test_descriptors_under_way_keep_no_node_from_starting_others(node: Node, tmp_path: Path) -> None:
    """They are counted for each user: who sends one is refused when there are more than its own limit."""
    require_sandboxes(tmp_path)
    await begin(node, 1, "process")
    _, most = await ask(node, 1, "import resource; answer = resource.getrlimit(resource.RLIMIT_NOFILE)")
    assert most <= resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2


async def test_a_node_that_can_not_send_descriptors_says_so(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ETOOMANYREFS, os.strerror(errno.ETOOMANYREFS))

    with monkeypatch.context() as patched:
        patched.setattr(socket, "send_fds", refuse)
        node.start(1, ECHO)
        released = await node.manager.released(1)
    assert released.code == 11
    assert "Too many references" in released.message
    node.start(2, ECHO)
    await node.manager.bound(2)
    await others_work(node, 2)


# --- what it leaves behind -------------------------------------------------------------------------------------------


def gone_are(*paths: Path) -> bool:
    return not any(path.exists() for path in paths)


async def test_folders_in_folders_without_end_are_removed_all_the_same() -> None:
    source = """
        class Digger(FlameService):
            def on_task_invoke(self, context):
                here = os.path.dirname(os.environ["FLAME_INSTANCE_ENDPOINT"])
                for start in (here, os.environ["TMPDIR"]):
                    os.chdir(start)
                    for _ in range(3000):
                        os.mkdir("x")
                        os.chdir("x")
                return here.encode()
        run(Digger())
    """
    async with a_node_here() as node:
        node.start(1, source)
        await node.manager.bound(1)
        [door] = await node.manager.answered(1, node.manager.run(1, b""))
        node.manager.stop(1)
        assert (await node.manager.released(1)).message == "stopped by the test"
        node.start(2, ECHO)
        await node.manager.bound(2)
        await node.executors.stop()
        left = (node.folder / "work" / "executors").iterdir()
        assert gone_are(Path(door.decode()), *left)


# --- the cluster -----------------------------------------------------------------------------------------------------

RUNS_ANYTHING = """
class Untrusted(FlameService):
    def on_task_invoke(self, context):
        names = {}
        exec(context.input.decode(), names)
        return repr(names["answer"]).encode()
run(Untrusted())
"""
ASK_THE_CLUSTER = """
import os
import flame
os.environ.pop("FLAME_INSTANCE_TOKEN")
try:
    with flame.connect({endpoint!r}, timeout=5) as connection:
        answer = len(connection.list_sessions())
except flame.FlameError as error:
    answer = type(error).__name__
"""


@pytest.mark.parametrize(("network", "answer"), [("none", b"'UnavailableError'"), ("host", b"1")])
def test_only_certificates_keep_an_instance_in_the_network_of_its_node_from_the_cluster(
    tmp_path: Path, network: str, answer: bytes
) -> None:
    """Without them whoever connects from this machine is an administrator: so says SECURITY.md."""
    require_sandboxes(tmp_path)
    program = tmp_path / "untrusted.py"
    program.write_text("from flame.service import *\n" + RUNS_ANYTHING)
    with Cluster(tmp_path / "cluster") as cluster, connect(cluster) as connection:
        connection.register_application(
            "untrusted",
            {"command": sys.executable, "arguments": [str(program)], "isolation": "process", "network": network},
        )
        with connection.create_session("untrusted") as session:
            assert session.invoke(ASK_THE_CLUSTER.format(endpoint=cluster.endpoint).encode(), timeout=60) == answer

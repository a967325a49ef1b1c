"""Instances that turn against their node: what they do costs themselves, and neither the node nor other sessions."""

from __future__ import annotations

import errno
import os
import resource
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

import hostile
from blackbox.trouble import connect
from cluster import Cluster
from flame.proto import frontend_pb2
from flame.shims.levels import find_levels
from hostile import LEVELS, WITH_SOCKETS, write_accomplice
from microvms import cached
from scripted_manager import ECHO, Node, a_node_here
from untrusted import MIB, ask, begin, require_sandboxes

Attack = Callable[..., None]


@pytest.fixture(scope="module")
def accomplice(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What the levels need has to be there: `make test` installs it."""
    folder = tmp_path_factory.mktemp("levels")
    require_sandboxes(folder / "process")
    with cached():
        for level in find_levels(folder, names=LEVELS[2:]):
            assert level.missing == ""
        yield write_accomplice(folder)


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with a_node_here() as node:
        yield node


@pytest.fixture
def attack(node: Node, accomplice: Path) -> Attack:
    """`attack(channel, level, source)` starts an instance that does this to its node: see hostile.py."""
    return partial(hostile.attack, node, accomplice)


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


@pytest.mark.parametrize("level", WITH_SOCKETS)
async def test_an_instance_that_connects_without_end_is_given_up(node: Node, attack: Attack, level: str) -> None:
    source = """
kept = []
while True:
    kept.append(connect())
"""
    attack(1, level, source)
    released = await node.manager.released(1)
    assert "the instance connected more than 4 times without saying who it is" in released.message


@pytest.mark.parametrize("level", WITH_SOCKETS)
async def test_an_instance_that_came_in_can_not_come_in_again(node: Node, attack: Attack, level: str) -> None:
    source = """
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
    attack(1, level, source)
    await node.manager.bound(1)
    assert await said(node, 1) == "0"
    node.manager.stop(1, grace_ms=0)


async def test_a_virtual_machine_has_no_socket_of_its_node(node: Node, attack: Attack) -> None:
    names = "[name for name in os.environ if name in ('FLAME_INSTANCE_LINK', 'FLAME_INSTANCE_ENDPOINT')]"
    attack(1, "microvm", f"sock = connect()\nenter()\ntell({names})")
    await node.manager.bound(1)
    assert await said(node, 1) == "[]"
    node.manager.stop(1, grace_ms=0)


# --- floods ----------------------------------------------------------------------------------------------------------

FLOODS = {
    "frame(L.HELLO, L.Hello(version=1, role='instance')) * 100": "HELLO belongs to the greeting, which is over",
    "frame(L.PING) * 200": "more than 100 pings came at once",
    "frame(L.CALL, L.Call(method='GetSession'), 1)": "no calls are made here",
    "frame(L.HANGUP, channel=1)": "no calls are made here",
    "frame(L.RESULTS, L.Results())": "the instance sent results of no task",
    "frame(L.RESULTS, L.Results(task_ids=[999], outputs=[b'']))": "the instance answered for task 999",
    "frame(L.RETRACTED, L.Retracted())": "the instance gave back tasks that nobody asked for",
    "struct.pack('<IBBHI', 2**32 - 1, L.RESULTS, 0, 0, 0)": "a frame of 4294967295 bytes is over the limit",
    "bytes(range(256))": "what came is no frame of the link",
}


@pytest.mark.parametrize("level", LEVELS)
async def test_what_could_be_sent_without_end_ends_the_instance(node: Node, attack: Attack, level: str) -> None:
    node.start(100, ECHO)
    await node.manager.bound(100)
    for channel, flood in enumerate(FLOODS, 1):
        attack(channel, level, f"sock = connect()\nenter()\nreceive()\nsock.sendall({flood})\ntime.sleep(3600)")
    for channel in range(1, len(FLOODS) + 1):
        await node.manager.bound(channel)
        node.manager.run(channel, b"")
    for channel, why in enumerate(FLOODS.values(), 1):
        released = await node.manager.released(channel)
        assert released.crashed
        assert released.message.startswith(f"the instance broke its contract: {why}")
    await others_work(node, 100)


@pytest.mark.parametrize("level", LEVELS)
async def test_an_endless_reason_is_cut_short(node: Node, attack: Attack, level: str) -> None:
    attack(1, level, "sock = connect()\nenter(return_code=3, message='never ' * 1000000)")
    released = await node.manager.released(1)
    assert released.code == 12
    assert released.message.startswith("never never")
    assert len(released.message) == 16 * 1024


@pytest.mark.parametrize("level", LEVELS)
async def test_half_a_frame_holds_nobody_up(node: Node, attack: Attack, level: str) -> None:
    node.start(2, ECHO)
    await node.manager.bound(2)
    source = """
sock = connect()
enter()
sock.sendall(struct.pack('<IBBHI', 1 << 20, L.RESULTS, 0, 0, 0) + bytes(1000))
tell("half")
"""
    attack(1, level, source)
    await node.manager.bound(1)
    assert await said(node, 1) == "half"
    await others_work(node, 2)
    node.manager.stop(1, grace_ms=0)
    assert (await node.manager.released(1)).message == "stopped by the test"


@pytest.mark.parametrize("level", LEVELS)
async def test_tasks_that_are_never_read_do_not_fill_the_memory_of_the_node(
    node: Node, attack: Attack, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flame.node.executor._LEAST_UNREAD", 16 * MIB)
    attack(1, level, "sock = connect()\nenter(concurrency=1000000)\ntime.sleep(3600)", memory=128 * MIB)
    bound = await node.manager.bound(1)
    assert bound.concurrency == 1000000
    for _ in range(200):
        node.manager.run(1, bytes(MIB))
    released = await node.manager.released(1)
    assert released.crashed
    assert released.message == (
        f"the instance broke its contract: it asked for tasks and left more than {128 * MIB} bytes of them unread"
    )


# --- what all of a machine share -------------------------------------------------------------------------------------


HOARD = """
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


@pytest.mark.parametrize(
    ("level", "network"),
    [("none", ""), ("process", "none"), ("process", "host"), ("gvisor", "host"), ("microvm", "none")],
)
async def test_buffers_of_tcp_are_bounded(node: Node, accomplice: Path, level: str, network: str) -> None:
    await hostile.begin(node, accomplice, 1, level, network, memory=64 * MIB)
    assert await ask(node, 1, HOARD) < 64 * MIB
    node.manager.stop(1, grace_ms=0)


async def test_buffers_of_a_network_inside_gvisor_are_memory_of_the_instance(node: Node, accomplice: Path) -> None:
    await hostile.begin(node, accomplice, 1, "gvisor", "none", memory=64 * MIB)
    node.manager.run(1, HOARD.encode())
    released = await node.manager.released(1)
    assert released.message == f"the instance ran out of memory: it needed more than its limit of {64 * MIB} bytes"


LEASES_AND_CORES = """
import fcntl, resource
def lease(path, flags, kind):
    try:
        return fcntl.fcntl(os.open(path, flags), fcntl.F_SETLEASE, kind)
    except OSError as error:
        return errno.errorcode[error.errno]
leases = [
    lease(sys.executable, os.O_RDONLY, fcntl.F_RDLCK),
    lease(os.environ["TMPDIR"] + "/own", os.O_RDWR | os.O_CREAT, fcntl.F_WRLCK),
]
answer = [leases, resource.getrlimit(resource.RLIMIT_CORE)[1]]
"""


@pytest.mark.parametrize(
    ("level", "leases"),
    [
        ("none", [0, 0]),
        ("process", ["EPERM", "EPERM"]),
        ("gvisor", ["EINVAL", "EINVAL"]),
        ("microvm", ["EACCES", 0]),  # of its own kernel, which nobody else asks for the file
    ],
)
async def test_leases_and_cores(node: Node, accomplice: Path, level: str, leases: list[int | str]) -> None:
    await hostile.begin(node, accomplice, 1, level)
    largest = resource.getrlimit(resource.RLIMIT_CORE)[1] if level == "none" else 0
    assert await ask(node, 1, LEASES_AND_CORES) == [leases, largest]
    node.manager.stop(1, grace_ms=0)


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


DIG = """
answer = [os.environ["TMPDIR"], os.path.dirname(os.environ.get("FLAME_INSTANCE_ENDPOINT", ""))]
for start in filter(None, answer):
    os.chdir(start)
    for _ in range(3000):
        os.mkdir("x")
        os.chdir("x")
        os.chmod(".", 0o300)
"""


@pytest.mark.parametrize("level", LEVELS)
async def test_folders_in_folders_without_end_are_removed_all_the_same(accomplice: Path, level: str) -> None:
    async with a_node_here() as node:
        await hostile.begin(node, accomplice, 1, level)
        temporary, door = await ask(node, 1, DIG)
        assert bool(door) == (level in WITH_SOCKETS)
        node.manager.stop(1, grace_ms=0)
        assert (await node.manager.released(1)).message == "stopped by the test"
        node.start(2, ECHO)
        await node.manager.bound(2)
        await node.executors.stop()
        left = list((node.folder / "work" / "executors").iterdir())
        if door:
            left.append(Path(door))
        if level == "none":  # elsewhere it is a folder of the sandbox
            left.append(Path(temporary))
        assert gone_are(*left)


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

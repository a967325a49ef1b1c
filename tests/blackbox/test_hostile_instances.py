"""Instances that turn against their node: what they do costs themselves, and neither the node nor other sessions."""

from __future__ import annotations

import errno
import os
import re
import resource
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import yaml

import flame
import hostile
from blackbox.trouble import connect
from cluster import Cluster
from flame.config import TlsConfig
from flame.proto import frontend_pb2
from flame.security import make_certificates
from hostile import LEVELS, WITH_SOCKETS
from microvms import cached
from scripted_manager import ECHO, Node, a_node_here
from untrusted import MIB, ask, begin, require_sandboxes

Attack = Callable[..., None]


@pytest.fixture(scope="module")
def accomplice(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with cached():
        yield hostile.prepared(tmp_path_factory.getbasetemp())


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


@pytest.mark.parametrize(
    ("greeting", "words"),
    [("b'\\xff' * 50_000", "frame"), ("b''", "connection")],
    ids=["nonsense", "nothing"],
)
async def test_an_instance_that_greets_with_nonsense_is_told_why_it_did_not_come_in(
    node: Node, tmp_path: Path, greeting: str, words: str
) -> None:
    program = tmp_path / "liar.py"
    program.write_text(f"""
import os, socket, time
sock = socket.socket(socket.AF_UNIX)
sock.connect(os.environ["FLAME_INSTANCE_LINK"].removeprefix("unix:"))
try:
    sock.sendall({greeting})
    sock.shutdown(socket.SHUT_WR)
except OSError:
    pass  # it was sent away before it had said all of it
time.sleep(3600)
""")
    node.manager.start(1, sys.executable, str(program), start_timeout_ms=4000)
    released = await node.manager.released(1)
    assert released.code == 11
    assert "within 4 s; what connected to its link was sent away: " in released.message
    assert words in released.message


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
    own = "os.listdir(os.path.dirname(os.environ['FLAME_INSTANCE_ENDPOINT']))"  # where it may make one
    attack(1, "microvm", f"sock = connect()\nenter()\ntell(['FLAME_INSTANCE_LINK' in os.environ, {own}])")
    await node.manager.bound(1)
    assert await said(node, 1) == "[False, []]"
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
    "frame(L.OBJECTS, b'x', 1)": "an instance may not send objects here",
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
        assert door
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
# Without our SDK, whose import takes its time in a virtual machine. Only administrators may make tenants.
MAKE_A_TENANT = f"""
{hostile.FRAMES}
import ssl
from flame.proto import frontend_pb2 as F
sock = socket.socket()
try:
    sock.connect(ADDRESS)
    if TLS:  # without a certificate, and taking any
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        sock = context.wrap_socket(sock)
    sock.sendall(frame(L.HELLO, L.Hello(version=1, role="client", id="stranger")))
    kind, body = receive()
    if kind != L.WELCOME:
        raise OSError(0, L.Error.FromString(body).message)
    request = F.CreateTenantRequest(name=TENANT).SerializeToString()
    sock.sendall(frame(L.CALL, L.Call(method="CreateTenant", request=request), 1))
    answer = L.Reply.FromString(receive()[1]).error.message or "done"
except OSError as error:
    answer = error.strerror
"""


def register_untrusted(connection: flame.Connection, folder: Path) -> None:
    program = folder / "untrusted.py"
    program.write_text("from flame.service import *\n" + RUNS_ANYTHING)
    attributes = {"command": sys.executable, "arguments": [str(program)], "limits": flame.Limits(memory=128 * MIB)}
    connection.register_application("untrusted", attributes)


def make_a_tenant(
    cluster: Cluster, connection: flame.Connection, level: str, network: str, *, tls: bool = False
) -> str:
    """What an instance gets for an answer that calls the cluster's administrators' calls, as it can reach it."""
    address = ("10.0.2.2" if level == "microvm" else "127.0.0.1", cluster.port + 2)  # the loopback of its node
    source = f"ADDRESS, TENANT, TLS = {address!r}, 'of-{level}', {tls}\n{MAKE_A_TENANT}"
    with connection.create_session("untrusted", isolation=level, network=network) as session:
        return (session.invoke(source.encode(), timeout=100) or b"").decode().strip("'")


def test_no_isolated_instance_calls_the_cluster_as_its_administrator(tmp_path: Path, accomplice: Path) -> None:
    with Cluster(tmp_path / "cluster") as cluster, connect(cluster) as connection:
        register_untrusted(connection, tmp_path)
        assert make_a_tenant(cluster, connection, "none", "") == "done"
        for level in ("process", "gvisor"):  # a virtual machine without a network reaches nothing
            assert make_a_tenant(cluster, connection, level, "none") == "Connection refused"
        for level in LEVELS[1:]:
            with pytest.raises(flame.PermissionDeniedError, match="network host would undo isolation"):
                make_a_tenant(cluster, connection, level, "host")
        with pytest.raises(flame.PermissionDeniedError, match=r"network 127\.0\.0\.1 would undo isolation process"):
            make_a_tenant(cluster, connection, "process", "pypi.org, 127.0.0.1")
        assert {tenant.name for tenant in connection.list_tenants()} >= {"of-none"}


def test_whoever_accepts_that_strangers_administer_a_cluster_accepts_it_of_instances(
    tmp_path: Path, accomplice: Path
) -> None:
    with (
        Cluster(tmp_path / "cluster", settings={"insecure": True}) as cluster,
        connect(cluster) as connection,
    ):
        register_untrusted(connection, tmp_path)
        for level in LEVELS[1:]:
            assert make_a_tenant(cluster, connection, level, "host") == "done"
        assert {tenant.name for tenant in connection.list_tenants()} >= {f"of-{level}" for level in LEVELS[1:]}


def tls_section(tls: TlsConfig) -> dict[str, str]:
    return {"cert_file": str(tls.cert_file), "key_file": str(tls.key_file), "ca_file": str(tls.ca_file)}


def test_with_certificates_an_instance_in_the_network_of_its_node_is_nobody(tmp_path: Path) -> None:
    certificates = make_certificates(tmp_path / "certificates")
    settings = {"tls": tls_section(certificates.server)}
    with Cluster(tmp_path / "cluster", nodes=0, settings=settings, scheme="https") as cluster:
        own = yaml.safe_load(cluster.config.read_text())
        own["cluster"]["tls"] = tls_section(certificates.node)
        (tmp_path / "node.yaml").write_text(yaml.safe_dump(own))
        cluster.start_node("node-1", "--config", str(tmp_path / "node.yaml"))
        own_tls = flame.FlameClientTls(**tls_section(certificates.client))
        with flame.connect(cluster.endpoint, own_tls) as connection:
            register_untrusted(connection, tmp_path)
            answer = make_a_tenant(cluster, connection, "process", "host", tls=True)
            assert answer == "no client certificate was shown"


AT_HOME = """
import flame
ask = '''
import os, flame
try:
    with flame.connect(os.environ["FLAME_ENDPOINT"]) as connection:
        answer = connection.list_applications()
except flame.FlameError as error:
    answer = error.message
answer
'''
with flame.connect() as connection:
    for level in ("process", "gvisor"):
        with flame.Sandbox.create(isolation=level, network="host", connection=connection) as sandbox:
            print(sandbox.run_code(ask).text)
"""


def test_a_cluster_that_listens_at_a_unix_socket_is_out_of_reach(accomplice: Path) -> None:
    """The embedded cluster: its socket lies in a folder that no sandbox shows, and it has no other listener."""
    with tempfile.TemporaryDirectory(prefix="fl", dir="/tmp") as folder:
        homes = dict.fromkeys(("HOME", "XDG_RUNTIME_DIR", "XDG_STATE_HOME"), folder)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("FLAME_")}
        done = subprocess.run(
            [sys.executable, "-c", AT_HOME],
            env={**environment, **homes},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    for answer in done.stdout.splitlines():
        assert re.match(r"can't connect to unix:\S+: No such file or directory", answer.strip("'\""))
    assert len(done.stdout.splitlines()) == 2

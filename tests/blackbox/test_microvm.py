"""What level microvm stops: the rows of docs/isolation.md, as test_isolation.py has them for level process.

Machines are emulated where the tests run, so all instances are alike: one is booted, the others are copies of it.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from flame.proto import types_pb2
from microvms import DISK, LIMITS, MIB, at_hand, owned
from scripted_manager import Node, a_node_apart, a_node_here, gone
from untrusted import SERVICE, ask

LEVEL = "microvm"
HELD = types_pb2.Limits(memory=LIMITS.memory, pids=LIMITS.pids, disk=DISK)


@pytest.fixture(scope="module", autouse=True)
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("microvm")
    file = folder / "untrusted.py"
    file.write_text("import os, sys, time\nfrom flame.service import *\n" + SERVICE.replace("\n    ", "\n"))
    with at_hand(folder):
        yield file


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with a_node_here() as node:
        yield node


@pytest.fixture
def begin(node: Node, service: Path) -> Any:
    async def begin(channel: int = 1, level: str = LEVEL, **options: Any) -> None:
        """Start an executor of this level, and wait until it is bound."""
        held = {"limits": HELD} if level == LEVEL else {}
        given = {"start_timeout_ms": 110_000, **held, **options}
        node.manager.start(channel, sys.executable, str(service), isolation=level, **given)
        await node.manager.bound(channel)

    return begin


# --- what it sees ----------------------------------------------------------------------------------------------------


async def test_it_sees_its_own_machine_only(node: Node, begin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLAME_TEST_SECRET", "xyzzy")
    await begin(2, "none")
    secret = node.folder / "work" / "executors" / node.manager.executor_id(2) / "secret"
    secret.write_text("mine")
    await begin(1)
    assert await ask(node, 1, "answer = os.uname().release") != os.uname().release
    assert "CapEff:\t0000000000000000" in await ask(node, 1, "answer = open('/proc/self/status').read()")
    assert "NoNewPrivs:\t1" in await ask(node, 1, "answer = open('/proc/self/status').read()")
    # Files of another session, the environment of the executor manager.
    assert await ask(node, 1, f"answer = open({str(secret)!r}).read()") == {"error": "ENOENT"}
    assert await ask(node, 1, "answer = [os.path.exists(p) for p in ('/etc/shadow', '/home')]") == [False, False]
    environment = "open('/proc/self/environ').read() + str(dict(os.environ))"
    assert "xyzzy" not in await ask(node, 1, f"answer = {environment}")
    # Processes of the node: those that it sees are the machine's.
    assert await ask(node, 1, f"answer = os.path.exists('/proc/{os.getpid()}/exe')") is False
    # What is not its own can't be written to.
    for path in ("/usr/x", "/x", os.__file__, sys.executable):
        assert await ask(node, 1, f"answer = open({path!r}, 'a')") == {"error": "EROFS"}
    for path in ("/dev/vda", "/dev/mem", "/proc/sys/kernel/threads-max", "/proc/1/mem"):
        assert await ask(node, 1, f"answer = open({path!r}, 'r+')") == {"error": "EACCES"}
    ports = "[open('/dev/' + name, 'r+b', 0) for name in os.listdir('/dev') if name.startswith('vport')]"
    assert await ask(node, 1, f"answer = {ports}") == {"error": "EACCES"}


async def test_it_reaches_nothing(node: Node, begin: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as private:
        path = node.folder / "private.sock"
        private.bind(str(path))
        private.listen()
        await begin()
        assert await ask(node, 1, f"answer = socket.socket().connect({server.getsockname()!r})") == {
            "error": "ECONNREFUSED"
        }
        assert await ask(node, 1, f"answer = socket.socket(socket.AF_UNIX).connect({str(path)!r})") == {
            "error": "ENOENT"
        }
    assert await ask(node, 1, "answer = socket.socket().connect(('169.254.169.254', 80))") == {"error": "ENETUNREACH"}
    raw = "answer = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) and None"
    assert await ask(node, 1, raw) == {"error": "EPERM"}
    assert await ask(node, 1, "answer = socket.socket(socket.AF_PACKET, socket.SOCK_RAW) and None") == {
        "error": "EPERM"
    }
    own = "server = socket.create_server(('127.0.0.1', 0)); answer = socket.socket().connect(server.getsockname())"
    assert await ask(node, 1, own) is None


async def test_it_reaches_what_its_node_reaches_when_it_is_asked_for(node: Node, begin: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        await begin(network="host")
        port = server.getsockname()[1]
        assert await ask(node, 1, f"held = socket.create_connection(('10.0.2.2', {port})); answer = 'there'") == "there"
        # Nobody outside comes to what it listens at.
        own = "sys.kept = socket.create_server(('0.0.0.0', 0)); answer = sys.kept.getsockname()[1]"
        inside = await ask(node, 1, own)
        with socket.socket() as client:
            assert client.connect_ex(("127.0.0.1", inside)) != 0


# --- what it uses ----------------------------------------------------------------------------------------------------

BOMB = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
while True:
    try:
        os.fork()
    except OSError:
        pass
"""


async def test_a_fork_bomb_that_ignores_sigterm(node: Node, begin: Any) -> None:
    await begin(1)
    runner = (await node.manager.bound(1)).pid
    node.manager.run(1, BOMB.encode())
    await begin(2)  # others go on
    assert await ask(node, 2, "answer = 'well'") == "well"
    node.manager.stop(1, grace_ms=100)
    released = await node.manager.released(1)
    assert released.message == "stopped by the test"
    await gone(runner)
    assert owned(node.manager.executor_id(1)) == []


# Small processes: so many of the service's own size would run out of memory first.
MANY = """
sys.bomb = subprocess.Popen([sys.executable, '-I', '-S', '-c', '''
import errno, json, os, signal
made = 0
try:
    while True:
        if not os.fork():
            signal.pause()
        made += 1
except OSError as error:
    group = '/sys/fs/cgroup/flame/pids.'
    numbers = [open(group + name).read().strip() for name in ('max', 'current')]
    print(json.dumps([made, errno.errorcode[error.errno], *numbers]), flush=True)
    signal.pause()
'''], stdout=subprocess.PIPE)
answer = json.loads(sys.bomb.stdout.readline())
"""


async def test_processes_are_limited_if_nothing_is_said(node: Node, begin: Any) -> None:
    """A fork bomb is held at the limit, and its machine goes on."""
    await begin(limits=types_pb2.Limits(memory=512 * MIB, disk=DISK), labels=["snapshot=off"])
    made, why, most, current = await ask(node, 1, MANY)
    assert (why, most) == ("EAGAIN", "1024")
    assert 1000 < made < int(current) <= 1024
    assert await ask(node, 1, "answer = os.fork()") == {"error": "EAGAIN"}
    assert await ask(node, 1, "answer = 'well'") == "well"
    node.manager.stop(1, grace_ms=100)
    assert (await node.manager.released(1)).message == "stopped by the test"
    assert owned(node.manager.executor_id(1)) == []


async def test_a_memory_bomb(node: Node, begin: Any) -> None:
    await begin()
    node.manager.run(1, b"held = [bytearray(1 << 20) for _ in range(4000)]")
    released = await node.manager.released(1)
    assert released.crashed
    assert released.message == f"the instance ran out of memory: it needed more than its limit of {128 * MIB} bytes"


async def test_crashes_are_told_apart(node: Node, begin: Any) -> None:
    await begin(1)
    node.manager.run(1, b"os.kill(os.getpid(), signal.SIGKILL)")
    assert (await node.manager.released(1)).message == "the instance was killed by SIGKILL"
    await begin(2)
    node.manager.run(2, b"os.write(2, b'that was it'); os._exit(3)")
    said = "the instance exited with status 3; the end of its stderr:\nthat was it"
    assert (await node.manager.released(2)).message == said


FILL = f"""
written = 0
with open(os.environ['TMPDIR'] + '/fill', 'wb') as file:
    for _ in range(24):
        written += file.write(bytes({MIB}))
        file.flush()
answer = written
"""
PLACES = """
answer = []
for mount in open('/proc/self/mountinfo'):
    place = mount.split()[4]
    try:
        open(place + '/x', 'w').close()
        answer.append(place)
    except OSError:
        pass
"""


async def test_a_disk_filler(node: Node, begin: Any) -> None:
    await begin()
    assert sorted(await ask(node, 1, PLACES)) == ["/dev/shm", "/tmp"]
    assert await ask(node, 1, FILL) == {"error": "ENOSPC"}


async def test_an_output_flood(node: Node, begin: Any) -> None:
    await begin(limits=types_pb2.Limits(memory=LIMITS.memory, pids=LIMITS.pids, disk=DISK, output=MIB))
    node.manager.run(1, b"while True: os.write(2, bytes(1 << 16))")
    released = await node.manager.released(1)
    assert released.crashed
    assert "wrote more than its limit of 1048576 bytes to stdout and stderr" in released.message


# --- its end ---------------------------------------------------------------------------------------------------------


async def test_nothing_outlives_an_executor_manager_that_is_killed(node: Node, begin: Any) -> None:
    process = await a_node_apart(node)
    await begin()
    runner = (await node.manager.bound(1)).pid
    machine = [pid for pid in owned(node.manager.executor_id(1)) if pid != runner]
    assert len(machine) == 1
    process.kill()
    await process.wait()
    for pid in (runner, *machine):
        await gone(pid)


async def test_a_runner_that_is_killed_takes_its_machine_along(node: Node, begin: Any) -> None:
    await begin()
    runner = (await node.manager.bound(1)).pid
    os.kill(runner, signal.SIGKILL)
    assert (await node.manager.released(1)).message == "the instance was killed by SIGKILL"
    assert owned(node.manager.executor_id(1)) == []

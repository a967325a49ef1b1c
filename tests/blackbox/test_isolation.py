"""What each level of isolation stops and what it does not: the table of docs/isolation.md, a test behind each cell."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from scripted_manager import Node, a_node_here, gone
from untrusted import MIB, SERVICE, ask, begin, control_groups, named, require_sandboxes, throttled


@pytest.fixture(scope="module", autouse=True)
def sandboxes(tmp_path_factory: pytest.TempPathFactory) -> None:
    require_sandboxes(tmp_path_factory.mktemp("probe"))


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with a_node_here() as node:
        yield node


# --- what it reads ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("level", "seen"), [("none", True), ("process", False)])
async def test_files_of_another_session(node: Node, level: str, seen: bool) -> None:
    await begin(node, 1, "none")
    secret = node.folder / "work" / "executors" / node.manager.executor_id(1) / "secret"
    secret.write_text("mine")
    await begin(node, 2, level)
    answer = await ask(node, 2, f"answer = open({str(secret)!r}).read()")
    assert answer == ("mine" if seen else {"error": "ENOENT"})


@pytest.mark.parametrize(("level", "seen"), [("none", True), ("process", False)])
async def test_the_environment_of_the_executor_manager(node: Node, level: str, seen: bool) -> None:
    await begin(node, 1, level)
    answer = await ask(node, 1, f"answer = 'PATH=' in open('/proc/{os.getpid()}/environ').read()")
    assert answer == (True if seen else {"error": "ENOENT"})


async def test_a_variable_of_the_executor_manager_is_not_told_to_a_sandbox(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLAME_TEST_SECRET", "xyzzy")
    node.start(1, SERVICE, isolation="process", env={"COPY": "${FLAME_TEST_SECRET}"})
    await node.manager.bound(1)
    assert await ask(node, 1, "answer = os.environ['COPY']") == "${FLAME_TEST_SECRET}"
    assert "xyzzy" not in await ask(node, 1, "answer = open('/proc/self/environ').read() + str(os.environ)")


@pytest.mark.parametrize(("level", "seen"), [("none", True), ("process", False)])
async def test_processes_of_the_node(node: Node, level: str, seen: bool) -> None:
    await begin(node, 1, level)
    answer = await ask(node, 1, f"answer = os.kill({os.getpid()}, 0)")
    assert answer == (None if seen else {"error": "ESRCH"})


@pytest.mark.parametrize(("level", "seen"), [("none", True), ("process", False)])
async def test_sockets_of_the_node(node: Node, level: str, seen: bool) -> None:
    with socket.socket(socket.AF_UNIX) as private:
        path = node.folder / "private.sock"
        private.bind(str(path))
        private.listen()
        await begin(node, 1, level)
        answer = await ask(node, 1, f"answer = socket.socket(socket.AF_UNIX).connect({str(path)!r})")
    assert answer == (None if seen else {"error": "ENOENT"})


async def test_a_sandbox_sees_no_more_than_it_needs(node: Node) -> None:
    await begin(node, 1, "process")
    assert await ask(node, 1, "answer = sorted(os.listdir('/home')) if os.path.exists('/home') else []") == []
    assert await ask(node, 1, "answer = os.path.exists('/etc/shadow') or os.path.exists('/run')") is False
    assert await ask(node, 1, "answer = open('/usr/x', 'w')") == {"error": "EROFS"}
    assert await ask(node, 1, "answer = open('/x', 'w')") == {"error": "EROFS"}
    # Its owner outside, if that is root, could write there without any capability.
    assert await ask(node, 1, "answer = open('/proc/sys/kernel/threads-max', 'w')") == {"error": "EROFS"}
    assert await ask(node, 1, "answer = [p for p in os.listdir('/proc') if p.isdigit()]") == ["1", "2"]
    assert "CapEff:\t0000000000000000" in await ask(node, 1, "answer = open('/proc/self/status').read()")
    assert "NoNewPrivs:\t1" in await ask(node, 1, "answer = open('/proc/self/status').read()")


# --- where it reaches ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("level", "reached"), [("none", True), ("process", False)])
async def test_the_metadata_address_of_clouds(node: Node, level: str, reached: bool) -> None:
    await begin(node, 1, level)
    # A datagram socket asks for a route and sends nothing.
    source = "answer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(('169.254.169.254', 80))"
    assert await ask(node, 1, source) == (None if reached else {"error": "ENETUNREACH"})


@pytest.mark.parametrize(
    ("level", "network", "reached"), [("none", "", True), ("process", "", False), ("process", "host", True)]
)
async def test_servers_on_the_loopback_of_the_node(node: Node, level: str, network: str, reached: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        node.start(1, SERVICE, isolation=level, network=network)
        await node.manager.bound(1)
        answer = await ask(node, 1, f"answer = socket.socket().connect({server.getsockname()!r})")
    assert answer == (None if reached else {"error": "ECONNREFUSED"})


@pytest.mark.skipif(os.getuid() != 0, reason="only root has raw sockets at all")
@pytest.mark.parametrize(
    ("level", "network", "given"), [("none", "", True), ("process", "", False), ("process", "host", False)]
)
async def test_raw_packets(node: Node, level: str, network: str, given: bool) -> None:
    node.start(1, SERVICE, isolation=level, network=network)
    await node.manager.bound(1)
    raw = "answer = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) and None"
    assert await ask(node, 1, raw) == (None if given else {"error": "EPERM"})
    packets = "answer = socket.socket(socket.AF_PACKET, socket.SOCK_RAW) and None"
    assert await ask(node, 1, packets) == (None if given else {"error": "EAFNOSUPPORT"})


REFUSED = {
    "ptrace": "101, 0, 0, 0, 0",
    "mount": "165, 0, b'/tmp', b'tmpfs', 0, 0",
    "unshare": "272, 0x10000000",
    "clone with a new user namespace": "56, 0x10000011, 0, 0, 0, 0",
    "keyctl": "250, 0, -3, 0",
    "bpf": "321, 0, 0, 0",
    "userfaultfd": "323, 1",
    "perf_event_open": "298, 0, 0, -1, -1, 0",
    "init_module": "175, 0, 0, b''",
    "finit_module": "313, 0, b'', 0",
    "kexec_load": "246, 0, 0, 0, 0",
    "io_uring_setup": "425, 1, 0",
    "process_vm_readv": "310, 1, 0, 0, 0, 0, 0",
    "setns": "308, 0, 0",
    "fsopen": "430, b'tmpfs', 0",
    "a call of the x32 ABI": "0x40000000 + 39",
}


PROLOGUE = """
libc = ctypes.CDLL(None, use_errno=True)
def call(*arguments):
    ctypes.set_errno(0)
    # The kernel looks at all 64 bits; a bare int would leave half of them to chance where it lies on the stack.
    arguments = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    return errno.errorcode[ctypes.get_errno()] if libc.syscall(*arguments) < 0 else "done"
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers are those of x86_64")
async def test_system_calls_that_reach_beyond_a_sandbox(node: Node) -> None:
    await begin(node, 1, "process")
    calls = ", ".join(f"{name!r}: call({arguments})" for name, arguments in REFUSED.items())
    assert await ask(node, 1, f"{PROLOGUE}\nanswer = {{{calls}}}") == dict.fromkeys(REFUSED, "EPERM")
    assert await ask(node, 1, f"{PROLOGUE}\nanswer = [call(39), call(435, 0, 0)]") == ["done", "ENOSYS"]


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers are those of x86_64")
async def test_system_calls_that_reach_beyond_a_plain_process(node: Node) -> None:
    await begin(node, 1, "none")
    assert await ask(node, 1, f"{PROLOGUE}\nanswer = [call(250, 0, -3, 0), call(310, os.getpid(), 0, 0, 0, 0, 0)]") == [
        "done",
        "done",
    ]


@pytest.mark.skipif(os.getuid() != 0, reason="only root may write there at all")
@pytest.mark.parametrize(("level", "allowed"), [("none", True), ("process", False)])
async def test_settings_of_the_kernel(node: Node, level: str, allowed: bool) -> None:
    await begin(node, 1, level)
    answer = await ask(node, 1, "answer = open('/proc/sys/kernel/threads-max', 'r+').close()")
    assert answer == (None if allowed else {"error": "EROFS"})


# --- what it uses ----------------------------------------------------------------------------------------------------

MANY = """
started = []
try:
    for _ in range(60):
        started.append(subprocess.Popen(["sleep", "3600.125"]))
finally:
    for process in started:
        process.kill()
        process.wait()
answer = len(started)
"""


@pytest.mark.parametrize(("level", "limits", "stopped"), [("none", {}, False), ("none", {"pids": 24}, True)])
async def test_many_processes(node: Node, level: str, limits: dict[str, int], stopped: bool) -> None:
    await begin(node, 1, level, **limits)
    assert await ask(node, 1, MANY) == ({"error": "EAGAIN"} if stopped else 60)


async def test_processes_are_limited_if_nothing_is_said(node: Node) -> None:
    await begin(node, 1, "process")
    [limit] = [file for group in control_groups(node.manager.executor_id(1)) if (file := group / "pids.max").exists()]
    assert limit.read_text() == "1024\n"


async def test_a_fork_bomb(node: Node) -> None:
    await begin(node, 1, "process", pids=64)
    bomb = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
def burst():
    while True:
        try:
            os.fork()
        except OSError:
            pass
burst()
"""
    node.manager.run(1, bomb.encode())
    await begin(node, 2, "process")  # others go on
    assert await ask(node, 2, "answer = 'well'") == "well"
    node.manager.stop(1, grace_ms=100)
    released = await node.manager.released(1)
    assert released.message == "stopped by the test"
    await gone(released.pid)
    assert named(node.manager.executor_id(1)) == []


@pytest.mark.parametrize("level", ["none", "process"])
async def test_a_memory_bomb_with_a_limit(node: Node, level: str) -> None:
    await begin(node, 1, level, memory=64 * MIB)
    node.manager.run(1, b"held = [bytearray(1 << 20) for _ in range(4000)]")
    released = await node.manager.released(1)
    assert released.crashed
    assert released.message == f"the instance ran out of memory: it needed more than its limit of {64 * MIB} bytes"


async def test_a_memory_bomb_without_a_limit_is_not_stopped_at_level_none(node: Node) -> None:
    await begin(node, 1, "none")
    source = f"held = bytearray({1200 * MIB}); answer = len(held)"  # more than its executor was given: 1 GiB
    assert await ask(node, 1, source) == 1200 * MIB


async def test_a_memory_bomb_is_stopped_by_what_its_executor_was_given_at_level_process(node: Node) -> None:
    await begin(node, 1, "process")
    node.manager.run(1, f"held = b'x' * {1200 * MIB}".encode())
    released = await node.manager.released(1)
    assert released.message == f"the instance ran out of memory: it needed more than its limit of {1024 * MIB} bytes"


async def test_a_crash_is_told_apart_from_a_lack_of_memory(node: Node) -> None:
    await begin(node, 1, "process", memory=64 * MIB)
    node.manager.run(1, b"os.kill(os.getpid(), signal.SIGKILL)")
    assert (await node.manager.released(1)).message == "the instance was killed by SIGKILL"
    await begin(node, 2, "process", memory=64 * MIB)
    node.manager.run(2, b"os._exit(3)")
    assert (await node.manager.released(2)).message == "the instance exited with status 3"


FILL = f"""
written = 0
with open(os.environ['TMPDIR'] + '/fill', 'wb') as file:
    for _ in range(24):
        written += file.write(bytes({MIB}))
        file.flush()
os.remove(file.name)
answer = written
"""


@pytest.mark.parametrize(
    ("level", "limits", "answer"), [("none", {}, 24 * MIB), ("process", {"disk": 8 * MIB}, {"error": "ENOSPC"})]
)
async def test_a_disk_filler(node: Node, level: str, limits: dict[str, int], answer: Any) -> None:
    await begin(node, 1, level, **limits)
    assert await ask(node, 1, FILL) == answer


async def test_a_sandbox_has_nowhere_else_to_fill(node: Node) -> None:
    await begin(node, 1, "process")
    source = """
answer = []
for mount in open('/proc/self/mountinfo'):
    place, flags = mount.split()[4:6]
    try:
        open(place + '/x', 'w').close()
        answer.append(place)
    except OSError:
        pass
"""
    shared, door, own = sorted(await ask(node, 1, source))
    assert (shared, own) == ("/dev/shm", "/tmp")
    # Where it may make a socket; in memory, and counted as such.
    assert door == await ask(node, 1, "answer = os.path.dirname(os.environ['FLAME_INSTANCE_ENDPOINT'])")
    assert door.startswith("/dev/shm/")


async def test_the_folder_of_its_socket_counts_as_memory(node: Node) -> None:
    await begin(node, 1, "process", memory=64 * MIB)
    node.manager.run(1, FILL.replace("os.environ['TMPDIR']", "os.path.dirname(os.environ['FLAME_INSTANCE_ENDPOINT'])")
                     .replace("range(24)", "range(240)").encode())  # fmt: skip
    released = await node.manager.released(1)
    assert released.message == f"the instance ran out of memory: it needed more than its limit of {64 * MIB} bytes"
    folder = (node.folder / "work" / "doors").resolve()
    await node.manager.until(lambda: not list(folder.iterdir()), "the folder's removal")


@pytest.mark.parametrize("level", ["none", "process"])
async def test_an_output_flood_costs_no_more_than_any_other_log(level: str) -> None:
    async with a_node_here(log_bytes=MIB) as node:
        await begin(node, 1, level)
        assert await ask(node, 1, "for _ in range(80): os.write(1, bytes(1 << 18))\nanswer = 1") == 1
        logs = node.folder / "work" / "logs" / node.manager.executor_id(1)
        assert sum(file.stat().st_size for file in logs.iterdir()) <= 1.5 * MIB


@pytest.mark.parametrize("level", ["none", "process"])
async def test_an_output_flood_with_a_limit(node: Node, level: str) -> None:
    await begin(node, 1, level, output=MIB)
    node.manager.run(1, b"while True: os.write(2, bytes(1 << 16))")
    released = await node.manager.released(1)
    assert released.crashed
    assert "wrote more than its limit of 1048576 bytes to stdout and stderr" in released.message


@pytest.mark.parametrize("level", ["none", "process"])
async def test_a_busy_loop_that_ignores_sigterm(node: Node, level: str) -> None:
    await begin(node, 1, level)
    source = "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])\nwhile True: pass"
    node.manager.run(1, source.encode())
    node.manager.stop(1, grace_ms=100)
    released = await node.manager.released(1)
    await gone(released.pid)


@pytest.mark.parametrize("level", ["none", "process"])
async def test_what_it_leaves_behind(node: Node, level: str) -> None:
    """A process of a session of its own, with a wiped environment, while others work."""
    await begin(node, 1, level, pids=64)
    await begin(node, 2, level)
    mark = f"3600.{node.manager.executor_id(1)[:6]}"
    source = f"""
if not os.fork():
    os.setsid()
    if os.fork():
        os._exit(0)
    os.execve('/bin/sh', ['sh', '-c', 'trap "" TERM; sleep 3600; : {mark}'], {{}})
os.wait()
while not any('{mark}' in open(f'/proc/{{p}}/cmdline').read() for p in os.listdir('/proc') if p.isdigit() and int(p) != os.getpid()):
    pass
answer = True
"""  # noqa: E501
    assert await ask(node, 1, source) is True
    assert named(mark)
    node.manager.stop(1)
    await node.manager.released(1)
    assert named(mark) == []


@pytest.mark.parametrize("level", ["none", "process"])
async def test_wall_time(node: Node, level: str) -> None:
    await begin(node, 1, level, wall_ms=300)
    [failure] = await node.manager.answered(1, node.manager.run(1, b"time.sleep(3600)"))
    assert failure.message == "the instance's wall time of 0.3 s is over"
    assert failure.retryable
    released = await node.manager.released(1)
    assert not released.crashed


@pytest.mark.parametrize("level", ["none", "process"])
async def test_more_processor_time_than_its_limit(node: Node, level: str) -> None:
    await begin(node, 1, level, cpu_millis=200)
    assert await ask(node, 1, "while time.process_time() < 0.3: pass\nanswer = 1") == 1
    assert throttled(node.manager.executor_id(1)) > 0

"""What level gvisor stops: the rows of docs/isolation.md, as test_isolation.py has them for level process."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

import flame
from cluster import Cluster
from flame.proto import frontend_pb2, link_pb2, types_pb2
from flame.shims.gvisor import Gvisor
from package_builder import pack
from scripted_manager import PATIENCE, Node, NodeLog, a_node_apart, a_node_here, descendants, gone, parent_of
from untrusted import MIB, SERVICE, ask, begin, named, throttled

LEVEL = "gvisor"


@pytest.fixture(scope="module", autouse=True)
def gvisor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """runsc has to be there: `make test` installs it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLAME_GVISOR_CACHE", str(tmp_path_factory.mktemp("cache")))
        assert Gvisor.find(tmp_path_factory.mktemp("probe"), os.environ).missing == ""
        yield


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with a_node_here() as node:
        yield node


# --- what it sees ----------------------------------------------------------------------------------------------------


async def test_it_has_a_kernel_of_its_own(node: Node) -> None:
    await begin(node, 1, LEVEL)
    assert await ask(node, 1, "answer = os.uname().version") != os.uname().version
    assert "Starting gVisor" in await ask(node, 1, "answer = subprocess.check_output('dmesg').decode()")
    assert await ask(node, 1, "answer = [p for p in os.listdir('/proc') if p.isdigit()]") == ["1"]
    assert "CapEff:\t0000000000000000" in await ask(node, 1, "answer = open('/proc/self/status').read()")


async def test_files_of_others(node: Node) -> None:
    await begin(node, 1, "none")
    secret = node.folder / "work" / "executors" / node.manager.executor_id(1) / "secret"
    secret.write_text("mine")
    await begin(node, 2, LEVEL)
    assert await ask(node, 2, f"answer = open({str(secret)!r}).read()") == {"error": "ENOENT"}
    assert await ask(node, 2, "answer = [os.path.exists(p) for p in ('/etc/shadow', '/home', '/run')]") == [False] * 3


async def test_nothing_of_the_node_can_be_written_to(node: Node) -> None:
    folder = node.folder / "code"
    folder.mkdir(mode=0o700)
    (folder / "data").write_text("42")
    node.start(1, SERVICE, isolation=LEVEL, working_directory=str(folder))
    await node.manager.bound(1)
    assert await ask(node, 1, "answer = open('data').read()") == "42"
    for path in ("data", "/usr/x", "/x", f"{Path(os.__file__).parent}/x"):
        assert await ask(node, 1, f"answer = open({path!r}, 'w')") == {"error": "EROFS"}
    (folder / "data").write_text("43")  # what changes outside is seen
    assert await ask(node, 1, "answer = open('data').read()") == "43"


async def test_the_environment_of_the_executor_manager(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLAME_TEST_SECRET", "xyzzy")
    node.start(1, SERVICE, isolation=LEVEL, env={"COPY": "${FLAME_TEST_SECRET}", "LD_DEBUG": "versions"})
    await node.manager.bound(1)
    assert await ask(node, 1, "answer = [os.environ['COPY'], os.environ['LD_DEBUG']]") == [
        "${FLAME_TEST_SECRET}",
        "versions",
    ]
    assert "xyzzy" not in await ask(node, 1, "answer = open('/proc/self/environ').read() + str(os.environ)")
    # What its environment says to programs is said to those inside, not to those that make the sandbox.
    assert b"\0LD_DEBUG=" not in of_process((await node.manager.bound(1)).pid, "environ")


async def test_processes_and_sockets_of_the_node(node: Node) -> None:
    with socket.socket(socket.AF_UNIX) as private:
        path = node.folder / "private.sock"
        private.bind(str(path))
        private.listen()
        await begin(node, 1, LEVEL)
        assert await ask(node, 1, f"answer = socket.socket(socket.AF_UNIX).connect({str(path)!r})") == {
            "error": "ENOENT"
        }
        assert await ask(node, 1, f"answer = os.kill({os.getpid()}, 0)") == {"error": "ESRCH"}


# --- where it reaches ------------------------------------------------------------------------------------------------


async def test_without_a_network(node: Node) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        await begin(node, 1, LEVEL)
        address = server.getsockname()
        assert await ask(node, 1, f"answer = socket.socket().connect({address!r})") == {"error": "ECONNREFUSED"}
        assert await ask(node, 1, "answer = socket.socket().connect(('169.254.169.254', 80))") == {
            "error": "EHOSTUNREACH"
        }
        own = "server = socket.create_server(('127.0.0.1', 0)); answer = socket.socket().connect(server.getsockname())"
        assert await ask(node, 1, own) is None


async def test_with_the_network_of_its_node(node: Node) -> None:
    name = f"\0flame-{os.getpid()}"
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind(name)
        abstract.listen()
        node.start(1, SERVICE, isolation=LEVEL, network="host")
        await node.manager.bound(1)
        assert await ask(node, 1, f"answer = socket.socket().connect({server.getsockname()!r})") is None
        assert await ask(node, 1, f"answer = socket.socket(socket.AF_UNIX).connect({name!r})") == {
            "error": "ECONNREFUSED"
        }


@pytest.mark.parametrize("network", ["none", "host"])
async def test_raw_packets(node: Node, network: str) -> None:
    node.start(1, SERVICE, isolation=LEVEL, network=network)
    await node.manager.bound(1)
    for kind in ("AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP", "AF_PACKET, socket.SOCK_RAW"):
        answer = await ask(node, 1, f"answer = socket.socket(socket.{kind}) and None")
        assert answer in ({"error": "EPERM"}, {"error": "EAFNOSUPPORT"})


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers are those of x86_64")
async def test_system_calls_that_reach_beyond_a_sandbox(node: Node) -> None:
    calls = {
        "mount": "165, 0, b'/tmp', b'tmpfs', 0, 0",
        "keyctl": "250, 0, -3, 0",
        "bpf": "321, 0, 0, 0",
        "userfaultfd": "323, 1",
        "perf_event_open": "298, 0, 0, -1, -1, 0",
        "init_module": "175, 0, 0, b''",
        "kexec_load": "246, 0, 0, 0, 0",
        "setns": "308, 0, 0",
        "fsopen": "430, b'tmpfs', 0",
    }
    await begin(node, 1, LEVEL)
    source = "libc = ctypes.CDLL(None)\nanswer = {" + ", ".join(
        f"{name!r}: libc.syscall({arguments})" for name, arguments in calls.items()
    )
    assert await ask(node, 1, source + "}") == dict.fromkeys(calls, -1)


async def test_settings_of_the_kernel(node: Node) -> None:
    await begin(node, 1, LEVEL)
    assert (await ask(node, 1, "answer = open('/proc/sys/kernel/hostname', 'r+')"))["error"] in ("EACCES", "EROFS")
    assert await ask(node, 1, "answer = open('/proc/sys/kernel/threads-max', 'r+')") == {"error": "ENOENT"}


# --- what it uses ----------------------------------------------------------------------------------------------------


async def test_processes_are_counted_exactly(node: Node) -> None:
    await begin(node, 1, LEVEL, pids=24)
    source = """
children = []
try:
    while len(children) < 100:
        pid = os.fork()
        if not pid:
            time.sleep(60)
        children.append(pid)
except OSError as error:
    answer = [len(children), errno.errorcode[error.errno]]
for pid in children:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
threads = len(os.listdir('/proc/self/task'))
answer.append(threads + answer[0])
"""
    _, error, together = await ask(node, 1, source)
    assert (error, together) == ("EAGAIN", 24)


async def test_a_fork_bomb(node: Node) -> None:
    await begin(node, 1, LEVEL, pids=64)
    node.manager.run(1, b"while True:\n  try: os.fork()\n  except OSError: pass")
    await begin(node, 2, LEVEL)  # others go on
    assert await ask(node, 2, "answer = 'well'") == "well"
    node.manager.stop(1, grace_ms=100)
    released = await node.manager.released(1)
    assert released.message == "stopped by the test"
    await gone(released.pid)
    assert named(node.manager.executor_id(1)) == []


async def test_a_memory_bomb(node: Node) -> None:
    await begin(node, 1, LEVEL, memory=64 * MIB)
    node.manager.run(1, b"held = [bytearray(1 << 20) for _ in range(4000)]")
    released = await node.manager.released(1)
    assert released.crashed
    assert released.message == f"the instance ran out of memory: it needed more than its limit of {64 * MIB} bytes"


async def test_a_memory_bomb_is_stopped_by_what_its_executor_was_given(node: Node) -> None:
    await begin(node, 1, LEVEL)
    node.manager.run(1, f"held = b'x' * {1200 * MIB}".encode())
    released = await node.manager.released(1)
    assert released.message == f"the instance ran out of memory: it needed more than its limit of {1024 * MIB} bytes"


async def test_a_crash_is_told_apart_from_a_lack_of_memory(node: Node) -> None:
    endings = {
        b"os.kill(os.getpid(), signal.SIGKILL)": "was killed by SIGKILL",
        b"os._exit(3)": "exited with status 3",
        b"ctypes.string_at(0)": "was killed by SIGSEGV",
    }
    for channel, (source, message) in enumerate(endings.items(), 1):
        await begin(node, channel, LEVEL, memory=64 * MIB)
        node.manager.run(channel, source)
        assert (await node.manager.released(channel)).message == f"the instance {message}"


async def test_a_disk_filler(node: Node) -> None:
    await begin(node, 1, LEVEL, disk=8 * MIB)
    source = f"with open('/tmp/x', 'wb') as f:\n  for _ in range(24): f.write(bytes({MIB})); f.flush()"
    assert await ask(node, 1, source) == {"error": "ENOSPC"}
    assert await ask(node, 1, source.replace("/tmp", "/dev/shm").replace("24", "80")) == {"error": "ENOSPC"}


async def test_an_output_flood_with_a_limit(node: Node) -> None:
    await begin(node, 1, LEVEL, output=MIB)
    node.manager.run(1, b"while True: os.write(2, bytes(1 << 16))")
    released = await node.manager.released(1)
    assert released.crashed
    assert "wrote more than its limit of 1048576 bytes to stdout and stderr" in released.message


async def test_much_that_is_written_at_once(node: Node) -> None:
    """By a program that takes no notice of how much was."""
    size = 900_000
    await begin(node, 1, LEVEL)
    assert await ask(node, 1, f"answer = sys.stderr.write('x' * {size})") == size
    node.manager.stop(1)
    await node.manager.released(1)
    chunks = await node.manager.read_log(executor_id=node.manager.executor_id(1), stream="stderr")
    assert b"".join(chunk.data for chunk in chunks) == b"x" * size


async def test_a_busy_loop_that_ignores_sigterm(node: Node) -> None:
    await begin(node, 1, LEVEL)
    node.manager.run(1, b"signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])\nwhile True: pass")
    node.manager.stop(1, grace_ms=100)
    released = await node.manager.released(1)
    await gone(released.pid)
    assert named(node.manager.executor_id(1)) == []


async def test_wall_time(node: Node) -> None:
    await begin(node, 1, LEVEL, wall_ms=300)
    [failure] = await node.manager.answered(1, node.manager.run(1, b"time.sleep(3600)"))
    assert failure.message == "the instance's wall time of 0.3 s is over"
    assert failure.retryable


async def test_more_processor_time_than_its_limit(node: Node) -> None:
    await begin(node, 1, LEVEL, cpu_millis=200)
    assert await ask(node, 1, "while time.process_time() < 0.3: pass\nanswer = 1") == 1
    assert throttled(node.manager.executor_id(1)) > 0


# --- its life --------------------------------------------------------------------------------------------------------


async def test_sigterm_reaches_all_that_run_inside() -> None:
    async with a_node_here(terminate_grace=PATIENCE) as node:
        await sigterm_reaches_all(node)


async def sigterm_reaches_all(node: Node) -> None:
    source = """
        import signal, subprocess
        class Slow(FlameService):
            def on_task_invoke(self, context):
                signal.signal(signal.SIGTERM, lambda *_: (child.wait(), print("main ends", flush=True), os._exit(0)))
                command = "trap 'echo child ends; exit' TERM; echo >&2; while :; do sleep 0.1; done"
                child = subprocess.Popen(["sh", "-c", command], stderr=subprocess.PIPE)
                child.stderr.readline()
                print("begun", flush=True)  # both know what to do with the signal
                time.sleep(3600)
        run(Slow())
    """
    identity = node.start(1, source, isolation=LEVEL)
    await node.manager.bound(1)
    node.manager.run(1, b"")
    assert node.manager.link is not None
    request = frontend_pb2.GetLogsRequest(executor_id=identity, stream="stdout", follow=True).SerializeToString()
    async with asyncio.timeout(PATIENCE):
        async for chunk in node.manager.link.stream("ReadLog", request):
            if b"begun" in chunk:
                break
    node.manager.stop(1, grace_ms=100)
    await node.manager.released(1)
    printed = b"".join(chunk.data for chunk in await node.manager.read_log(executor_id=identity, stream="stdout"))
    assert printed == b"begun\nchild ends\nmain ends\n"


async def test_what_a_killed_one_leaves(node: Node) -> None:
    """Neither processes of it or of gVisor, nor files."""
    await begin(node, 1, LEVEL)
    await begin(node, 2, LEVEL)
    await ask(node, 1, "subprocess.Popen(['sleep', '3600'], start_new_session=True, env={})")
    bound = await node.manager.bound(1)
    below = descendants(bound.pid)
    assert len(below) >= 4  # runsc, and what it starts: sandbox, gofer, and the processes that run the code
    os.kill(bound.pid, signal.SIGKILL)
    assert (await node.manager.released(1)).message == "the instance was killed by SIGKILL"
    for pid in below:
        await gone(pid)
    assert await ask(node, 2, "answer = 'well'") == "well"
    assert list((node.folder / "work" / "isolation" / LEVEL / "run").iterdir()) == []


@pytest.mark.parametrize("part", ["runsc-sandbox", "runsc-gofer"])
async def test_a_part_of_gvisor_that_is_killed(node: Node, part: str) -> None:
    await begin(node, 1, LEVEL)
    bound = await node.manager.bound(1)
    below = descendants(bound.pid)
    [victim] = [pid for pid in below if of_process(pid, "cmdline").startswith(part.encode())]
    os.kill(victim, signal.SIGKILL)
    released = await node.manager.released(1)
    assert released.crashed
    for pid in below:
        await gone(pid)


async def test_nothing_outlives_an_executor_manager_that_is_killed(node: Node) -> None:
    process = await a_node_apart(node)
    await begin(node, 1, LEVEL)
    await ask(node, 1, "subprocess.Popen(['sleep', '3600'], start_new_session=True, env={})")
    main = (await node.manager.bound(1)).pid
    keeper, below = parent_of(main), descendants(main)
    process.kill()
    await process.wait()
    for pid in (keeper, main, *below):
        await gone(pid)


async def test_it_is_started_ahead_too(node: Node) -> None:
    with NodeLog() as log:
        node.start(1, SERVICE, isolation=LEVEL, warm_instances=1)
        await node.manager.bound(1)
        await log.until("waits for a session")
    node.manager.start(2, sys.executable, str(node.folder / "service1.py"), isolation=LEVEL, warm_instances=1)
    bound = await node.manager.bound(2)
    assert f"process {bound.pid} waits for a session" in log.text
    assert await ask(node, 2, "answer = os.path.exists('/run')") is False


# --- with other shims, packages, in a cluster ------------------------------------------------------------------------

LINES = """
import json, sys
for line in sys.stdin:
    task = json.loads(line)
    print(json.dumps({"task_id": task["task_id"], "output": str(eval(task["input"]))}), flush=True)
"""
FRAMED = """
class Service(FlameService):
    def on_task_invoke(self, context):
        return str(eval(context.input)).encode()
run(Service())
"""
REST = """
import socketserver
from http.server import BaseHTTPRequestHandler
class Service(BaseHTTPRequestHandler):
    def do_POST(self):
        data = self.rfile.read(int(self.headers["Content-Length"]))
        answer = str(eval(data)).encode() if self.path == "/invoke" else b""
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)
class Server(socketserver.UnixStreamServer):
    def get_request(self):
        return super().get_request()[0], ("here", 0)
Server(os.environ["FLAME_REST_SOCKET"], Service).serve_forever()
"""
SHIMS: dict[str, tuple[str, dict[str, Any]]] = {
    "lines": (LINES, {"shim": types_pb2.Stdio}),
    "framed": (FRAMED, {"shim": types_pb2.Stdio, "labels": ["stdio=framed"]}),
    "once": ("sys.stdout.write(str(eval(sys.stdin.read())))", {"shim": types_pb2.Stdio, "labels": ["stdio=once"]}),
    "rest": (REST, {"shim": types_pb2.Rest}),
}


@pytest.mark.parametrize("shim", SHIMS)
async def test_other_shims(node: Node, shim: str) -> None:
    source, spec = SHIMS[shim]
    node.start(1, source, isolation=LEVEL, limits=types_pb2.Limits(memory=100 * MIB), **spec)
    await node.manager.bound(1)
    answers = await node.manager.answered(1, node.manager.run(1, b"6 * 7", b"os.path.exists('/run')"))
    assert answers == [b"42", b"False"]
    [answer] = await node.manager.answered(1, node.manager.run(1, b"len(bytearray(1000))"))
    assert answer == b"1000"
    [task] = node.manager.run(1, f"len(bytearray({200 * MIB}))".encode())
    if shim == "once":
        [failure] = await node.manager.answered(1, [task])
        assert isinstance(failure, link_pb2.Failure)
        assert failure.message.startswith("the program ran out of memory")
    else:
        assert (await node.manager.released(1)).message.startswith("the instance ran out of memory")


def test_packages_and_placement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = (
        "import os, flame, helper\n"
        "class Where(flame.FlameService):\n"
        "    def on_task_invoke(self, context):\n"
        "        writable = os.access(helper.__file__, os.W_OK)\n"
        "        return f'{helper.WORD} {writable} {os.uname().release}'.encode()\n"
        "flame.run(Where())\n"
    )
    archive = pack(tmp_path / "where.tar.gz", {"main.py": source, "helper.py": "WORD = 'packed'\n"})
    release = os.uname().release
    with Cluster(tmp_path, nodes=0) as cluster:
        with monkeypatch.context() as bare:
            bare.setenv("PATH", str(Path(sys.executable).parent))
            cluster.start_node("bare")
        cluster.start_node("able")
        with flame.connect(cluster.endpoint) as connection:
            labels = {node.name: node.labels["flame.isolation.gvisor"] for node in connection.list_nodes()}
            assert labels == {"bare": "no", "able": "yes"}
            assert "no isolation gvisor: gVisor (runsc) is not installed: put runsc into" in cluster.nodes["bare"].log
            attributes = {
                "command": "python",
                "arguments": ["${FLAME_APP_DIR}/main.py"],
                "url": archive.as_uri(),
                "installer": "python",
            }
            connection.register_application("where", attributes)
            with connection.create_session("where", isolation=LEVEL) as session:
                word, writable, kernel = (session.invoke(b"") or b"").decode().split()
                assert (word, writable) == ("packed", "False")
                assert kernel != release
                [executor] = connection.list_executors(session.id)
                assert executor.node == "able"


def test_a_session_may_not_ask_for_less(tmp_path: Path) -> None:
    with Cluster(tmp_path) as cluster, flame.connect(cluster.endpoint) as connection:
        connection.register_application("strict", {"command": "/bin/true", "isolation": LEVEL})
        with pytest.raises(flame.InvalidArgumentError, match="can't have less"):
            connection.create_session("strict", isolation="process")


def of_process(pid: int, file: str) -> bytes:
    return Path(f"/proc/{pid}/{file}").read_bytes()

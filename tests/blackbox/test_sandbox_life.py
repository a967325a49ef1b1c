"""How sandboxes begin, end, pause, are opened by others, and outlive the session manager."""

from __future__ import annotations

import asyncio
import http.client
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import flame
from cluster import Cluster
from flame.client.synchronous import Connection
from flame.sandbox import Snapshot, wire
from sandboxes import LEVELS, cluster_for_sandboxes, create


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster_for_sandboxes(tmp_path_factory.mktemp("life")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def connection(cluster: Cluster) -> Iterator[Connection]:
    with flame.connect(cluster.endpoint) as made:
        yield made


@pytest.fixture(params=LEVELS)
def sandbox(connection: Connection, request: pytest.FixtureRequest) -> Iterator[flame.Sandbox]:
    with create(connection, request.param, env={"GREETING": "hello"}) as made:
        yield made


# --- opened and closed -----------------------------------------------------------------------------------------------


def test_closing_ends_it_for_everybody_and_may_be_repeated(connection: Connection) -> None:
    sandbox = create(connection)
    other = flame.Sandbox.open(sandbox.id, connection=connection)
    sandbox.close()
    sandbox.close()
    for call in (
        lambda: sandbox.run_code("1"),
        lambda: other.run_code("1"),
        other.files.list,
        lambda: sandbox.expose(1),
    ):
        with pytest.raises(flame.InvalidStateError, match="was closed"):
            call()
    with pytest.raises(flame.InvalidStateError, match="was closed"):
        flame.Sandbox.open(sandbox.id, connection=connection)


def test_what_waits_for_a_sandbox_that_is_closed_is_told(connection: Connection) -> None:
    sandbox = create(connection)

    def close(data: bytes) -> None:
        flame.Sandbox.open(sandbox.id, connection=connection).close()

    with pytest.raises(flame.InvalidStateError, match="was closed"):
        sandbox.run_command("echo on; sleep 60", on_stdout=close)


def test_only_sandboxes_can_be_opened(connection: Connection) -> None:
    with pytest.raises(flame.NotFoundError, match="there is no sandbox 'nobody'"):
        flame.Sandbox.open("nobody", connection=connection)
    for application in ("flmexec", "flmping"):
        with connection.create_session(application) as session, pytest.raises(flame.InvalidArgumentError):
            flame.Sandbox.open(session.id, connection=connection)


def test_another_process_opens_it(sandbox: flame.Sandbox, cluster: Cluster) -> None:
    sandbox.run_code("x = 41")
    code = f"import flame\nwith flame.Sandbox.open({sandbox.id!r}) as box: print(box.run_code('x + 1').text)"
    found = subprocess.run(
        [sys.executable, "-c", code], env=cluster.environ(), capture_output=True, text=True, check=False
    )
    assert found.stdout == "42\n", found.stderr
    assert sandbox.run_code("x").text == "41"


@pytest.mark.parametrize(
    "options",
    [
        {"isolation": "none", "network": "none"},
        {"isolation": "nonsense"},
        {"network": "nonsense nonsense"},
        {"idle_timeout": 0},
        {"limits": flame.Limits(memory=1)},
        {"resreq": "cpu=nonsense"},
        {"timeout": 0},
        {"idle_timeout": "long"},
        {"snapshot": "sandbox.snapshot"},
        {"env": {"A=B": "c"}},
        {"env": {"": "c"}},
        {"env": {"A": "b\0c"}},
        {"env": {"A": 1}},
        {"env": "A=B"},
    ],
)
def test_what_no_sandbox_can_be_is_refused(connection: Connection, options: dict[str, object]) -> None:
    with pytest.raises(flame.InvalidArgumentError):
        flame.Sandbox.create(connection=connection, **options)  # type: ignore[arg-type]


def test_one_that_cant_start_says_why_and_leaves_nothing(connection: Connection) -> None:
    with pytest.raises(flame.TimedOutError, match=r"did not start within 0\.5 s"):
        create(connection, resreq="cpu=1000,mem=1g", timeout=0.5)
    assert connection.list_sessions([flame.SessionState.OPEN], "flmexec") == []


# --- lost ------------------------------------------------------------------------------------------------------------


def test_a_sandbox_that_kills_its_service_is_lost_and_nobody_else_is(connection: Connection) -> None:
    with create(connection) as lost, create(connection) as other:
        opened = flame.Sandbox.open(lost.id, connection=connection)
        other.run_code("x = 1")
        with pytest.raises(flame.SandboxLostError, match="was killed by SIGKILL"):
            lost.run_command("kill -9 $PPID; sleep 60")
        for box in (lost, opened):
            with pytest.raises(flame.SandboxLostError, match="was killed by SIGKILL"):
                box.run_code("1")
        with pytest.raises(flame.SandboxLostError, match="was killed by SIGKILL"):
            flame.Sandbox.open(lost.id, connection=connection)
        assert other.run_code("x").text == "1"


def test_a_loss_is_told_at_once_also_when_nothing_can_be_started_in_its_place(tmp_path: Path) -> None:
    with cluster_for_sandboxes(tmp_path / "cluster") as cluster, flame.connect(cluster.endpoint) as connection:
        sandbox = create(connection, resreq="cpu=4,mem=1g")
        connection.cordon_node("node-1")  # a new instance would have to wait
        with pytest.raises(flame.SandboxLostError, match="was killed by SIGKILL"):
            sandbox.run_command("kill -9 $PPID; sleep 60")
        with pytest.raises(flame.SandboxLostError, match="was killed by SIGKILL"):
            sandbox.files.list()
        for update in connection.get_session(sandbox.id).watch():
            if update.state is flame.SessionState.CLOSED:
                break


def test_code_that_takes_too_much_memory_loses_its_kernel_and_not_the_sandbox(connection: Connection) -> None:
    with create(connection, limits=flame.Limits(memory=96 * 1024**2)) as sandbox:
        found = sandbox.run_code("data = [bytearray(2**20) for _ in range(500)]")
        assert found.error is not None
        assert found.error.name in ("KernelDied", "MemoryError")
        assert sandbox.run_code("1 + 1").text == "2"


def test_one_whose_wall_time_is_over_says_so(connection: Connection) -> None:
    with create(connection, limits=flame.Limits(wall_ms=1500)) as sandbox:
        for _ in range(2):
            with pytest.raises(flame.SandboxLostError, match=r"wall time of 1\.5 s is over"):
                sandbox.run_command("sleep 60")


def test_limits_hold(connection: Connection) -> None:
    with create(connection, limits=flame.Limits(pids=40)) as sandbox:
        found = sandbox.run_command("for i in $(seq 100); do sleep 5 & done; wait", timeout=5)
        assert found.exit_code
        assert sandbox.run_code("1").text == "1"


def test_few_processes_are_enough(connection: Connection) -> None:
    with create(connection, limits=flame.Limits(pids=6)) as sandbox:
        assert sandbox.run_command(["true"]).exit_code == 0
        assert sandbox.run_code("1").text == "1"
    with create(connection, limits=flame.Limits(pids=4)) as sandbox:  # no room for a kernel that waits
        assert sandbox.run_code("1").text == "1"
        sandbox.restart_kernel()
        assert sandbox.run_code("2").text == "2"
        with pytest.raises(flame.InvalidArgumentError, match="unavailable"):
            sandbox.run_command(["true"])


# --- the session manager is killed -----------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
def test_it_outlives_the_session_manager(tmp_path: Path, level: str) -> None:
    with cluster_for_sandboxes(tmp_path / "cluster") as cluster, flame.connect(cluster.endpoint) as connection:
        sandbox = create(connection, level)
        sandbox.run_code("x = 41")
        running = sandbox.start_command("read line; for i in $(seq 500); do echo $i; sleep 0.005; done")
        heard: list[bytes] = []
        reader = threading.Thread(target=lambda: heard.extend(output.stdout for output in running))
        reader.start()
        running.write("\n")
        cluster.manager.kill()
        cluster.start_manager()
        reader.join()
        assert b"".join(heard) == b"".join(b"%d\n" % number for number in range(1, 501))
        assert sandbox.run_code("x + 1").text == "42"
        with flame.Sandbox.open(sandbox.id, connection=connection) as opened:
            assert opened.command(running.id).wait().stdout == b"".join(heard)
        sandbox.close()


# --- nobody uses it --------------------------------------------------------------------------------------------------


def test_one_that_nobody_uses_is_closed(connection: Connection) -> None:
    sandbox = create(connection, idle_timeout=1)
    for update in connection.open_session(sandbox.id).watch():
        if update.state is flame.SessionState.CLOSED:
            break
    with pytest.raises(flame.InvalidStateError, match="nothing was asked of it for 1 s"):
        sandbox.run_code("1")


# --- standing still --------------------------------------------------------------------------------------------------


def test_while_it_is_paused_nothing_of_it_runs(sandbox: flame.Sandbox) -> None:
    sandbox.run_code("import threading, time\nticks = 0")
    sandbox.run_code(
        "def tick():\n    global ticks\n    while True:\n        ticks += 1\n        time.sleep(0.001)\n"
        "threading.Thread(target=tick, daemon=True).start()"
    )
    busy = sandbox.start_command("setsid sh -c 'while :; do :; done' & while :; do :; done")
    info = next(info for info in sandbox.commands() if info.id == busy.id)
    sandbox.pause()
    sandbox.pause()

    def state() -> list[str]:
        text = sandbox.files.read(f"/proc/{info.pid}/stat").decode().rpartition(")")[2].split()
        return [text[0], text[11], text[12]]  # state, user time, system time

    before = state()
    assert before[0] == "T"
    for call in (
        lambda: sandbox.run_code("1"),
        lambda: sandbox.run_command("true"),
        sandbox.restart_kernel,
        sandbox.snapshot,
    ):
        with pytest.raises(flame.InvalidStateError, match="is paused; resume it first"):
            call()
    sandbox.files.write("meanwhile", b"1")
    assert sandbox.files.read("meanwhile") == b"1"
    assert state() == before
    sandbox.resume()
    sandbox.resume()
    assert sandbox.run_code("before = ticks\nwhile ticks == before: time.sleep(0.001)").error is None
    busy.kill()
    assert busy.wait().exit_code == 137


def test_time_outs_stand_still_as_well(sandbox: flame.Sandbox) -> None:
    running = sandbox.start_command("read line; echo got $line", timeout=2)
    sandbox.pause()
    with pytest.raises(flame.TimedOutError):
        running.wait(2.5)
    sandbox.resume()
    running.write("it\n")
    assert running.wait().stdout == b"got it\n"


def test_a_paused_sandbox_can_be_closed(connection: Connection) -> None:
    sandbox = create(connection, "none")
    marker = "sleep 4714"
    sandbox.start_command(marker)
    sandbox.pause()
    sandbox.close()
    while any(executor.session_id == sandbox.id for executor in connection.list_executors()):
        pass
    assert not subprocess.run(["pgrep", "-f", marker], capture_output=True, check=False).stdout


# --- snapshots -------------------------------------------------------------------------------------------------------


def test_a_snapshot_has_files_variables_and_environment(
    connection: Connection, sandbox: flame.Sandbox, tmp_path: Path
) -> None:
    sandbox.run_code("import math, threading\nitems = [1]\nsame = items\nfactor = 2\nlock = threading.Lock()")
    sandbox.run_code(
        "def twice(x): return x * factor\nclass Point:\n    def __init__(self): self.x = math.pi\np = Point()"
    )
    sandbox.run_command(
        "echo data > file; mkdir -p a/empty; ln file hard; ln -s file soft; ln -s /etc/passwd out; mkfifo pipe;"
        "chmod 700 a"
    )
    taken = sandbox.snapshot()
    assert list(taken.skipped) == ["lock"]
    assert "pickle" in taken.skipped["lock"]
    taken.save(tmp_path / "saved")
    loaded = Snapshot.load(tmp_path / "saved")
    assert loaded.skipped == taken.skipped
    assert sandbox.skipped == {}
    level = connection.get_session(sandbox.id).message.spec.isolation
    for _ in range(2):
        with create(connection, level, snapshot=loaded) as twin:
            assert twin.skipped == taken.skipped
            assert twin.run_code("(items is same, twice(4), p.x, isinstance(p, Point))").text == (
                "(True, 8, 3.141592653589793, True)"
            )
            assert twin.run_code("factor = 10\ntwice(4)").text == "40"
            assert twin.run_code("import os\nos.environ['GREETING']").text == "'hello'"
            kinds = {file.name: (file.kind, file.target) for file in twin.files.list()}
            assert kinds == {
                "a": ("folder", ""), "file": ("file", ""), "hard": ("file", ""), "soft": ("link", "file"),
                "out": ("link", "/etc/passwd"),
            }  # fmt: skip
            assert twin.files.stat("a").mode == 0o700
            twin.files.write("file", b"changed")
    assert sandbox.files.read("file") == b"data\n"


def test_a_fork_goes_its_own_way(connection: Connection, sandbox: flame.Sandbox) -> None:
    sandbox.run_code("import threading\nx = 1\nlock = threading.Lock()")
    with sandbox.fork() as twin:
        assert list(twin.skipped) == ["lock"]
        assert twin.id != sandbox.id
        twin.run_code("x = 2")
        assert (sandbox.run_code("x").text, twin.run_code("x").text) == ("1", "2")
        specs = [connection.get_session(box.id).message.spec for box in (sandbox, twin)]
        assert specs[0] == specs[1]


def test_a_sandbox_without_variables_has_a_snapshot_as_well(connection: Connection) -> None:
    with create(connection) as sandbox:
        sandbox.files.write("file", b"1")
        taken = sandbox.snapshot()
    with create(connection, snapshot=taken) as twin:
        assert twin.files.read("file") == b"1"


def test_a_snapshot_that_finds_no_room_is_refused_and_the_variables_stay(connection: Connection) -> None:
    with create(connection, limits=flame.Limits(disk=32 * 1024**2)) as sandbox:
        sandbox.run_code("kept = 5\nlarge = b'x' * 64 * 1024**2")
        assert "No space" in sandbox.snapshot().skipped["large"]
        fill = '"${TMPDIR:-/tmp}/fill"'
        assert sandbox.run_command(f"cat /dev/zero > {fill}").exit_code == 1
        with pytest.raises(flame.InvalidStateError, match="the variables can't be saved: OSError"):
            sandbox.snapshot()
        sandbox.run_command(f"rm {fill}")
        assert sandbox.run_code("kept, len(large)").text == "(5, 67108864)"


def test_no_snapshot_while_code_runs(sandbox: flame.Sandbox) -> None:
    problems: list[str] = []

    def take(text: str) -> None:
        try:
            sandbox.snapshot()
        except flame.InvalidStateError as error:
            problems.append(error.message)
        sandbox.interrupt()

    sandbox.run_code("print('on')\nimport time\ntime.sleep(60)", on_stdout=take)
    assert problems == ["code runs in the sandbox"]


def test_nonsense_is_no_snapshot(connection: Connection, tmp_path: Path) -> None:
    (tmp_path / "nonsense").write_bytes(b"nonsense")
    with pytest.raises(flame.InvalidArgumentError, match="no snapshot"):
        Snapshot.load(tmp_path / "nonsense")
    (tmp_path / "cut").write_bytes(b'flame-snapshot 1 {"skipped": {}}\nnonsense')
    with pytest.raises(flame.InvalidArgumentError, match="can't be taken over"):
        create(connection, snapshot=Snapshot.load(tmp_path / "cut"))
    assert connection.list_sessions([flame.SessionState.OPEN], "flmexec") == []


# --- ports -----------------------------------------------------------------------------------------------------------

ECHO = """
import socket, threading
def serve(connection):
    data = b""
    while piece := connection.recv(65536):
        data += piece
    connection.sendall(data[::-1])
    connection.close()
server = socket.create_server(("127.0.0.1", 0))
def accept():
    while True:
        threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()
threading.Thread(target=accept, daemon=True).start()
server.getsockname()[1]
"""


def test_a_server_inside_is_reached_with_both_directions_and_their_ends(sandbox: flame.Sandbox) -> None:
    port = int(sandbox.run_code(ECHO).text)
    with sandbox.expose(port) as exposed:
        assert exposed.host == "127.0.0.1"
        connections = [socket.create_connection((exposed.host, exposed.port)) for _ in range(5)]
        payloads = [os.urandom(300_000 + number) for number in range(5)]
        for connection, payload in zip(connections, payloads, strict=True):
            connection.sendall(payload)
        for connection, payload in zip(reversed(connections), reversed(payloads), strict=True):
            connection.shutdown(socket.SHUT_WR)  # the answer comes after our end
            with connection, connection.makefile("rb") as answer:
                assert answer.read() == payload[::-1]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((exposed.host, exposed.port))


def test_http_through_an_exposed_port(sandbox: flame.Sandbox) -> None:
    sandbox.files.write("index.html", b"<p>inside</p>")
    server = (
        "import http.server, socketserver\n"
        "s = socketserver.TCPServer(('127.0.0.1', 0), http.server.SimpleHTTPRequestHandler)\n"
        "print(s.server_address[1], flush=True)\ns.serve_forever()"
    )
    running = sandbox.start_command([sys.executable, "-c", server])
    output = running.read()
    assert output is not None
    with sandbox.expose(int(output.stdout)) as exposed:
        client = http.client.HTTPConnection(exposed.host, exposed.port)
        for _ in range(3):
            client.request("GET", "/index.html")
            assert client.getresponse().read() == b"<p>inside</p>"
            client.close()
    running.kill()


def test_where_nobody_listens_the_connection_ends(sandbox: flame.Sandbox) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with (
            sandbox.expose(free.getsockname()[1]) as exposed,
            socket.create_connection((exposed.host, exposed.port)) as connection,
        ):
            assert connection.recv(1) == b""
    with pytest.raises(flame.InvalidArgumentError):
        sandbox.expose(70_000)
    with pytest.raises(flame.InvalidArgumentError):
        sandbox.expose("80")  # type: ignore[arg-type]


# --- nonsense to the service, asyncio, others in flmexec -------------------------------------------------------------


def test_calls_that_are_none_are_refused_and_harm_nothing(sandbox: flame.Sandbox) -> None:
    session = sandbox._caller.session
    for payload in (None, b"", b"\xff\xff", b'{"language": "shell", "code": "true"}'):
        answer = wire.decode_answer(session.invoke(payload), wire.Done)
        assert isinstance(answer, wire.Fault)
        assert "no call of a sandbox" in answer.message
    call = wire.RunCode("id", "1", env={"A=B": "c"})
    answer = wire.decode_answer(session.invoke(wire.encode_call(call)), wire.Done)
    assert isinstance(answer, wire.Fault)
    assert "no variable can be called 'A=B'" in answer.message
    assert sandbox.run_code("1").text == "1"


def test_the_same_for_asyncio(cluster: Cluster) -> None:
    async def main() -> None:
        async with await flame.aio.connect(cluster.endpoint) as connection:
            async with await flame.aio.AsyncSandbox.create(connection=connection) as sandbox:
                heard: list[str] = []

                async def on_stdout(text: str) -> None:
                    await asyncio.sleep(0)
                    heard.append(text)

                found = await sandbox.run_code("print('hi')\n6 * 7", on_stdout=on_stdout)
                assert (found.text, "".join(heard)) == ("42", "hi\n")
                results = await asyncio.gather(*(sandbox.run_command(f"echo {n}") for n in range(20)))
                assert [result.stdout for result in results] == [b"%d\n" % n for n in range(20)]
                running = await sandbox.start_command("cat")
                await running.write(b"x")
                await running.close_stdin()
                assert [output.stdout async for output in running] == [b"x"]
                async with await sandbox.files.watch() as changes:
                    await sandbox.files.write("a", b"1")
                    assert (await anext(changes)).path == "a"
                assert (await sandbox.files.read("a"), await sandbox.files.read_text("a")) == (b"1", "1")
                waiting = asyncio.create_task(sandbox.run_code("kept = 1\nimport time\ntime.sleep(60)"))
                while not (await sandbox.files.list()):
                    pass
                await asyncio.sleep(0)
                waiting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await waiting
                assert (await sandbox.run_code("2")).text == "2"
                async with await sandbox.fork() as twin:
                    assert (await twin.files.read("a")) == b"1"
                await sandbox.pause()
                await sandbox.resume()
                async with await flame.aio.AsyncSandbox.open(sandbox.id, connection=connection) as other:
                    assert other.id == sandbox.id
            with pytest.raises(flame.InvalidStateError):
                await sandbox.run_code("1")

    asyncio.run(main())


def test_callbacks_of_the_synchronous_sandbox_are_ordinary_functions(sandbox: flame.Sandbox) -> None:
    async def on_stdout(text: str) -> None:
        """Would have to be awaited."""

    with pytest.raises(flame.InvalidArgumentError, match="AsyncSandbox"):
        sandbox.run_code("print(1)", on_stdout=on_stdout)

"""The life of an instance's process: start, readiness, environment, logs, end. Nothing of it is ever left behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from flame.model.errors import NotFoundError
from flame.proto import types_pb2
from scripted_manager import ECHO, Node, a_node_apart, a_node_here, appears, gone, parent_of, runs


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with a_node_here() as node:
        yield node


# --- binding that fails ----------------------------------------------------------------------------------------------


async def test_a_program_that_ends_before_it_is_ready_is_noticed_at_once(node: Node) -> None:
    node.start(1, "sys.exit('no licence found')")
    released = await node.manager.released(1)
    assert released.code == 11
    assert not released.crashed
    assert released.message.startswith("the instance exited with status 1 before it was ready")
    assert "no licence found" in released.message


async def test_a_program_that_never_becomes_ready_is_given_up(node: Node) -> None:
    node.start(1, "print('still loading', file=sys.stderr); time.sleep(3600)", start_timeout_ms=300)
    released = await node.manager.released(1)
    assert released.code == 11
    assert "did not become ready" in released.message
    assert "within 0.3 s" in released.message
    await gone(released.pid)


async def test_a_service_that_refuses_its_session_says_why(node: Node) -> None:
    source = """
        class Refuse(FlameService):
            def on_session_enter(self, context):
                raise ValueError("the model is missing")
        run(Refuse())
    """
    node.start(1, source)
    released = await node.manager.released(1)
    assert (released.code, released.message) == (12, "the model is missing")
    await gone(released.pid)
    stderr = b"".join(
        chunk.data for chunk in await node.manager.read_log(executor_id=node.manager.executor_id(1), stream="stderr")
    )
    assert b'raise ValueError("the model is missing")' in stderr


async def test_a_service_that_never_enters_its_session_is_given_up(node: Node) -> None:
    source = """
        class Hang(FlameService):
            def on_session_enter(self, context):
                time.sleep(3600)
        run(Hang())
    """
    node.start(1, source, start_timeout_ms=1000)
    released = await node.manager.released(1)
    assert released.code == 12
    assert "did not enter its session (on_session_enter) within 1 s" in released.message


async def test_a_service_that_ends_while_it_enters_its_session_is_no_crash(node: Node) -> None:
    source = """
        class Exit(FlameService):
            def on_session_enter(self, context):
                os._exit(7)
        run(Exit())
    """
    node.start(1, source)
    released = await node.manager.released(1)
    assert released.code == 12
    assert released.message.startswith("the instance exited with status 7 in on_session_enter")


@pytest.mark.parametrize(
    ("command", "spec", "code", "message"),
    [
        ("", {}, 11, "the application has no command"),
        ("no-such-command", {}, 11, "command 'no-such-command' was not found in PATH"),
        ("/proc/version", {}, 11, "command '/proc/version' is not executable"),
        ("/no/such/file", {}, 11, "command '/no/such/file' does not exist on this node"),
        ("true", {"working_directory": "relative"}, 11, "working_directory 'relative' is not an absolute path"),
        ("true", {"working_directory": "/proc/no"}, 11, "can't use working_directory '/proc/no'"),
        ("true", {"installer": "rpm", "url": "file:///x.zip"}, 10, "unknown installer 'rpm'; there are python and"),
        ("true", {"installer": "python", "url": "file:///x.zip"}, 10, "file:///x.zip does not exist on this node"),
        ("true", {"url": "file:///x.zip"}, 10, "application app has a url but no installer"),
        ("true", {"shim": 77}, 11, "this node does not know shim 77; it runs host, stdio, rest"),
    ],
)
async def test_what_can_not_be_started_is_refused_with_the_reason(
    node: Node, command: str, spec: dict[str, object], code: int, message: str
) -> None:
    node.manager.start(1, command, **spec)
    released = await node.manager.released(1)
    assert released.code == code
    assert released.message.startswith(message)
    assert not released.pid


async def test_a_file_that_is_no_program_is_refused(node: Node) -> None:
    file = node.folder / "junk"
    file.write_bytes(b"\x00\x01\x02")
    file.chmod(0o755)
    node.manager.start(1, str(file))
    released = await node.manager.released(1)
    assert released.code == 11
    assert released.message == f"can't start command '{file}': Exec format error"


# --- environment and folders -----------------------------------------------------------------------------------------


async def test_an_instance_sees_what_the_contract_lists_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "do not tell")
    monkeypatch.setenv("RUST_LOG", "debug")
    monkeypatch.setenv("PLACE", "here")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # a node without GPUs says nothing about them
    source = """
        import json
        class Show(FlameService):
            def on_task_invoke(self, context):
                return json.dumps({"env": dict(os.environ), "cwd": os.getcwd(), "group": os.getpgid(0)}).encode()
        run(Show())
    """
    async with a_node_here(endpoint="http://h:8080", cache_endpoint="http://h:9090", ca_file="/ca.pem") as node:
        env = {"OWN": "${PLACE}/$OWN/${UNSET}", "FLAME_EXECUTOR_ID": "forged", "TMPDIR": "/var/tmp"}
        node.start(1, source, env=env)
        bound = await node.manager.bound(1)
        (answer,) = await node.manager.answered(1, node.manager.run(1, b""))
        seen = json.loads(answer)
        own = seen["env"].pop("TMP")
        assert Path(own).is_relative_to(node.folder / "work" / "executors" / node.manager.executor_id(1))
        assert seen["cwd"] == str(node.folder / "work" / "executors" / node.manager.executor_id(1))
        assert seen["group"] == bound.pid
        path, endpoint, link = (
            seen["env"].pop(name) for name in ("PATH", "FLAME_INSTANCE_ENDPOINT", "FLAME_INSTANCE_LINK")
        )
        assert path.split(":")[0] == str(Path(sys.executable).parent)
        # Nobody else uses that folder, and what is written there costs memory, not the disk.
        assert Path(endpoint).parent.parent == (node.folder / "work" / "doors").readlink()
        assert Path(link).parent == (node.folder / "work" / "sockets").readlink()
        assert seen["env"] == {
            "FLAME_APPLICATION": "app",
            "FLAME_CACHE_ENDPOINT": "http://h:9090",
            "FLAME_CA_FILE": "/ca.pem",
            "FLAME_ENDPOINT": "http://h:8080",
            "FLAME_EXECUTOR_ID": node.manager.executor_id(1),
            "FLAME_INSTANCE_ID": node.manager.executor_id(1),
            "FLAME_INSTANCE_TOKEN": "token-1",
            "FLAME_LOG": "debug",
            "FLAME_MAX_PAYLOAD": str(64 << 20),
            "FLAME_SESSION_ID": "session-1",
            "HOME": os.environ["HOME"],
            "OWN": "here/$OWN/${UNSET}",
            "PYTHONPATH": seen["env"]["PYTHONPATH"],
            "PYTHONUNBUFFERED": "1",
            "RUST_LOG": "debug",
            "TEMP": own,
            "TMPDIR": "/var/tmp",
            **{name: seen["env"][name] for name in ("LC_CTYPE",) if name in seen["env"]},  # made by Python itself
        }


async def test_arguments_are_expanded_and_the_working_directory_is_made(node: Node) -> None:
    service = node.service(
        """
        class Show(FlameService):
            def on_task_invoke(self, context):
                return "|".join([os.getcwd(), *sys.argv[1:]]).encode()
        run(Show())
        """
    )
    place = node.folder / "a" / "b"
    node.manager.start(
        1, "${PYTHON}", service, "$GREETING world", "$$", env={"GREETING": "hello", "PYTHON": sys.executable},
        working_directory=str(place),
    )  # fmt: skip
    await node.manager.bound(1)
    (answer,) = await node.manager.answered(1, node.manager.run(1, b""))
    assert answer == f"{place}|hello world|$$".encode()
    node.manager.stop(1)
    await node.manager.released(1)
    assert place.exists()


async def test_gpus_are_passed_by_the_names_that_the_node_has_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b,GPU-c")
    source = """
        class Show(FlameService):
            def on_task_invoke(self, context):
                return os.environ["CUDA_VISIBLE_DEVICES"].encode()
        run(Show())
    """
    async with a_node_here(capacity=None) as node:
        assert node.manager.hellos[0].node.node.status.capacity.gpu == 3
        node.start(1, source, gpus=[0, 2])
        node.start(2, source)
        await node.manager.bound(1)
        await node.manager.bound(2)
        assert await node.manager.answered(1, node.manager.run(1, b"")) == [b"GPU-a,GPU-c"]
        assert await node.manager.answered(2, node.manager.run(2, b"")) == [b""]


SHOW_GANG = """
    import json
    class Show(FlameService):
        def on_session_enter(self, context):
            self.gang = context.gang
        def on_task_invoke(self, context):
            wanted = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
            env = {name: value for name, value in os.environ.items() if name in wanted or "GANG" in name}
            gang = self.gang and [self.gang.rank, self.gang.world_size, self.gang.addresses]
            return json.dumps([env, gang]).encode()
    run(Show())
"""


async def test_a_member_of_a_gang_finds_the_others_in_its_context_and_its_environment(node: Node) -> None:
    addresses = ["[fd00::1]:29500", "10.0.0.2:29501"]
    gang = types_pb2.Gang(rank=1, world_size=2, addresses=addresses)
    node.start(1, SHOW_GANG, gang=gang, env={"MASTER_PORT": "7777", "FLAME_GANG_RANK": "forged"})
    node.start(2, SHOW_GANG)
    await node.manager.bound(1)
    await node.manager.bound(2)
    (member,) = await node.manager.answered(1, node.manager.run(1, b""))
    env, told = json.loads(member)
    assert told == [1, 2, addresses]
    assert env == {
        "FLAME_GANG_RANK": "1",
        "FLAME_GANG_SIZE": "2",
        "FLAME_GANG_ADDRESSES": ",".join(addresses),
        "RANK": "1",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "fd00::1",
        "MASTER_PORT": "7777",  # as the application registered it
    }
    (single,) = await node.manager.answered(2, node.manager.run(2, b""))
    assert json.loads(single) == [{}, None]


async def test_a_node_that_comes_back_tells_what_its_executors_were_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    async with a_node_here(capacity=None) as node:
        gang = types_pb2.Gang(rank=1, world_size=2, addresses=["h:1", "h:2"])
        node.start(1, SHOW_GANG, gang=gang, gpus=[1, 3])
        node.start(2, SHOW_GANG)
        await node.manager.bound(1)
        await node.manager.bound(2)
        assert node.manager.link is not None
        node.manager.link.abort()
        await node.manager.until(lambda: len(node.manager.hellos) == 2, "the node again")
        member, single = sorted(node.manager.hellos[1].node.executors, key=lambda held: held.channel)
        assert (member.gang, list(member.gpus)) == (gang, [1, 3])
        assert (single.HasField("gang"), list(single.gpus)) == (False, [])


# --- the end ---------------------------------------------------------------------------------------------------------


async def test_stopping_lets_the_service_leave_its_session_and_removes_its_folder(node: Node) -> None:
    left = node.folder / "left"
    source = f"""
        class Leave(FlameService):
            def on_session_leave(self):
                print("bye", file=open({str(left)!r}, "w"))
        run(Leave())
    """
    node.start(1, source)
    await node.manager.bound(1)
    node.manager.stop(1)
    released = await node.manager.released(1)
    assert left.read_text() == "bye\n"
    assert (released.code, released.crashed, released.message) == (0, False, "stopped by the test")
    states = [report.state for report in node.manager.reports[1]]
    assert states == [
        types_pb2.ExecutorBinding,
        types_pb2.ExecutorBound,
        types_pb2.ExecutorUnbinding,
        types_pb2.ExecutorReleased,
    ]
    await node.executors.stop()
    assert not any((node.folder / "work" / "executors").iterdir())
    assert not any((node.folder / "s").iterdir())


async def test_a_task_that_runs_when_its_executor_stops_may_end(node: Node) -> None:
    entered, go_on = node.folder / "entered", node.folder / "go on"
    source = f"""
        class Slow(FlameService):
            def on_task_invoke(self, context):
                print(file=open({str(entered)!r}, "w"))
                while not os.path.exists({str(go_on)!r}):
                    time.sleep(0.001)
                return b"done"
        run(Slow())
    """
    node.start(1, source)
    await node.manager.bound(1)
    (running,) = node.manager.run(1, b"")
    await appears(entered)
    node.manager.stop(1, grace_ms=20_000)
    await node.manager.until(lambda: node.manager.reports[1][-1].state == types_pb2.ExecutorUnbinding)
    go_on.touch()
    await node.manager.released(1)
    assert node.manager.answers(1) == {running: b"done"}


# Leaves processes behind in every way that a program can.
ESCAPE = """
    import json, signal, subprocess
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sleeper = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(3600)"
    pids = [os.getpid()]
    pids.append(subprocess.Popen([sys.executable, "-c", sleeper]).pid)
    pids.append(subprocess.Popen([sys.executable, "-c", sleeper], start_new_session=True, env={}).pid)
    reader, writer = os.pipe()
    if not os.fork():
        os.setsid()
        if not os.fork():
            os.write(writer, str(os.getpid()).encode())
            os.execve(sys.executable, [sys.executable, "-c", sleeper], {} if sys.argv[2:] else dict(os.environ))
        os._exit(0)
    os.wait()
    pids.append(int(os.read(reader, 100)))
    with open(sys.argv[1] + "~", "w") as file:
        print(json.dumps(pids), file=file)
    os.rename(sys.argv[1] + "~", sys.argv[1])

    class Stubborn(FlameService):
        def on_task_invoke(self, context):
            os._exit(1)
        def on_session_leave(self):
            time.sleep(3600)
    run(Stubborn())
"""


@pytest.mark.parametrize("how", ["stop", "kill", "crash"])
async def test_no_process_outlives_its_executor(node: Node, how: str) -> None:
    file = node.folder / "pids"
    node.manager.start(1, sys.executable, node.service(ESCAPE), str(file))
    await node.manager.bound(1)
    pids = json.loads(file.read_text())
    assert len(pids) == 4
    assert all(map(runs, pids))
    if how == "crash":
        node.manager.run(1, b"")
    else:
        node.manager.stop(1, grace_ms=200 if how == "stop" else 0)
    released = await node.manager.released(1)
    assert released.crashed == (how == "crash")
    assert not any(map(runs, pids[:2] + pids[3:]))
    # The child that wiped its environment while its instance lived is found because no other instance is left.
    assert not runs(pids[2])


async def test_a_process_without_environment_is_not_taken_for_somebody_elses(node: Node) -> None:
    node.start(1, ECHO)
    await node.manager.bound(1)
    file = node.folder / "pids"
    node.manager.start(2, sys.executable, node.service(ESCAPE), str(file), "wipe")
    await node.manager.bound(2)
    node.manager.stop(2, grace_ms=0)
    await node.manager.released(2)
    assert await node.manager.answered(1, node.manager.run(1, b"alive")) == [b"alive"]
    await node.executors.stop()
    assert not any(map(runs, json.loads(file.read_text())))


async def test_no_process_outlives_an_executor_manager_that_is_killed(node: Node) -> None:
    process = await a_node_apart(node)
    file = node.folder / "pids"
    node.manager.start(1, sys.executable, node.service(ESCAPE), str(file), "wipe")
    await node.manager.bound(1)
    pids = json.loads(file.read_text())
    doors = (node.folder / "alone" / "doors").readlink()
    assert doors.is_dir()
    keeper = parent_of(pids[0])
    process.kill()
    await process.wait()
    await gone(keeper)
    assert not any(map(runs, pids))
    assert not any((node.folder / "t").iterdir())
    assert not doors.exists()


async def test_a_killed_keeper_takes_its_instances_along_and_a_new_one_takes_its_place(node: Node) -> None:
    file = node.folder / "pids"
    node.manager.start(1, sys.executable, node.service(ESCAPE), str(file))
    bound = await node.manager.bound(1)
    os.kill(parent_of(bound.pid), signal.SIGKILL)
    assert (await node.manager.released(1)).crashed
    pids = json.loads(file.read_text())
    os.kill(pids.pop(2), signal.SIGKILL)  # it wiped its environment: with the keeper gone nobody can know it
    assert not any(map(runs, pids))
    node.start(2, ECHO)
    await node.manager.bound(2)
    assert await node.manager.answered(2, node.manager.run(2, b"again")) == [b"again"]


# --- instances that break the rules ----------------------------------------------------------------------------------

LINK = """
    import socket, struct
    from flame.proto import link_pb2 as L
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(os.environ["FLAME_INSTANCE_LINK"])
    def send(kind, message):
        body = message if isinstance(message, bytes) else message.SerializeToString()
        sock.sendall(struct.pack("<IBBHI", len(body), kind, 0, 0, 0) + body)
    def receive():
        length, kind, *_ = struct.unpack("<IBBHI", sock.recv(12, socket.MSG_WAITALL))
        return kind, sock.recv(length, socket.MSG_WAITALL) if length else b""
    def hello(**more):
        known = dict(version=1, role="instance", id=os.environ["FLAME_EXECUTOR_ID"],
                     token=os.environ["FLAME_INSTANCE_TOKEN"])
        send(L.HELLO, L.Hello(**{**known, **more}))
        return receive()
"""


@pytest.mark.parametrize(
    "answer",
    [
        "sock.sendall(b'GET / HTTP/1.1\\r\\n' * 100)",
        "send(L.RESULTS, b'\\xff\\xff')",
        "send(L.RESULTS, L.Results(task_ids=[77], outputs=[b'']))",
        "send(L.RESULTS, L.Results(task_ids=[1], outputs=[]))",
        "send(L.RESULTS, L.Results(task_ids=[1], outputs=[b''], failures=[L.Failure(index=5)]))",
        "send(L.RETRACTED, L.Retracted(task_ids=[5]))",
        "send(L.ENTERED, b'')",
        "send(L.START, b'')",
        "sock.close()",
    ],
)
async def test_an_instance_that_writes_garbage_is_killed_and_counts_as_crashed(node: Node, answer: str) -> None:
    source = f"""{LINK}
    hello()
    receive()
    send(L.ENTERED, b"")
    receive()
    {answer}
    time.sleep(3600)
    """
    node.start(1, source)
    bound = await node.manager.bound(1)
    node.manager.run(1, b"")
    released = await node.manager.released(1)
    assert released.crashed
    assert released.message.startswith("the instance broke its contract: ")
    assert not node.manager.answers(1)
    await gone(bound.pid)


async def test_only_the_instance_with_the_token_may_connect(node: Node) -> None:
    source = f"""{LINK}
    kind, body = hello(token="guessed")
    assert kind == L.ERROR, kind
    sys.exit(L.Error.FromString(body).message)
    """
    node.start(1, source)
    released = await node.manager.released(1)
    assert released.code == 11
    assert "no instance with this id and token is expected" in released.message


async def test_the_socket_of_the_instances_is_no_way_in_for_clients(node: Node) -> None:
    source = f"""{LINK}
    kind, body = hello(role="client")
    sys.exit(L.Error.FromString(body).message)
    """
    node.start(1, source)
    assert "this socket is for instances" in (await node.manager.released(1)).message


# --- logs ------------------------------------------------------------------------------------------------------------


async def test_what_an_instance_prints_can_be_read_during_its_life_and_after(node: Node) -> None:
    source = """
        class Print(FlameService):
            def on_task_invoke(self, context):
                print("out", context.input.decode())
                print("err", context.input.decode(), file=sys.stderr)
        run(Print())
    """
    node.start(1, source)
    await node.manager.bound(1)
    await node.manager.answered(1, node.manager.run(1, b"one"))
    following = asyncio.create_task(
        node.manager.read_log(executor_id=node.manager.executor_id(1), stream="stdout", follow=True)
    )
    await node.manager.answered(1, node.manager.run(1, b"two"))
    node.manager.stop(1)
    await node.manager.released(1)
    assert b"".join(chunk.data for chunk in await following) == b"out one\nout two\n"
    chunks = await node.manager.read_log(session_id="session-1")
    assert {(chunk.stream, chunk.data) for chunk in chunks} == {
        ("stdout", b"out one\nout two\n"),
        ("stderr", b"err one\nerr two\n"),
    }
    (tail,) = await node.manager.read_log(executor_id=node.manager.executor_id(1), stream="stderr", tail_bytes=4)
    assert (tail.data, tail.offset, tail.truncated) == (b"two\n", 12, False)
    with pytest.raises(NotFoundError):
        await node.manager.read_log(executor_id="nobody")


async def test_a_gigabyte_of_output_costs_its_limit_and_disturbs_nobody() -> None:
    limit = 256 * 1024
    source = """
        class Print(FlameService):
            def on_task_invoke(self, context):
                line = b"x" * (1024 * 1024 - 1) + b"\\n"
                for _ in range(1024):
                    sys.stdout.buffer.write(line)
                sys.stdout.buffer.write(b"the end\\n")
                return b"printed"
        run(Print())
    """
    async with a_node_here(log_bytes=limit) as node:
        node.start(1, source)
        node.start(2, ECHO)
        await node.manager.bound(1)
        await node.manager.bound(2)
        (printing,) = node.manager.run(1, b"")
        for _ in range(20):
            await node.manager.answered(2, node.manager.run(2, b"meanwhile"))
        assert printing not in node.manager.answers(1)
        assert await node.manager.answered(1, [printing]) == [b"printed"]
        node.manager.stop(1)
        await node.manager.released(1)
        kept = sum(
            file.stat().st_size
            for file in (node.folder / "work" / "logs" / node.manager.executor_id(1)).glob("stdout.*")
        )
        assert limit // 2 <= kept <= limit
        chunks = await node.manager.read_log(executor_id=node.manager.executor_id(1), stream="stdout")
        data = b"".join(chunk.data for chunk in chunks)
        assert chunks[0].truncated
        assert data.endswith(b"x\nthe end\n")
        assert chunks[0].offset + len(data) == 1024**3 + len(b"the end\n")

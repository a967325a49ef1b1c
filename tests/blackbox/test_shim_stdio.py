"""Programs behind stdin and stdout: the three forms, on a real executor manager and in a real cluster."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import flame
from blackbox.trouble import alive, connect, instances, until
from cluster import Cluster
from flame.model.errors import TaskFailedError
from flame.model.states import Shim
from flame.proto import types_pb2
from package_builder import pack
from scripted_manager import Node, a_node_here, runs

LINES = """
import json, os, sys, time
for line in sys.stdin:
    task = json.loads(line)
    try:
        answer = {"task_id": task["task_id"], "output": eval(task["input"] or "None")}
    except Exception as error:
        answer = {"task_id": task["task_id"], "error": str(error)}
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    async with a_node_here() as node:
        yield node


def start(node: Node, form: str, command: str, *arguments: str, channel: int = 1, **options: Any) -> None:
    labels = [f"stdio={form}", *options.pop("labels", [])]
    node.manager.start(channel, command, *arguments, shim=int(Shim.STDIO), labels=labels, **options)


def script(node: Node, source: str, name: str = "program") -> str:
    file = node.folder / name
    file.write_text(source)
    file.chmod(0o755)
    return str(file)


async def test_lines(node: Node) -> None:
    start(node, "lines", "python3", script(node, LINES))
    await node.manager.bound(1)
    ids = node.manager.run(1, b"'one'", b"1/0", b"None", None, b"''", b"'x' * 1000000", b"{'a': 1}")
    one, failure, *others, document = await node.manager.answered(1, ids)
    assert one == b"one"
    assert (failure.state, failure.code, failure.message) == (types_pb2.Failed, -1, "division by zero")
    assert others == [None, None, b"", b"x" * 1_000_000]
    assert document == b'{"a": 1}'
    node.manager.stop(1)
    assert not (await node.manager.released(1)).crashed


async def test_once(node: Node) -> None:
    start(node, "once", script(node, "#!/bin/sh\nread x; echo $x $FLAME_TASK_ID; echo words >&2; exit ${x#ok}\n"))
    await node.manager.bound(1)
    ids = node.manager.run(1, b"ok0\n", b"ok3\n")
    assert await node.manager.answered(1, ids[:1]) == [b"ok0 1\n"]
    (failure,) = await node.manager.answered(1, ids[1:])
    assert (failure.code, failure.message) == (3, "the program exited with status 3; the end of its stderr:\nwords")
    node.manager.stop(1)
    assert not (await node.manager.released(1)).crashed


async def test_framed(node: Node) -> None:
    file = node.service("""
        class Evaluate(FlameService):
            def on_task_invoke(self, context):
                print("to the log", flush=True)
                return eval(context.input.decode())
        run(Evaluate())
    """)
    start(node, "framed", sys.executable, file)
    await node.manager.bound(1)
    ids = node.manager.run(1, b"b'one'", b"1/0", b"bytes(60 << 20)")
    one, failure, large = await node.manager.answered(1, ids)
    assert (one, failure.message, len(large)) == (b"one", "division by zero", 60 << 20)
    node.manager.stop(1)
    assert not (await node.manager.released(1)).crashed


async def test_what_a_program_answered_before_its_end_counts(node: Node) -> None:
    source = """
import json, sys
tasks = [json.loads(sys.stdin.readline())["task_id"] for _ in range(2)]
sys.stdout.write("".join(json.dumps({"task_id": task, "output": "late"}) + "\\n" for task in tasks))
"""
    start(node, "lines", sys.executable, script(node, source), labels=["concurrency=2"])
    assert (await node.manager.bound(1)).concurrency == 2
    ids = node.manager.run(1, b"", b"")
    assert await node.manager.answered(1, ids) == [b"late", b"late"]
    released = await node.manager.released(1)
    assert released.crashed
    assert released.message == "the instance exited with status 0"


async def test_the_common_data_of_the_session_is_in_a_file(node: Node) -> None:
    start(node, "once", script(node, "#!/bin/sh\ncat $FLAME_COMMON_DATA_FILE\n"), common_data=b"\xff\x00shared")
    assert await node.manager.answered(1, node.manager.run(1, b"")) == [b"\xff\x00shared"]


async def test_large_inputs_of_any_bytes(node: Node) -> None:
    large = bytes(range(256)) * (250 * 1024)
    start(node, "once", "cat")
    assert await node.manager.answered(1, node.manager.run(1, large)) == [large]
    source = """
import json, sys
for line in sys.stdin:
    task = json.loads(line)
    task["output"] = task.pop("input")
    print(json.dumps(task), flush=True)
"""
    start(node, "lines", sys.executable, script(node, source), channel=2)
    assert await node.manager.answered(2, node.manager.run(2, large, b"small")) == [large, b"small"]


async def test_nonsense_on_stdout_is_shown(node: Node) -> None:
    start(node, "lines", script(node, "#!/bin/sh\necho Loading...\nsleep 3600\n"))
    released = await node.manager.released(1)
    assert released.crashed
    assert "it wrote a line to stdout that is no answer" in released.message
    assert "'Loading...'" in released.message


async def test_labels_that_mean_nothing(node: Node) -> None:
    start(node, "json", "cat")
    released = await node.manager.released(1)
    assert released.code == 11
    assert released.message == "unknown label stdio=json; write stdio= and one of framed, lines, once"


async def test_a_socket_that_is_kept_open_by_others_keeps_no_executor(node: Node) -> None:
    """A process without an environment can't be told from those of the node's other instances, and lives on."""
    start(node, "lines", "cat", channel=1)
    await node.manager.bound(1)
    child = node.folder / "child"
    leaves = f"""
import subprocess, sys
left = subprocess.Popen(["/bin/sleep", "3600"], env={{}}, start_new_session=True)
open({str(child)!r}, "w").write(str(left.pid))
sys.exit(3)
"""
    start(node, "lines", sys.executable, script(node, leaves), channel=2)
    released = await node.manager.released(2)
    assert released.message == "the instance exited with status 3"
    assert runs(int(child.read_text()))


async def test_packages_are_there(node: Node) -> None:
    package = node.folder / "package.tar.gz"
    pack(package, {"words.txt": "from the package"})
    start(node, "once", "cat", "$FLAME_APP_DIR/words.txt", url=f"file://{package}", installer="binary")
    assert await node.manager.answered(1, node.manager.run(1, b"")) == [b"from the package"]


# --- in a real cluster ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    settings = {"recovery": {"session": {"retry_limits": 2}}}
    with Cluster(tmp_path_factory.mktemp("cluster"), settings=settings) as running:
        yield running


def register(cluster: Cluster, name: str, source: str, *labels: str, shim: str = "Stdio") -> None:
    """Register a program as its user does, from a file."""
    program = cluster.folder / f"{name}.program"
    program.write_text(source)
    program.chmod(0o755)
    document = {"metadata": {"name": name}, "spec": {"shim": shim, "command": str(program), "labels": list(labels)}}
    file = cluster.folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(document))
    flmctl = str(Path(sys.executable).parent / "flmctl")
    done = subprocess.run(
        [flmctl, "register", "-f", str(file)], env=cluster.environ(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_shell_script_for_each_task(cluster: Cluster) -> None:
    script = "#!/bin/bash\nread -r number\necho working on $number >&2\n((number < 3)) && echo $((number * number))\n"
    register(cluster, "square", script, "stdio=once")
    with connect(cluster) as connection, connection.create_session("square") as session:
        assert list(session.map([b"1\n", b"2\n"])) == [b"1\n", b"4\n"]
        with pytest.raises(TaskFailedError, match="exited with status 1; the end of its stderr:\nworking on 3"):
            session.invoke(b"3\n", timeout=30)
        assert b"working on 1" in b"".join(chunk.data for chunk in connection.logs(session.id))


def test_a_program_without_our_sdk(cluster: Cluster) -> None:
    register(cluster, "evaluate", f"#!{sys.executable}\n{LINES}", "stdio=lines")
    with connect(cluster) as connection, connection.create_session("evaluate") as session:
        assert list(session.map(b"str(%d)" % number for number in range(2000))) == [
            b"%d" % number for number in range(2000)
        ]
        with pytest.raises(TaskFailedError, match="division by zero"):
            session.invoke(b"1 / 0", timeout=30)
        with pytest.raises(flame.FlameError, match="timed out"):
            session.submit(b"time.sleep(3600)", run_timeout=0.5).result(30)
        assert session.invoke(b"'goes on'", timeout=30) == b"goes on"


def test_nothing_runs_after_the_executor_manager_was_killed(tmp_path: Path) -> None:
    with Cluster(tmp_path) as cluster, connect(cluster) as connection:
        register(cluster, "evaluate", f"#!{sys.executable}\n{LINES}", "stdio=lines")
        register(cluster, "sleep", "#!/bin/sh\nsleep 3600\n", "stdio=once")
        lines, once = connection.create_session("evaluate"), connection.create_session("sleep")
        lines.invoke(b"'runs'", timeout=30)
        once.submit(b"")
        until(lambda: instances(connection, lines.id) and below(cluster.nodes["node-1"].pid, "sleep"), "both programs")
        pids = [*instances(connection, lines.id), *below(cluster.nodes["node-1"].pid, "sleep")]
        assert all(map(alive, pids))
        cluster.nodes["node-1"].kill()
        until(lambda: not any(map(alive, pids)), "the end of the programs")


def below(pid: int, name: str) -> list[int]:
    """The processes of this name that a process started, or one of those."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            found += below(child, name)
            if Path(f"/proc/{child}/comm").read_text().strip() == name:
                found.append(child)
    return found

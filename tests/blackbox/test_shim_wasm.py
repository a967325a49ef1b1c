"""Components of WebAssembly in a real cluster: one written in Python, and one that is hostile.

The interface that they are built against is the one in docs/wasm.md.
"""

from __future__ import annotations

import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import flame
from cluster import ROOT, Cluster
from components import CONDUCT, ECHO, binary, component
from flame.model.errors import TaskFailedError
from untrusted import require_level

SERVICE = """
import os
import socket
import sys
import time

from componentize_py_types import Err
from wit_world import exports
from wit_world.exports.service import FlameError, FlameErrorCode


class Service(exports.Service):
    def on_session_enter(self, ctx):
        names["common"] = ctx.common_data

    def on_session_leave(self, ctx):
        pass

    def on_task_invoke(self, ctx, input):
        names.update(task=ctx.task_id, session=ctx.session_id)
        try:
            exec(input.decode(), names)
        except ArithmeticError as error:
            raise Err(FlameError(FlameErrorCode.INTERNAL, f"no number: {error}"))
        return repr(names.pop("answer", None)).encode()


names = {"os": os, "sys": sys, "time": time, "socket": socket}
"""


@pytest.fixture(scope="module")
def python_component(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built once: the interpreter itself is a part of it."""
    folder = tmp_path_factory.mktemp("component")
    (wit,) = re.findall(r"```wit\n(.*?)```", (ROOT / "docs" / "wasm.md").read_text(), re.DOTALL)
    (folder / "flame.wit").write_text(wit)
    (folder / "service.py").write_text(SERVICE)
    tool = [str(Path(sys.executable).with_name("componentize-py")), "-d", "flame.wit", "-w", "flame"]
    subprocess.run([*tool, "bindings", "."], cwd=folder, check=True, capture_output=True)
    subprocess.run(
        [*tool, "componentize", "service", "-o", "service.wasm"], cwd=folder, check=True, capture_output=True
    )
    return folder / "service.wasm"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, python_component: Path) -> Iterator[Cluster]:
    """With the Python component as application `python`."""
    with Cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        with flame.connect(cluster.endpoint) as connection:
            spec = {"shim": flame.Shim.WASM, "command": str(python_component), "arguments": ["one", "two"]}
            connection.register_application("python", spec)
        yield cluster


@pytest.fixture(params=["none", "process"])
def session(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[flame.Session]:
    """Of the Python component, at a level of isolation."""
    with (
        flame.connect(cluster.endpoint) as connection,
        connection.create_session("python", common_data=b"shared", isolation=request.param) as session,
    ):
        yield session


def test_a_component_in_python(session: flame.Session) -> None:
    assert session.invoke(b"answer = common, sys.argv[1:]") == b"(b'shared', ['one', 'two'])"
    assert session.invoke(b"answer = session").decode() == repr(session.id)
    with pytest.raises(TaskFailedError, match="no number: division by zero"):
        session.invoke(b"1 / 0")
    session.invoke(b"kept = 5")
    assert session.invoke(b"answer = kept") == b"5"
    outputs = session.map(b"answer = %d" % number for number in range(500))
    assert list(outputs) == [b"%d" % number for number in range(500)]


def test_a_large_payload_goes_in_and_out(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "echo.wasm").write_bytes(binary(component(ECHO)))
    data = random.Random(1).randbytes(16 * 1024 * 1024)
    with flame.connect(cluster.endpoint) as connection:
        spec = {"shim": flame.Shim.WASM, "command": str(tmp_path / "echo.wasm")}
        connection.register_application("large", spec)
        with connection.create_session("large") as session:
            assert session.invoke(data) == data


def test_what_it_can_not_reach(session: flame.Session, cluster: Cluster) -> None:
    assert (
        session.invoke(b"answer = sorted(os.environ)")
        == b"['FLAME_APPLICATION', 'FLAME_EXECUTOR_ID', 'FLAME_SESSION_ID']"
    )
    for code in (
        b"open('/etc/passwd')",
        b"os.listdir('/')",
        b"open('/tmp/file', 'w')",
        b"socket.create_connection(('127.0.0.1', %d))" % (cluster.port + 2),
        b"socket.getaddrinfo('localhost', 80)",
        b"os.fork()",
    ):
        tried = b"try:\n    %s\n    answer = 'reached'\nexcept Exception as error:\n    answer = 'stopped'" % code
        assert session.invoke(tried) == b"'stopped'", code


def test_what_ends_it_fails_its_task_and_nothing_else(session: flame.Session) -> None:
    for code, words in (
        (b"raise KeyError('nobody catches it')", "unreachable"),
        (b"sys.exit(2)", "the component exited with status 1 in on-task-invoke"),
    ):
        session.invoke(b"kept = 5")
        with pytest.raises(TaskFailedError, match=words):
            session.invoke(code)
        assert session.invoke(b"answer = 'kept' in globals(), common") == b"(False, b'shared')"


def test_a_busy_loop_ends_with_the_time_of_its_task(session: flame.Session) -> None:
    instance = session.invoke(b"answer = os.environ['FLAME_EXECUTOR_ID']")
    with pytest.raises(TaskFailedError, match="task timed out after 300 ms"):
        session.submit(b"while True: pass", run_timeout=0.3).result()
    assert session.invoke(b"answer = os.environ['FLAME_EXECUTOR_ID']") == instance


def test_a_component_that_waits_for_ever_is_ended_with_its_worker(session: flame.Session) -> None:
    with pytest.raises(TaskFailedError, match="task timed out after 300 ms"):
        session.submit(b"time.sleep(3600)", run_timeout=0.3).result()
    assert session.invoke(b"answer = 1") == b"1"


def test_a_component_is_told_that_there_is_no_more_memory(cluster: Cluster, python_component: Path) -> None:
    caught = b"try: len(bytearray(10**8))\nexcept MemoryError: answer = 'no more'"
    with flame.connect(cluster.endpoint) as connection:
        spec = {"shim": flame.Shim.WASM, "command": str(python_component), "labels": ["wasm-memory=64Mi"]}
        connection.register_application("held", spec)
        with connection.create_session("held") as session:
            assert session.invoke(caught) == b"'no more'"
        with connection.create_session("python", limits=flame.Limits(memory=128 * 1024**2)) as session:
            assert session.invoke(caught) == b"'no more'"


def test_why_a_component_can_not_run_reaches_who_waits(cluster: Cluster, tmp_path: Path) -> None:
    cases = {
        binary(component(ECHO, interface="other:flame/service")): "it exports other:flame/service",
        b"\\x7fELF": "it is no WebAssembly",
    }
    with flame.connect(cluster.endpoint) as connection:
        for number, (content, words) in enumerate(cases.items()):
            file = tmp_path / f"{number}.wasm"
            file.write_bytes(content)
            name = f"broken-{number}"
            connection.register_application(name, {"shim": flame.Shim.WASM, "command": str(file)})
            with connection.create_session(name) as session, pytest.raises(TaskFailedError, match=words):
                session.submit(b"").result(30)


def test_a_component_of_a_package(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "service.wasm").write_bytes(binary(CONDUCT))
    subprocess.run(["tar", "czf", "package.tar.gz", "service.wasm"], cwd=tmp_path, check=True)
    spec = {
        "shim": flame.Shim.WASM,
        "command": "service.wasm",
        "url": f"file://{tmp_path}/package.tar.gz",
        "installer": "binary",
    }
    with flame.connect(cluster.endpoint) as connection:
        connection.register_application("packed", spec)
        with connection.create_session("packed") as session:
            assert session.invoke(b"echo from a package") == b"from a package"


@pytest.mark.parametrize("level", ["gvisor", "microvm"])
def test_where_the_processor_is_another(cluster: Cluster, tmp_path: Path, level: str) -> None:
    file = tmp_path / "service.wasm"
    file.write_bytes(binary(component(ECHO)))
    with flame.connect(cluster.endpoint) as connection:
        require_level(connection, level)
        spec = {"shim": flame.Shim.WASM, "command": str(file), "isolation": level, "start_timeout": 100.0}
        connection.register_application(f"echo-{level}", spec)
        with connection.create_session(f"echo-{level}") as session:
            assert session.invoke(b"hello") == b"hello"


def test_nodes_say_that_they_can(cluster: Cluster) -> None:
    with flame.connect(cluster.endpoint) as connection:
        (node,) = connection.list_nodes()
        assert node.labels["flame.shim.wasm"] == "yes"

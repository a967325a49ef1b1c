"""Packages through the real daemons, without a network: what instances find, changes, failures, processes that die."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

import flame
from blackbox.trouble import alive, until
from cluster import Cluster
from package_builder import WebServer, pack, sha256

SERVICE = """
import json, os, sys
import flame

class Square(flame.FlameService):
    def on_task_invoke(self, context):
        {body}
        return json.dumps(answer).encode()

def main():
    flame.run(Square())

if __name__ == "__main__":
    main()
"""
PROJECT = """
[project]
name = "square-service"
version = "{version}"
requires-python = ">=3.11"
dependencies = {dependencies}
[project.scripts]
square = "square_service:main"
[build-system]
requires = ["uv_build>=0.5"]
build-backend = "uv_build"
"""


def service(body: str = "answer = int(context.input) ** 2") -> str:
    return SERVICE.format(body=body)


class Offline(Cluster):
    """Its nodes install without a network, from the wheels in `wheels`. `more` goes to their environment."""

    def __init__(self, folder: Path, *, more: Mapping[str, str] | None = None, **options: object) -> None:
        super().__init__(folder, **options)  # type: ignore[arg-type]
        self.wheels = folder / "wheels"
        self.wheels.mkdir()
        self.more = {"UV_OFFLINE": "1", "UV_NO_INDEX": "1", "UV_FIND_LINKS": str(self.wheels), **(more or {})}

    def environ(self, **more: str) -> dict[str, str]:
        return super().environ(**{**self.more, **more})

    def releases(self) -> set[str]:
        return {folder.name for folder in (self.folder / "node-1" / "packages" / "releases").iterdir()}

    def build_wheel(self, name: str, version: str, files: Mapping[str, str]) -> None:
        """Build a project without dependencies into `wheels`."""
        project = self.folder / f"{name}-{version}"
        for path, text in {"pyproject.toml": PROJECT.format(version=version, dependencies=[]), **files}.items():
            file = project / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text.replace("square-service", name))
        uv = Path(sys.executable).parent / "uv"
        done = subprocess.run(
            [uv, "build", "--offline", "--wheel", "--out-dir", self.wheels],
            cwd=project,
            env=self.environ(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Offline]:
    with Offline(tmp_path_factory.mktemp("packages")) as cluster:
        yield cluster


@pytest.fixture
def connection(cluster: Offline) -> Iterator[flame.Connection]:
    with flame.connect(cluster.endpoint) as connection:
        yield connection


@pytest.fixture
def web() -> Iterator[WebServer]:
    with WebServer().serving() as server:
        yield server


def register(connection: flame.Connection, name: str, url: str | Path, **attributes: object) -> None:
    settings: dict[str, object] = {"installer": "python", "command": "python", "arguments": ["-m", "square"]}
    settings |= {"url": f"file://{url}" if isinstance(url, Path) else url, **attributes}
    connection.register_application(name, settings)


def ask(connection: flame.Connection, name: str, data: bytes = b"7") -> object:
    """What one task of a new session answers."""
    with connection.create_session(name) as session:
        return json.loads(session.invoke(data) or b"null")


def failure(connection: flame.Connection, name: str) -> tuple[str, list[str]]:
    """Why a task of a new session fails, and the events of that session."""
    with connection.create_session(name) as session:
        error = session.submit(b"1").exception(60)
        assert isinstance(error, flame.TaskFailedError)
        events = connection.get_session(session.id).events
        return error.message, [event.message for event in events if event.code == 1001]


# --- what is installed ------------------------------------------------------------------------------------------------


def test_a_project_with_a_dependency_and_a_script(cluster: Offline, connection: flame.Connection) -> None:
    cluster.build_wheel("greeting", "1.2", {"src/greeting/__init__.py": "WORD = 'hello'"})
    body = "import greeting; answer = [greeting.WORD, greeting.__file__, __file__, sys.prefix]"
    files = {
        "pyproject.toml": PROJECT.format(version="1", dependencies=["greeting>=1"]),
        "src/square_service/__init__.py": service(body),
    }
    register(connection, "project", pack(cluster.folder / "project.tgz", files), command="square", arguments=[])
    word, dependency, module, prefix = ask(connection, "project")  # type: ignore[misc]
    assert word == "hello"
    assert dependency.startswith(f"{prefix}/lib/")
    assert module.startswith(f"{prefix}/lib/")
    assert prefix.startswith(str(cluster.folder / "node-1" / "packages" / "releases"))


def test_plain_modules_with_requirements(cluster: Offline, connection: flame.Connection) -> None:
    cluster.build_wheel("colours", "3", {"src/colours/__init__.py": "RED = 1"})
    files = {"requirements.txt": "colours==3\n", "square.py": service("import colours; answer = colours.RED")}
    register(connection, "plain", pack(cluster.folder / "plain.tgz", files))
    assert ask(connection, "plain") == 1


def test_a_wheel(cluster: Offline, connection: flame.Connection) -> None:
    cluster.build_wheel("square", "1", {"src/square/__init__.py": "", "src/square/__main__.py": service()})
    register(connection, "wheel", cluster.wheels / "square-1-py3-none-any.whl")
    assert ask(connection, "wheel") == 49


def test_a_binary_package_and_what_its_instances_find(
    cluster: Offline, connection: flame.Connection, web: WebServer
) -> None:
    names = "('FLAME_APP_DIR', 'PATH', 'LD_LIBRARY_PATH', 'MORE')"
    body = f"answer = [os.environ[name] for name in {names}] + [open(os.environ['FLAME_APP_DIR'] + '/data').read()]"
    archive = pack(cluster.folder / "tool.tgz", {"bin/tool": f"#!{sys.executable}\n{service(body)}", "data": "words"})
    web.files["/tool.tgz"] = archive.read_bytes()
    register(
        connection,
        "tool",
        f"{web.url}/tool.tgz#sha256={sha256(archive)}",
        installer="binary",
        command="tool",
        arguments=[],
        environments={"LD_LIBRARY_PATH": "/opt/lib", "MORE": "1"},
    )
    source, path, libraries, more, data = ask(connection, "tool")  # type: ignore[misc]
    assert path.startswith(f"{source}/bin:{source}:")
    assert (libraries, more, data) == (f"{source}/libs:/opt/lib", "1", "words")


# --- changes ----------------------------------------------------------------------------------------------------------


def test_what_an_address_names_now_runs_also_when_instances_wait(
    cluster: Offline, connection: flame.Connection, web: WebServer
) -> None:
    def publish(answer: int) -> None:
        web.files["/a.tgz"] = pack(cluster.folder / "a.tgz", {"square.py": service(f"answer = {answer}")}).read_bytes()

    publish(1)
    register(connection, "changing", f"{web.url}/a.tgz", warm_instances=1)
    assert [ask(connection, "changing") for _ in range(3)] == [1, 1, 1]
    before = cluster.releases()
    publish(2)
    assert [ask(connection, "changing") for _ in range(2)] == [2, 2]
    assert len(cluster.releases() - before) == 1
    assert [status for _, _, status in web.asked] == [200, 304, 304, 200, 304]


def test_executors_of_one_session_share_one_installation(cluster: Offline, connection: flame.Connection) -> None:
    archive = pack(cluster.folder / "shared.tgz", {"square.py": service("answer = [os.getpid(), sys.prefix]")})
    register(connection, "shared", archive)
    before = cluster.releases()
    with connection.create_session("shared", min_instances=2, max_instances=2) as session:
        until(lambda: sum(e.pid > 0 for e in connection.list_executors(session.id)) == 2, "two instances")
        answers = [json.loads(output or b"") for output in session.map([b"1"] * 20)]
    assert len({prefix for _, prefix in answers}) == 1
    assert len(cluster.releases() - before) == 1


# --- failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"requirements.txt": "no-such-thing"}, "no-such-thing was not found"),
        ({"pyproject.toml": "[project]\nname = 3"}, "expected a string"),
    ],
)
def test_what_the_installer_said_reaches_the_future_and_the_events(
    cluster: Offline, connection: flame.Connection, files: dict[str, str], message: str
) -> None:
    name = f"failing-{len(files)}-{message[:2]}"
    register(connection, name, pack(cluster.folder / f"{name}.tgz", files))
    text, events = failure(connection, name)
    for where in (text, *events):
        assert f"installing package file://{cluster.folder}/{name}.tgz failed: the installer exited with" in where
        assert message in where
    assert all("with return_code <10>" in event for event in events)
    assert len(events) == 5


def test_packages_that_are_not_there_or_not_what_they_should_be(
    cluster: Offline, connection: flame.Connection, web: WebServer
) -> None:
    web.files["/a.tgz"] = b"<html>"
    for name, url, message in (
        ("missing", f"{web.url}/b.tgz", "the server answered 404 Not Found; upload the package again"),
        ("page", f"{web.url}/a.tgz", "is damaged or no archive"),
        ("other", f"{web.url}/a.tgz#sha256={'0' * 64}", "its address says 0000"),
        ("nowhere", "ftp://host/a.tgz", "has no known scheme"),
    ):
        register(connection, name, url)
        assert message in failure(connection, name)[0]


def test_a_package_that_could_not_be_had_is_tried_again_by_the_next_session(
    cluster: Offline, connection: flame.Connection
) -> None:
    archive = cluster.folder / "late.tgz"
    register(connection, "late", archive)
    assert "does not exist on this node" in failure(connection, "late")[0]
    pack(archive, {"square.py": service()})
    assert ask(connection, "late") == 49


def installers(cluster: Offline) -> list[int]:
    """Processes of installers of the cluster's node."""
    found: list[int] = []
    for folder in Path("/proc").iterdir():
        try:
            if (
                folder.name.isdecimal()
                and str(cluster.folder / "node-1" / "packages").encode() in (folder / "cmdline").read_bytes()
            ):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


HANGING = {"UV_OFFLINE": "0", "UV_NO_INDEX": "0", "UV_HTTP_TIMEOUT": "600"}


def test_an_installer_that_hangs_is_ended_and_the_future_knows(tmp_path: Path, web: WebServer) -> None:
    web.hung.set()
    more = {**HANGING, "UV_DEFAULT_INDEX": f"{web.url}/simple"}
    settings = {"executors": {"capacity": "cpu=2,mem=4g", "packages": {"install_timeout": 1.5}}}
    with Offline(tmp_path, more=more, settings=settings) as cluster, flame.connect(cluster.endpoint) as connection:
        register(connection, "hang", pack(tmp_path / "a.tgz", {"requirements.txt": "anything"}))
        assert "took more than 1.5 s and was ended" in failure(connection, "hang")[0]
        assert not installers(cluster)
        assert not cluster.releases()
        # Nobody else is disturbed.
        register(connection, "fine", pack(tmp_path / "b.tgz", {"square.py": service()}))
        assert ask(connection, "fine") == 49


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_node_that_ends_while_it_installs_leaves_no_installer_and_begins_anew(
    tmp_path: Path, web: WebServer, how: signal.Signals
) -> None:
    web.hung.set()
    more = {**HANGING, "UV_DEFAULT_INDEX": f"{web.url}/simple"}
    with Offline(tmp_path, more=more) as cluster, flame.connect(cluster.endpoint) as connection:
        cluster.build_wheel("colours", "3", {"src/colours/__init__.py": "RED = 1"})
        files = {"requirements.txt": "colours==3\n", "square.py": service("import colours; answer = colours.RED")}
        register(connection, "app", pack(tmp_path / "a.tgz", files))
        with connection.create_session("app") as session:
            future = session.submit(b"1")
            until(lambda: [pid for pid in installers(cluster) if alive(pid)], "the installer")
            running = installers(cluster)
            node = cluster.nodes["node-1"]
            if how is signal.SIGKILL:
                node.kill()
            else:
                node.stop()
            until(lambda: not any(alive(pid) for pid in running), "the end of the installer")
            cluster.more |= {"UV_OFFLINE": "1", "UV_NO_INDEX": "1"}
            del cluster.more["UV_DEFAULT_INDEX"]
            cluster.start_node("node-1")
            assert future.result(60) == b"1"
        assert len(cluster.releases()) == 1


def test_what_instances_use_is_kept_whatever_the_limit(tmp_path: Path) -> None:
    settings = {"executors": {"capacity": "cpu=2,mem=4g", "packages": {"keep_count": 0}}}
    with Offline(tmp_path, settings=settings) as cluster, flame.connect(cluster.endpoint) as connection:
        for name in ("one", "two"):
            archive = pack(tmp_path / f"{name}.tgz", {"bin/run": f"#!{sys.executable}\n{service()} # {name}"})
            register(connection, name, archive, installer="binary", command="run", arguments=[])
        with connection.create_session("one") as session:
            assert session.invoke(b"7") == b"49"
            (first,) = cluster.releases()
            marker = cluster.folder / "node-1" / "packages" / "releases" / first / "ready"
            os.utime(marker, (1, 1))
            assert ask(connection, "two") == 49
            assert first in cluster.releases()
            assert session.invoke(b"8") == b"64"


def test_a_work_folder_may_be_named_relative_to_where_the_node_starts(tmp_path: Path) -> None:
    with Offline(tmp_path, nodes=0) as cluster, flame.connect(cluster.endpoint) as connection:
        cluster.start_node("node-1", "--work-dir", "nodes/first")
        files = {"square.py": service("import six; answer = [__file__, six.NUMBER]"), "requirements.txt": "six==1"}
        cluster.build_wheel("six", "1", {"src/six/__init__.py": "NUMBER = 6"})
        register(connection, "square", pack(tmp_path / "square.tgz", files))
        module, number = ask(connection, "square")  # type: ignore[misc]
        assert number == 6
        assert module.startswith(str(tmp_path / "nodes" / "first" / "packages" / "releases"))

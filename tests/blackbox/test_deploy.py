"""flmctl deploy against real daemons: what it finds, that it repeats itself for nothing, goes back, and fails whole."""

from __future__ import annotations

import json
import subprocess
import sys
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import yaml

import flame
from cache_daemon import CacheDaemon
from cluster import Cluster
from package_builder import WebServer, make_wheel, pack

TOOL = str(Path(sys.executable).parent / "flmctl")
SERVICE = """
import flame

class Answer(flame.FlameService):
    def on_task_invoke(self, context):
        return b"{answer}"

if __name__ == "__main__":
    flame.run(Answer())
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("deploy")) as cluster:
        yield cluster


@pytest.fixture
def connection(cluster: Cluster) -> Iterator[flame.Connection]:
    with flame.connect(cluster.endpoint) as connection:
        yield connection


@pytest.fixture
def web() -> Iterator[WebServer]:
    with WebServer().serving() as server:
        yield server


class Deployer:
    """Deploys the module `answer` of a folder, under a name and to a storage of its own."""

    def __init__(self, cluster: Cluster, folder: Path, name: str, storage: str) -> None:
        self.folder = folder / "project"
        self.folder.mkdir()
        self.name = name
        self.storage = storage
        self._cluster = cluster

    def write(self, answer: str) -> None:
        (self.folder / f"{self.name}.py").write_text(SERVICE.format(answer=answer))

    def run(self, *arguments: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
        what = [] if "--rollback" in arguments else ["--application", str(path or self.folder)]
        storage = ["--storage", self.storage] if self.storage else []
        return subprocess.run(
            [TOOL, "deploy", "--name", self.name, *what, *storage, *arguments],
            env=self._cluster.environ(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def good(self, *arguments: str) -> Mapping[str, object]:
        done = self.run(*arguments, "-o", "json")
        assert done.returncode == 0, done.stderr
        answer = json.loads(done.stdout)
        assert isinstance(answer, dict)
        return answer


def ask(connection: flame.Connection, name: str) -> str:
    with connection.create_session(name) as session:
        return (session.invoke(b"") or b"").decode()


@pytest.fixture
def deployer(cluster: Cluster, tmp_path: Path, request: pytest.FixtureRequest) -> Deployer:
    name = f"answer_{zlib.crc32(request.node.name.encode())}"
    return Deployer(cluster, tmp_path, name, (tmp_path / "storage").as_uri())


def test_a_folder_is_deployed_and_runs(deployer: Deployer, connection: flame.Connection) -> None:
    deployer.write("one")
    done = deployer.run()
    assert (done.returncode, done.stderr) == (0, "")
    title, *rows = done.stdout.splitlines()
    assert title == f"Application <{deployer.name}> deployed."
    page = {key.strip(): value.strip() for key, value in (row.split(":", 1) for row in rows)}
    digest = page["SHA256"]
    assert page == {
        "Action": "created",
        "Input Kind": "directory",
        "Installer": "python",
        "Command": "python",
        "Arguments": f"-m {deployer.name}",
        "Object": f"{deployer.name}/pkg/{deployer.name}-{digest[:16]}.tar.gz",
        "SHA256": digest,
        "URL": f"{deployer.storage}/{deployer.name}/{deployer.name}-{digest[:16]}.tar.gz#sha256={digest}",
    }
    assert ask(connection, deployer.name) == "one"


def test_changes_are_sent_and_only_they(deployer: Deployer, connection: flame.Connection) -> None:
    deployer.write("one")
    first = deployer.good()
    assert (first["action"], first["sent"]) == ("created", True)
    version = connection.get_application(deployer.name)
    again = deployer.good()
    assert (again["action"], again["sent"], again["sha256"]) == ("unchanged", False, first["sha256"])
    assert connection.get_application(deployer.name) == version
    assert "is deployed already" in deployer.run().stdout
    # Only the registration changes.
    other = deployer.good("--description", "better", "--label", "a", "--env", "A=1", "--delay-release", "0")
    assert (other["action"], other["sent"], other["sha256"]) == ("updated", False, first["sha256"])
    application = connection.get_application(deployer.name)
    assert application is not None
    assert (application.description, application.labels, application.environments, application.delay_release) == (
        "better",
        ["a"],
        {"A": "1"},
        0,
    )
    deployer.write("two")
    changed = deployer.good()
    assert (changed["action"], changed["sent"]) == ("updated", True)
    assert changed["sha256"] != first["sha256"]
    assert ask(connection, deployer.name) == "two"


def test_back_to_the_previous_package_and_forth_again(deployer: Deployer, connection: flame.Connection) -> None:
    refused = deployer.run("--rollback")
    assert (refused.returncode, f"application {deployer.name} not found" in refused.stderr) == (4, True)
    deployer.write("one")
    deployer.good("--description", "first")
    assert "has no earlier package in this storage" in deployer.run("--rollback").stderr
    deployer.write("two")
    deployer.good("--description", "second", "--max-instances", "3")
    plan = deployer.good("--rollback", "--dry-run")
    assert ask(connection, deployer.name) == "two"
    done = deployer.good("--rollback")
    assert (done["action"], done["sha256"]) == ("updated", plan["sha256"])
    application = connection.get_application(deployer.name)
    assert application is not None
    assert (application.description, application.max_instances) == ("first", 1_000_000)
    assert ask(connection, deployer.name) == "one"
    deployer.good("--rollback")
    assert ask(connection, deployer.name) == "two"
    # A third one goes back to the second, not to the first.
    deployer.write("three")
    deployer.good()
    deployer.good("--rollback")
    assert ask(connection, deployer.name) == "two"


def test_a_dry_run_changes_nothing(deployer: Deployer, connection: flame.Connection, tmp_path: Path) -> None:
    deployer.write("one")
    plan = deployer.good("--dry-run")
    assert (plan["action"], plan["sent"], plan["dry_run"]) == ("created", True, True)
    assert connection.get_application(deployer.name) is None
    assert not (tmp_path / "storage").exists()
    assert deployer.run("--dry-run").stdout.startswith(f"Application <{deployer.name}> deploy plan.\n")
    assert deployer.good()["sha256"] == plan["sha256"]


def test_the_document_can_be_registered(cluster: Cluster, deployer: Deployer, tmp_path: Path) -> None:
    deployer.write("one")
    done = deployer.run("-o", "yaml")
    document = yaml.safe_load(done.stdout)
    assert (document["metadata"]["name"], document["spec"]["installer"]) == (deployer.name, "python")
    file = tmp_path / "app.yaml"
    file.write_text(done.stdout)
    updated = subprocess.run([TOOL, "update", "-f", str(file)], env=cluster.environ(), check=False)
    assert updated.returncode == 0
    assert deployer.good()["action"] == "unchanged"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("-o", "xml"), 2, "xml"),
        (("--installer", "deb"), 2, "unknown installer 'deb'"),
        (("--env", "A"), 2, "invalid environment 'A'; expected NAME=VALUE"),
        (("--shim", "none"), 2, "unknown shim 'none'"),
        (("--python", "2.7"), 2, "is no version of Python"),
        (("--schema-input", "{"), 2, "--schema-input is not JSON"),
        (("--schema-input", '{"type": "nonsense"}'), 2, "schema"),
        (("--working-directory", "here"), 2, "working_directory"),
        (("--storage", "ftp://host"), 2, "packages can't be kept at 'ftp://host'"),
        (("--storage", "http://127.0.0.1:1/x"), 7, "the package storage at 127.0.0.1:1 can't be reached"),
        (("--storage", "file:///proc/no"), 2, "can't be written to /proc/no"),
        (("--name", "a/b"), 2, "application name 'a/b'"),
        (("--rollback", "--application", "x"), 2, "give one of --application and --rollback"),
    ],
)
def test_what_is_wrong_is_said_before_anything_happens(
    deployer: Deployer, connection: flame.Connection, arguments: tuple[str, ...], code: int, message: str
) -> None:
    deployer.write("one")
    done = deployer.run(*arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr
    assert connection.get_application(deployer.name) is None


def test_what_can_not_be_started_is_refused(deployer: Deployer) -> None:
    (deployer.folder / "readme").write_text("")
    refusal = deployer.run().stderr
    assert "unable to detect the command: it holds no executable, and no " in refusal
    assert "__main__.py; give it with --command" in refusal
    done = deployer.good("--command", "cat", "--argument=-u")
    application = done["application"]
    assert isinstance(application, dict)
    spec = application["spec"]
    assert (spec["command"], spec["arguments"], spec["installer"]) == ("cat", ["-u"], "binary")
    # A command of one's own has none of the arguments that were found for another one.
    deployer.write("one")
    assert deployer.good("--command", "python3")["arguments"] == []


def test_an_application_in_use_is_left_as_it_is(
    deployer: Deployer, connection: flame.Connection, tmp_path: Path
) -> None:
    deployer.write("one")
    deployer.good()
    kept = sorted(path.name for path in (tmp_path / "storage" / deployer.name).iterdir())
    deployer.write("two")
    with connection.create_session(deployer.name) as session:
        assert session.invoke(b"") == b"one"
        done = deployer.run()
        assert (done.returncode, f"has open sessions, such as {session.id}" in done.stderr) == (5, True)
        assert sorted(path.name for path in (tmp_path / "storage" / deployer.name).iterdir()) == kept
        assert session.invoke(b"") == b"one"
    assert deployer.good()["action"] == "updated"


def test_programs_archives_and_wheels(deployer: Deployer, connection: flame.Connection, tmp_path: Path) -> None:
    program = tmp_path / "tool"
    program.write_text(f"#!{sys.executable}\n{SERVICE.format(answer='program')}")
    program.chmod(0o755)
    archive = pack(tmp_path / "a.tar.gz", {f"top/{deployer.name}.py": SERVICE.format(answer="archive")})
    module = SERVICE.format(answer="wheel").partition("if __name__")[0] + "def main():\n    flame.run(Answer())\n"
    scripts = {"serve-answer": f"{deployer.name}:main"}
    wheel = make_wheel(tmp_path, deployer.name, "1", {f"{deployer.name}.py": module}, scripts)
    for path, kind, answer in (
        (program, "executable-file", "program"),
        (archive, "archive", "archive"),
        (wheel, "wheel", "wheel"),
    ):
        done = deployer.run("-o", "json", path=path)
        assert (done.returncode, json.loads(done.stdout or "{}").get("input_kind")) == (0, kind), done.stderr
        assert ask(connection, deployer.name) == answer


def test_packages_on_a_web_server(
    cluster: Cluster, tmp_path: Path, connection: flame.Connection, web: WebServer
) -> None:
    deployer = Deployer(cluster, tmp_path, "answer_http", f"{web.url}/packages")
    deployer.write("one")
    assert deployer.good()["sent"]
    assert ask(connection, deployer.name) == "one"
    deployer.write("two")
    web.status = 507
    done = deployer.run()
    assert (done.returncode, "the package storage refused PUT" in done.stderr) == (7, True)
    web.status = 200
    assert ask(connection, deployer.name) == "one"
    assert deployer.good()["action"] == "updated"
    puts = [path for method, path, status in web.asked if (method, status) == ("PUT", 201)]
    deployer.good()
    assert [path for method, path, status in web.asked if (method, status) == ("PUT", 201)] == puts
    deployer.good("--rollback")
    assert ask(connection, deployer.name) == "one"


def test_packages_in_the_object_cache(cluster: Cluster, tmp_path: Path, connection: flame.Connection) -> None:
    with CacheDaemon(tmp_path) as cache:
        deployer = Deployer(cluster, tmp_path, "answer_cache", cache.endpoint)
        deployer.write("one")
        first = deployer.good()
        url = str(first["url"])
        assert url.startswith(f"grpc://127.0.0.1:{cache.port}/answer_cache/pkg/answer_cache-")
        assert ask(connection, deployer.name) == "one"
        assert (deployer.good()["action"], deployer.good()["sent"]) == ("unchanged", False)
        deployer.write("two")
        deployer.good()
        assert ask(connection, deployer.name) == "two"
        deployer.good("--rollback")
        assert ask(connection, deployer.name) == "one"


def test_a_storage_must_be_known(cluster: Cluster, tmp_path: Path) -> None:
    deployer = Deployer(cluster, tmp_path, "answer_nowhere", "")
    deployer.write("one")
    done = deployer.run()
    assert done.returncode == 2
    assert "there is no place for packages that the cluster's nodes can reach" in done.stderr
    (cluster.home / ".flame").mkdir()
    (cluster.home / ".flame" / "flame.yaml").write_text(
        yaml.safe_dump(
            {
                "current-context": "here",
                "contexts": [{"name": "here", "package": {"storage": tmp_path.as_uri(), "excludes": ["secret*"]}}],
            }
        )
    )
    (deployer.folder / "secret.txt").write_text("")
    plan = deployer.good()
    assert str(plan["url"]).startswith(f"{tmp_path.as_uri()}/answer_nowhere/")
    (deployer.folder / "secret.txt").unlink()
    assert deployer.good()["sha256"] == plan["sha256"]


def kept(deployer: Deployer) -> set[str]:
    folder = Path(deployer.storage.removeprefix("file://")) / deployer.name
    return {path.name for path in folder.iterdir()}


def test_old_packages_are_removed_and_never_those_that_are_needed(
    deployer: Deployer, cluster: Cluster, connection: flame.Connection
) -> None:
    names: list[str] = []
    for answer in ("one", "two", "three", "four"):
        deployer.write(answer)
        names.append(str(deployer.good()["object_key"]).rpartition("/")[2])
    # Another application runs the first one.
    first = connection.get_application(deployer.name)
    assert first is not None
    deployer.write("five")
    plan = deployer.good("--keep", "2", "--dry-run")
    assert (plan["removed"], len(kept(deployer))) == ([*sorted(names[:3])], 8)
    done = deployer.good("--keep", "1")
    assert done["removed"] == sorted(names[:3])
    last = str(done["object_key"]).rpartition("/")[2]
    assert {name for name in kept(deployer) if name.endswith(".gz")} == {names[3], last}
    assert ask(connection, deployer.name) == "five"
    deployer.good("--rollback", "--keep", "1")
    assert ask(connection, deployer.name) == "four"
    assert deployer.good("--rollback")["action"] == "updated"


def test_removing_alone_and_what_others_use(deployer: Deployer, cluster: Cluster, connection: flame.Connection) -> None:
    deployer.write("one")
    url = str(deployer.good()["url"])
    connection.register_application(f"{deployer.name}-copy", {"command": "x", "installer": "python", "url": url})
    for answer in ("two", "three", "four"):
        deployer.write(answer)
        deployer.good()
    (Path(deployer.storage.removeprefix("file://")) / deployer.name / "notes.txt").write_text("mine")

    def clean(*more: str) -> subprocess.CompletedProcess[str]:
        command = [TOOL, "deploy", "--name", deployer.name, "--storage", deployer.storage, "--keep", "2", *more]
        return subprocess.run(command, env=cluster.environ(), capture_output=True, text=True, timeout=60, check=False)

    assert clean("--dry-run").stdout == f"<1> packages of <{deployer.name}> would be removed.\n"
    assert clean().stdout == f"<1> packages of <{deployer.name}> removed.\n"
    assert Path(url.removeprefix("file://").partition("#")[0]).exists()
    assert len(kept(deployer)) == 2 * 3 + 1
    assert (
        clean("-o", "json")
        .stdout.replace("\n", "")
        .replace(" ", "")
        .startswith(f'{{"name":"{deployer.name}","removed":[]')
    )


def test_packages_in_s3(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import boto3
    from moto.server import ThreadedMotoServer

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
        client.create_bucket(Bucket="deployed")
        place = f"s3://deployed/apps?scheme=http&region=us-east-1&endpoint_override={host}:{port}"
        with Cluster(tmp_path) as lone, flame.connect(lone.endpoint) as connection:
            secrets = lone.home / ".aws" / "credentials"
            secrets.parent.mkdir()
            secrets.write_text("[default]\naws_access_key_id = test\naws_secret_access_key = test\n")
            deployer = Deployer(lone, tmp_path, "answer_s3", place)
            deployer.write("one")
            first = deployer.good()
            assert str(first["url"]).startswith("s3://deployed/apps/answer_s3/answer_s3-")
            assert ask(connection, deployer.name) == "one"
            assert (deployer.good()["action"], deployer.good()["sent"]) == ("unchanged", False)
            for answer in ("two", "three"):
                deployer.write(answer)
                deployer.good()
            assert ask(connection, deployer.name) == "three"
            assert len(deployer.good("--keep", "1")["removed"]) == 1  # pyright: ignore[reportArgumentType]
            deployer.good("--rollback")
            assert ask(connection, deployer.name) == "two"
            found = [one["Key"] for one in client.list_objects_v2(Bucket="deployed")["Contents"]]
            assert len([key for key in found if not key.endswith("/")]) == 4
            deployer.storage = place.replace("deployed", "nowhere")
            refused = deployer.run()
            assert refused.returncode == 7
            assert "the store at s3://nowhere/apps refused" in refused.stderr
        client.close()
    finally:
        server.stop()

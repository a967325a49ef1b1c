"""The Runner against real daemons: how code gets to nodes, and large data through the object cache."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

import flame
from blackbox.trouble import until
from cache_daemon import CacheDaemon
from cluster import Cluster
from flame.objects import ObjectClient
from flame.runner import Runner, get_data
from flame.runner.payloads import Served
from flame.runner.storage import Storage
from runner_samples import Counter, add, array_of, give_bytes, is_writable, sizes

SECONDS = 40.0

PROJECT = """
[project]
name = "shipped-project"
version = "1.0"
requires-python = ">=3.11"
[build-system]
requires = ["uv_build>=0.5"]
build-backend = "uv_build"
"""

PROGRAM = """
import os
import flame
from flame.runner import Runner
from shipped_project import which

if __name__ == "__main__":
    with Runner("shipped") as runner:
        print(runner.service(which)().get(60), runner.service(lambda: which() + "!")().get(60))
"""


class Offline(Cluster):
    """Its nodes install without a network."""

    def environ(self, **more: str) -> dict[str, str]:
        return super().environ(UV_OFFLINE="1", UV_NO_INDEX="1", **more)


def run(cluster: Cluster, folder: Path, program: str, **more: str) -> str:
    """What a program in the folder prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", program],
        env=cluster.environ(**more),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, f"{done.stderr}\n{cluster.manager.log}"
    return done.stdout


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Offline(tmp_path_factory.mktemp("cluster"), storage="none") as cluster:
        yield cluster


def test_what_the_user_typed_and_modules_beside_it_travel_inside_of_pickles(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("def square(value):\n    return value ** 2\n")
    (tmp_path / "program.py").write_text(
        textwrap.dedent("""
        import flame, beside

        def cube(value):
            return beside.square(value) * value

        with flame.Executor() as executor:
            print(executor.submit(cube, 3).result(60), list(executor.map(beside.square, range(3))))
        """)
    )
    assert run(cluster, tmp_path, "program.py") == "27 [0, 1, 4]\n"


def test_a_project_is_installed_there_and_sent_when_it_changed(cluster: Cluster, tmp_path: Path) -> None:
    packages = tmp_path / "packages"
    packages.mkdir()
    context = {"name": "test", "package": {"storage": packages.as_uri()}}
    settings = tmp_path / "flame.yaml"
    settings.write_text(yaml.safe_dump({"current-context": "test", "contexts": [context]}))
    project = tmp_path / "project"
    module = project / "src" / "shipped_project" / "__init__.py"
    module.parent.mkdir(parents=True)
    (project / "pyproject.toml").write_text(PROJECT)
    (project / "program.py").write_text(PROGRAM)

    def outcome(answer: str) -> tuple[str, int]:
        module.write_text(f"def which():\n    return {answer!r}\n")
        path = str(project / "src")
        printed = run(cluster, project, "program.py", FLAME_CONFIG=str(settings), PYTHONPATH=path)
        return printed, len(list(packages.glob("*/*.tar.gz")))

    assert outcome("first") == ("first first!\n", 1)
    assert outcome("first") == ("first first!\n", 1)
    assert outcome("second") == ("second second!\n", 2)


def test_a_version_of_python_is_chosen_also_where_nothing_else_is_installed(cluster: Cluster, tmp_path: Path) -> None:
    context = {"name": "test", "package": {"storage": (tmp_path / "packages").as_uri()}}
    settings = tmp_path / "flame.yaml"
    settings.write_text(yaml.safe_dump({"current-context": "test", "contexts": [context]}))
    (tmp_path / "program.py").write_text(
        textwrap.dedent("""
        import sys, flame

        def where():
            return sys.prefix, sys.version_info[:2]

        ours = "{}.{}".format(*sys.version_info)
        with flame.Executor(python_version=ours) as executor:
            prefix, version = executor.submit(where).result(100)
        print("/releases/" in prefix, version == sys.version_info[:2])
        """)
    )
    assert run(cluster, tmp_path, "program.py", FLAME_CONFIG=str(settings)) == "True True\n"


def test_a_program_whose_python_no_node_has_is_told_so_at_once(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "version_info", (3, 99, 0, "final", 0))
    with (
        flame.connect(cluster.endpoint) as connection,
        pytest.raises(flame.InvalidArgumentError, match=r"runs Python 3\.99, the cluster's nodes have 3\.") as raised,
    ):
        flame.Executor(connection=connection)
    assert "python_version='3.99'" in raised.value.remedy


def test_a_package_without_a_place_for_it_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    with flame.connect(cluster.endpoint) as connection:
        with pytest.raises(flame.InvalidConfigError, match="no place for packages"):
            Runner("nowhere", package=tmp_path, connection=connection)
        assert connection.get_application("nowhere") is None
        with pytest.raises(flame.InvalidArgumentError, match="is no folder"):
            Runner("nowhere", package=tmp_path / "missing", connection=connection)


def test_a_client_with_another_python_is_told_what_to_do(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        textwrap.dedent("""
        import sys
        import flame
        from flame.runner import payloads

        def another(python, cloudpickle):
            made = payloads.Served(python, cloudpickle, b"")
            return made.encode()

        with flame.connect() as connection:
            for data in (another((3, 9), "3.1.0"), another(sys.version_info[:2], "0.1")):
                with connection.create_session("flmrun", common_data=data) as session:
                    try:
                        session.invoke(b"")
                    except flame.TaskFailedError as error:
                        print(error.message)
        """)
    )
    first, second = run(cluster, tmp_path, "program.py").splitlines()
    ours = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert first.startswith(f"the client runs Python 3.9, this executor Python {ours}, ")
    assert f"run the client with Python {ours}, or give the Runner python_version='3.9'" in first
    assert second.startswith("the client has cloudpickle 0.1, this executor has ")
    assert "pip install cloudpickle==" in second


# --- the object cache ------------------------------------------------------------------------------------------------


class WithCache:
    """A cluster with an object cache, and a Runner there."""

    def __init__(self, cluster: Cluster, cache: CacheDaemon, connection: flame.Connection) -> None:
        self.cluster = cluster
        self.cache = cache
        self.connection = connection
        self.objects: ObjectClient = cache.client()

    def keys(self, runner: Runner) -> list[str]:
        return [info.key for info in self.objects.list(f"{runner.name}/*")]


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WithCache]:
    folder = tmp_path_factory.mktemp("cached")
    with CacheDaemon(folder) as cache:
        cluster = Cluster(folder / "cluster", storage="none", capacity="cpu=4,mem=8g", cache=cache.endpoint)
        with cluster, flame.connect(cluster.endpoint) as connection:
            yield WithCache(cluster, cache, connection)


@pytest.fixture
def runner(
    cached: WithCache, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[Runner]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLAME_CACHE_ENDPOINT", cached.cache.endpoint)
    path = os.pathsep.join((str(Path(__file__).parent.parent), *sys.path[:1]))
    name = request.node.originalname.replace("_", "-")[:60]
    with Runner(name, connection=cached.connection, environments={"PYTHONPATH": path}) as runner:
        yield runner


def test_large_results_and_arguments_go_through_the_cache(cached: WithCache, runner: Runner) -> None:
    import numpy as np

    future = runner.service(array_of)(1 << 20)  # 8 MB
    array = future.get(SECONDS)
    assert array.shape == (1 << 20,)
    assert not array.flags.writeable
    (task,) = cached.connection.list_sessions(application=runner.name)[0].list_tasks()
    assert task.output is not None
    assert len(task.output) < 500
    service = runner.service(sizes)
    assert service(array, np.ones(1 << 20), [future], b"x" * (3 << 20)).get(SECONDS) == [
        8 << 20,
        8 << 20,
        8 << 20,
        3 << 20,
    ]
    assert len(runner.service(give_bytes)(100 << 20).get(SECONDS)) == 100 << 20  # over the limit of a task
    assert runner.service(is_writable)(array).get(SECONDS) is False


def test_objects_go_when_nobody_can_ask_for_them_any_more(cached: WithCache, runner: Runner) -> None:
    import numpy as np

    service = runner.service(array_of)
    future = service(1 << 20)
    array = future.get(SECONDS)
    sized = runner.service(sizes)(future, b"x" * (3 << 20))
    kept = runner.put_object("kept")
    assert sized.get(SECONDS) == [8 << 20, 3 << 20]
    del future, sized
    until(lambda: cached.keys(runner) == [kept.key], "the objects go")
    assert np.array_equal(array, np.arange(1 << 20))  # what was got stays
    assert runner.service(add)(kept, "!").get(SECONDS) == "kept!"
    runner.close()
    assert cached.keys(runner) == []


def test_results_stay_after_the_block_of_an_executor(
    cached: WithCache, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLAME_CACHE_ENDPOINT", cached.cache.endpoint)
    path = {"PYTHONPATH": str(Path(__file__).parent.parent)}
    executor = flame.Executor(name="after-the-block", connection=cached.connection, environments=path)
    with executor:
        futures = [executor.submit(array_of, count) for count in (10, 1 << 20)]
        lost = executor.submit(give_bytes, 2 << 20)
    assert [len(future.result(SECONDS)) for future in futures] == [10, 1 << 20]

    def keys() -> list[str]:
        return [info.key for info in cached.objects.list("after-the-block/*")]

    assert len(keys()) == 2
    futures.clear()
    until(lambda: len(keys()) == 1, "the object of a future that is gone goes")
    del lost, executor
    until(lambda: not keys(), "all of them go")


def test_results_that_nobody_lets_go_have_the_time_of_the_cache(
    cached: WithCache, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLAME_CACHE_ENDPOINT", cached.cache.endpoint)
    path = {"PYTHONPATH": str(Path(__file__).parent.parent)}
    with flame.Executor(name="let-go", connection=cached.connection, environments=path) as executor:
        kept = executor.submit(array_of, 1 << 20)
        assert len(kept.result(SECONDS)) == 1 << 20
    (info,) = cached.objects.list("let-go/*")  # its session is forgotten already, so the cache will not hear of that
    assert info.expires is not None


def test_a_durable_state_outlives_its_instance(runner: Runner) -> None:
    service = runner.service(Counter(10), durable=True)
    assert service.add(5).get(SECONDS) == 15
    with pytest.raises(ValueError, match="too late"):
        service.fail_after_adding().get(SECONDS)  # what a call that fails changed is forgotten
    assert service.add(0).get(SECONDS) == 15
    with pytest.raises(flame.FlameError):
        service.method("die").options(max_retries=0)().get(SECONDS)
    assert service.add(1).get(SECONDS) == 16


def test_a_durable_state_is_where_its_client_is_whatever_cache_a_node_has(
    cached: WithCache, runner: Runner, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with CacheDaemon(tmp_path_factory.mktemp("other")) as other:
        service = runner.service(Counter(10), durable=True)
        assert service.add(5).get(SECONDS) == 15
        (session,) = cached.connection.list_sessions(application=runner.name)
        served = Served.decode(session.common_data() or b"")
        elsewhere = Storage(f"{runner.name}/{session.id}", other.endpoint)  # as on a node with that cache
        saved = elsewhere.load_state(served.home)
        assert pickle.loads(saved or b"").value == 15
        elsewhere.save_state(Counter(20), served.home)
        assert list(other.client().list(f"{runner.name}/*")) == []
        with pytest.raises(flame.FlameError):
            service.method("die").options(max_retries=0)().get(SECONDS)
        assert service.add(1).get(SECONDS) == 21


def test_references_can_be_had_and_given(runner: Runner) -> None:
    service = runner.service(add)
    first = service(1, 2)
    (ref,) = runner.ref([first])
    assert service(ref, 1).get(SECONDS) == 4
    assert service(1, b=ref).get(SECONDS) == 4


def test_the_data_of_tasks_can_be_looked_into(cached: WithCache, runner: Runner) -> None:
    service = runner.service(add)
    ref = runner.put_object([1])
    first = service([2], [3])
    for data, expected in (
        (service(ref, b=[4]), ([1, 4], ([1],), {"b": [4]})),
        (service(first, [5]), ([2, 3, 5], ([2, 3], [5]), {})),
    ):
        assert data.get(SECONDS) == expected[0]
        task = cached.connection.get_session(data.session_id).get_task(str(data.task_id))
        assert task.input is not None
        assert task.output is not None
        call: Mapping[str, Any] = get_data(task.input, Storage("x/y", ObjectClient().endpoint))
        assert (call["type"], call["method"], call["args"], call["kwargs"]) == ("input", None, *expected[1:])
        assert get_data(task.output) == {"type": "output", "result": expected[0], "metadata": {}}


def test_large_things_that_are_served_go_through_the_cache(cached: WithCache, runner: Runner) -> None:
    table = bytes(70 << 20)  # over the limit of common data
    assert runner.service(lambda: len(table))().get(SECONDS) == 70 << 20
    (session,) = cached.connection.list_sessions(application=runner.name)
    assert len(session.common_data() or b"") < 10_000


def test_without_its_cache_only_what_is_large_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with CacheDaemon(tmp_path) as cache:
        monkeypatch.setenv("FLAME_CACHE_ENDPOINT", cache.endpoint)
        cluster = Cluster(tmp_path / "cluster", storage="none", cache=cache.endpoint)
        tests = {"PYTHONPATH": str(Path(__file__).parent.parent)}
        with (
            cluster,
            flame.connect(cluster.endpoint) as connection,
            Runner("alone", connection=connection, environments=tests) as runner,
        ):
            arrays, pieces = runner.service(array_of), runner.service(give_bytes)
            made = arrays(1 << 20)
            made.wait(SECONDS)
            cache.daemon.kill()
            for future in (made, arrays(1 << 20)):
                with pytest.raises(flame.UnavailableError, match=r"the cache at .* can't be reached"):
                    future.get(SECONDS)
            with pytest.raises(flame.UnavailableError, match=r"the cache at .* can't be reached"):
                pieces(bytes(3 << 20))
            assert pieces(10).get(SECONDS) == bytes(10)


def test_what_a_killed_program_left_behind_is_cleaned_up_by_the_next(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        textwrap.dedent("""
        import os, signal, sys
        from flame.runner import Runner

        class Holder:
            def which(self):
                return os.environ["WHICH"]

        runner = Runner("left", environments={"WHICH": sys.argv[1]})
        print(runner.service(Holder()).which().get(60), flush=True)
        if sys.argv[1] == "old":
            os.kill(os.getpid(), signal.SIGKILL)
        runner.close()
        """)
    )
    command = [sys.executable, "-W", "error", "program.py"]
    for which, status in (("old", -9), ("new", 0)):
        done = subprocess.run(
            [*command, which],
            env=cluster.environ(),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.stdout, done.returncode) == (f"{which}\n", status), done.stderr
    with flame.connect(cluster.endpoint) as connection:
        assert connection.get_application("left") is None

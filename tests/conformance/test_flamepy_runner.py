"""The Runner and the service helper of the unmodified client 0.6.0, with our object cache and our packages."""

from __future__ import annotations

import functools
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cache_daemon import CacheDaemon
from cluster import FOREIGN_PYTHON, FOREIGN_SCRIPTS, Cluster
from conformance.test_flamepy import checks_of
from flame.typed import Session

SCRIPTS = ("runner.py", "helper.py")


class Offline(Cluster):
    """Its nodes install without a network; clients know its cache."""

    cache_endpoint: str

    def environ(self, **more: str) -> dict[str, str]:
        more.setdefault("FLAME_CACHE_ENDPOINT", self.cache_endpoint)
        return super().environ(UV_OFFLINE="1", UV_NO_INDEX="1", **more)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Offline]:
    folder: Path = tmp_path_factory.mktemp("flamepy")
    with CacheDaemon(folder) as cache:
        cluster = Offline(folder / "cluster", storage="none", capacity="cpu=4,mem=8g", cache=cache.endpoint)
        cluster.cache_endpoint = cache.endpoint
        with cluster:
            yield cluster


@pytest.fixture(scope="module")
def outcomes(cluster: Offline) -> Callable[[str], dict[str, str]]:
    """What became of the checks of a script: an error text, empty when all was well."""

    @functools.cache
    def run(script: str) -> dict[str, str]:
        lines = [json.loads(line) for line in cluster.foreign(script).splitlines()]
        return {line["check"]: line["error"] for line in lines}

    return run


@pytest.mark.parametrize(("script", "check"), [(script, check) for script in SCRIPTS for check in checks_of(script)])
def test_foreign_client(outcomes: Callable[[str], dict[str, str]], script: str, check: str) -> None:
    error = outcomes(script)[check]
    assert not error, error


def test_our_client_with_a_foreign_service(cluster: Offline, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import flame

    monkeypatch.setenv("FLAME_CACHE_ENDPOINT", cluster.cache_endpoint)
    with flame.connect(cluster.endpoint) as connection:
        command = {"command": str(FOREIGN_PYTHON), "arguments": [str(FOREIGN_SCRIPTS / "helper_service.py")]}
        connection.register_application("foreign-helper", command)
        with Session("foreign-helper", {"count": 1}, connection=connection) as session:
            assert session.invoke({"a": 1, "b": 2}, 30) == 3
            assert session.invoke({"kind": "count", "by": 4}, 30) == 5
            assert session.context() == {"count": 5}


def test_a_foreign_client_with_our_service(cluster: Offline, tmp_path: Path) -> None:
    (tmp_path / "service.py").write_text(
        "from flame.service import FlameInstance\n"
        "instance = FlameInstance()\n"
        "@instance.entrypoint\n"
        "def answer(request: int):\n"
        "    instance.update_context(instance.context() + request)\n"
        "    return request * 2\n"
        "instance.run()\n"
    )
    import flame

    with flame.connect(cluster.endpoint) as connection:
        command = {"command": "python", "arguments": [str(tmp_path / "service.py")]}
        connection.register_application("our-helper", command)
    program = (
        "from flamepy.service import Session\n"
        "with Session('our-helper', ctx=1) as session:\n"
        "    print(session.invoke(4), session.context())"
    )
    done = subprocess.run(
        [str(FOREIGN_PYTHON), "-c", program],
        env=cluster.environ(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "8 5\n", done.stderr

"""A local cluster with a cluster file: its scheduler and its node are as the file says."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import flame
from flame.local import Cluster, find_or_start
from flame.model.errors import FlameError, InvalidConfigError

SERVICE = Path(__file__).parent / "services" / "trouble.py"
FILE = """
cluster:
  name: lab
  endpoint: http://127.0.0.1:8080
  storage: none
  policies: [drf, priority, spread]
  limits: {max_pending: 3}
  tenants:
    research:
      weight: 2
      tenants:
        vision: {quota: {sessions: 1}}
  executors:
    labels: {zone: a}
    taints: [owner=me]
    limits: {max_executors: 1}
    devices: [GPU-a, GPU-b]
    gpu_fraction: 3
"""


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Home, and a short path for sockets."""
    with tempfile.TemporaryDirectory(prefix="fl", dir="/tmp") as name:
        for variable in ("HOME", "XDG_RUNTIME_DIR", "XDG_STATE_HOME"):
            monkeypatch.setenv(variable, name)
        yield Path(name)


def test_it_takes_all_but_name_and_endpoint(folder: Path) -> None:
    file = folder / "cluster.yaml"
    file.write_text(FILE)
    with Cluster(2, config=file) as cluster, flame.connect(cluster.endpoint) as connection:
        (node,) = connection.list_nodes()
        assert node.labels["zone"] == "a"
        assert (node.taints, node.max_executors) == (["owner=me"], 1)
        assert (node.capacity.cpu, node.capacity.gpu) == (2, 6)
        tenants = {tenant.name: tenant for tenant in connection.list_tenants()}
        assert tenants.keys() == {"default", "research", "vision"}
        assert (tenants["research"].weight, tenants["vision"].parent) == (2, "research")

        attributes = flame.ApplicationAttributes(command=sys.executable, arguments=[str(SERVICE)])
        connection.register_application("trouble", attributes)
        chosen = {"tenant": "vision", "selector": {"zone": "a"}, "tolerations": ["owner"]}
        session = connection.create_session("trouble", **chosen)
        assert session.invoke(b'{"do": "echo", "n": 1}')
        with pytest.raises(FlameError, match=r"vision.*quota"):
            connection.create_session("trouble", **chosen)

        stranger = connection.create_session("trouble")
        for _ in range(3):
            stranger.submit(b"{}")
        with pytest.raises(FlameError, match="pending"):
            stranger.submit(b"{}").result(30)


def test_what_can_not_be_is_told_to_the_starter(folder: Path) -> None:
    file = folder / "cluster.yaml"
    file.write_text(FILE.replace("spread", "spraed"))
    with pytest.raises(InvalidConfigError, match="unknown policy 'spraed'") as caught, Cluster(config=file):
        pass
    assert "did you mean spread?" in caught.value.remedy


def test_all_who_wait_learn_why_it_does_not_start_and_who_comes_later_gets_another(folder: Path) -> None:
    file = folder / "cluster.yaml"
    file.write_text(FILE.replace("spread", "spraed"))
    cluster = Cluster(config=file).start(wait=False)

    def error() -> FlameError:
        with pytest.raises(FlameError) as caught:
            assert cluster.endpoint
        return caught.value

    with ThreadPoolExecutor(8) as threads:
        errors = [future.result(60) for future in [threads.submit(error) for _ in range(8)]]
    assert {(type(error), str(error)) for error in errors} == {(InvalidConfigError, str(errors[0]))}
    assert "unknown policy 'spraed'" in errors[0].message
    assert list((folder / "flame").iterdir()) == []  # nothing of it is left

    started = find_or_start()
    assert isinstance(started, Cluster)
    assert started is not cluster
    with started, flame.connect(started.endpoint) as connection:
        assert connection.list_nodes()


def test_a_cluster_that_was_killed_is_not_waited_for(folder: Path) -> None:
    attributes = flame.ApplicationAttributes(command=sys.executable, arguments=[str(SERVICE)])
    with Cluster(1) as cluster, flame.connect(cluster.endpoint) as connection:
        connection.register_application("trouble", attributes)
        session = connection.create_session("trouble")
        future = session.submit(b'{"do": "sleep", "seconds": 1000}')
        os.kill(cluster.pid, signal.SIGKILL)
        with pytest.raises(flame.UnavailableError, match="the local cluster of this program was killed by SIGKILL"):
            future.result(60)
        another = find_or_start()
        assert isinstance(another, Cluster)
        with another:
            assert another.endpoint != cluster.endpoint
            with flame.connect(another.endpoint) as connected:
                assert connected.list_nodes()

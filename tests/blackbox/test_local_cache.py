"""The object cache of a local cluster: there when something is too large for a task, and only then."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flame
from cluster import free_ports
from flame.local import Cluster
from flame.local.cache import LocalCache
from flame.local.launch import running_cluster
from flame.local.registry import ClusterRecord
from flame.local.settings import DaemonSettings
from flame.model.errors import FlameError, InvalidConfigError, TooLargeError, UnavailableError
from flame.objects import ObjectClient

SERVICE = Path(__file__).parent / "services" / "large.py"
TYPED = """
from flame.service import FlameInstance

instance = FlameInstance()


@instance.entrypoint
def twice(request: bytes) -> bytes:
    return instance.context() if request == b"context" else request * 2


if __name__ == "__main__":
    instance.run()
"""
LIMITS = "cluster: {name: x, endpoint: 'http://127.0.0.1:8080', storage: none, limits: {max_payload: 1m}}\n"
SMALL_CACHE = LIMITS + "cache: {eviction: {max_memory: 8m}}\n"
SECONDS = 30.0
LARGE = b"\x02" + bytes(3 << 20)


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Home, and a short path for sockets."""
    with tempfile.TemporaryDirectory(prefix="fl", dir="/tmp") as name:
        for variable in ("HOME", "XDG_RUNTIME_DIR", "XDG_STATE_HOME"):
            monkeypatch.setenv(variable, name)
        monkeypatch.delenv("FLAME_CACHE_ENDPOINT", raising=False)
        yield Path(name)


@pytest.fixture
def config(folder: Path) -> Path:
    file = folder / "cluster.yaml"
    file.write_text(LIMITS)
    return file


def caches(cluster: Cluster) -> list[int]:
    """The processes of its object cache."""
    children = Path(f"/proc/{cluster.pid}/task/{cluster.pid}/children").read_text().split()
    return [int(pid) for pid in children if b"flame.cache.beside" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def large(connection: flame.Connection) -> flame.Session:
    connection.register_application("large", {"command": sys.executable, "arguments": [str(SERVICE)]})
    return connection.create_session("large", common_data=LARGE)


def test_it_starts_when_something_is_too_large_for_a_task(config: Path) -> None:
    with Cluster(1, config=config) as cluster, flame.connect(cluster.endpoint) as connection:
        connection.register_application("large", {"command": sys.executable, "arguments": [str(SERVICE)]})
        with connection.create_session("large") as session:
            assert session.invoke(b"\x01" * 1000, SECONDS) == b"\x01" * 1000
            assert caches(cluster) == []
            assert session.invoke(LARGE, SECONDS) == LARGE * 2
            assert len(caches(cluster)) == 1
        (pid,) = caches(cluster)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_functions_that_need_none_start_none(config: Path) -> None:
    with Cluster(2, config=config) as cluster, flame.connect(cluster.endpoint) as connection:
        with flame.Executor(connection=connection) as executor:
            assert list(executor.map(abs, [-1, 2])) == [1, 2]
        with flame.Runner("small", connection=connection) as runner:
            assert runner.service(abs)(-3).get() == 3
        assert caches(cluster) == []


async def test_it_ends_also_in_the_moment_in_which_it_has_started(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = DaemonSettings("x", str(folder), str(folder), "none", temporary=True)
    record = ClusterRecord("x", os.getpid(), "unix:x", "none", str(folder), "", "0", 0.0, cache=f"unix:{folder}/door")
    cache = LocalCache(settings, record)
    start = asyncio.create_subprocess_exec
    stopping: asyncio.Future[asyncio.Task[None]] = asyncio.get_running_loop().create_future()

    async def create(*arguments: Any, **options: Any) -> asyncio.subprocess.Process:
        process = await start(*arguments, **options)
        assert process.stdout is not None
        readline = process.stdout.readline

        async def read_and_stop() -> bytes:
            line = await readline()
            # Its first step comes between the end of this and who waits for the line.
            stopping.set_result(asyncio.create_task(cache.stop()))
            return line

        monkeypatch.setattr(process.stdout, "readline", read_and_stop)
        return process

    monkeypatch.setattr(asyncio, "create_subprocess_exec", create)
    await cache.start()
    with socket.socket(socket.AF_UNIX) as visitor:
        visitor.connect(str(folder / "door"))
        async with asyncio.timeout(20):
            await asyncio.shield(await stopping)  # or its own waiting would be what is cancelled


def test_common_data_and_asyncio(config: Path) -> None:
    with Cluster(1, config=config) as cluster:
        with flame.connect(cluster.endpoint) as connection, large(connection) as session:
            assert session.invoke(b"length", SECONDS) == str(len(LARGE)).encode()
            assert session.common_data() == LARGE
            task = session.create_task(LARGE)
            for update in session.watch_task(task.id, SECONDS):
                assert not update.is_failed()
            found = session.get_task(task.id)
            assert (found.input, found.output) == (LARGE, LARGE * 2)

        async def main() -> bytes | None:
            async with (
                await flame.aio.connect(cluster.endpoint) as connection,
                await connection.create_session("large") as session,
            ):
                return await session.invoke(LARGE, SECONDS)

        assert asyncio.run(main()) == LARGE * 2


def test_functions_classes_and_arrays(config: Path) -> None:
    class Scale:
        def __init__(self, factors: np.ndarray) -> None:
            self.factors = factors

        def apply(self, values: np.ndarray) -> np.ndarray:
            return self.factors * values

    array = np.arange(300_000, dtype=np.float64)
    with Cluster(1, config=config) as cluster, flame.connect(cluster.endpoint) as connection:
        with flame.Runner("scales", connection=connection) as runner:
            assert runner.service(len)(LARGE).get(SECONDS) == len(LARGE)
            scale = runner.service(Scale, args=(array,))
            assert (scale.apply(array).get(SECONDS) == array * array).all()
            reference = runner.put_object(array)
            assert (scale.apply(reference).get(SECONDS) == array * array).all()
        with flame.Executor(connection=connection) as executor:
            assert list(executor.map(len, [LARGE, b"small"])) == [len(LARGE), 5]


def test_requests_and_answers_of_typed_services(config: Path, folder: Path) -> None:
    (folder / "typed.py").write_text(TYPED)
    with Cluster(1, config=config) as cluster, flame.connect(cluster.endpoint) as connection:
        connection.register_application("typed", {"command": sys.executable, "arguments": [str(folder / "typed.py")]})
        with flame.typed.Session("typed", ctx=LARGE, connection=connection) as session:
            assert session.invoke(LARGE, SECONDS) == LARGE * 2
            assert session.invoke(b"context", SECONDS) == LARGE
            assert session.context() == LARGE


def test_objects_of_the_program_itself(config: Path) -> None:
    with Cluster(1, config=config):
        reference = flame.put("mine/shared", np.ones(1000))
        assert flame.get(reference).sum() == 1000
        assert [info.key for info in flame.objects.list_objects("mine/shared")] == [reference.key]


def test_a_cache_that_was_killed_comes_back(config: Path) -> None:
    with (
        Cluster(1, config=config) as cluster,
        flame.connect(cluster.endpoint) as connection,
        large(connection) as session,
    ):
        assert session.invoke(LARGE, SECONDS) == LARGE * 2
        (pid,) = caches(cluster)
        os.kill(pid, signal.SIGKILL)
        assert session.invoke(LARGE, SECONDS) == LARGE * 2
        assert caches(cluster) not in ([], [pid])


def test_a_lasting_cluster_keeps_its_objects() -> None:
    with Cluster(1, name="lasting") as cluster, ObjectClient(running_cluster("lasting").cache) as client:
        reference = client.put("mine/shared", np.arange(100_000))
        assert cluster.endpoint
    with Cluster(1, name="lasting"), ObjectClient(running_cluster("lasting").cache) as client:
        assert client.get(reference).sum() == 4999950000


def test_others_can_not_reach_it(config: Path) -> None:
    with Cluster(1, config=config, name="mine"):
        flame.put("mine/shared", b"secret")
        folder = Path(running_cluster("mine").cache.removeprefix("unix:")).parent
        assert folder.stat().st_mode & 0o077 == 0
        assert {"cache.sock", "cache.sock.flight"} <= {path.name for path in folder.iterdir()}


def test_an_instance_in_a_sandbox_has_what_is_of_its_session(config: Path) -> None:
    with Cluster(1, config=config) as cluster, flame.connect(cluster.endpoint) as connection:
        connection.register_application("large", {"command": sys.executable, "arguments": [str(SERVICE)]})
        with connection.create_session("large", isolation="process") as session:
            assert session.invoke(b"\x02small", SECONDS) == b"\x02small" * 2
            assert session.invoke(b"\x05" + bytes(1 << 19), SECONDS) == (b"\x05" + bytes(1 << 19)) * 5
            assert session.invoke(b"\x01" + bytes(3 << 20), SECONDS) == b"\x01" + bytes(3 << 20)


def test_without_a_cache_the_error_says_how_to_get_one(config: Path) -> None:
    with Cluster(1, config=config, cache="off") as cluster, flame.connect(cluster.endpoint) as connection:
        connection.register_application("large", {"command": sys.executable, "arguments": [str(SERVICE)]})
        with connection.create_session("large") as session:
            with pytest.raises(TooLargeError, match="flmadm up --cache"):
                session.submit(LARGE)
            with pytest.raises(FlameError, match="over the limit of 1048576 bytes"):
                session.invoke(b"\x05" + bytes(1 << 19), SECONDS)
        with flame.Executor(connection=connection) as executor:
            with pytest.raises(TooLargeError, match="flmadm up --cache"):
                executor.submit(bytes, 1 << 21).result(SECONDS)
            with pytest.raises(TooLargeError, match="flmadm up --cache"):
                executor.submit(len, LARGE)


def test_clients_elsewhere_use_one_with_an_address(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port, cache = free_ports(4), free_ports(1)
    listen = f"127.0.0.1:{port}"
    with Cluster(1, config=config, listen=listen) as cluster, flame.connect(f"http://{listen}") as connection:
        assert caches(cluster) == []
        connection.register_application("large", {"command": sys.executable, "arguments": [str(SERVICE)]})
        with connection.create_session("large") as session, pytest.raises(TooLargeError, match="--cache"):
            session.submit(LARGE)
    with Cluster(1, config=config, listen=listen, cache=f"127.0.0.1:{cache}", name="near") as cluster:
        assert len(caches(cluster)) == 1
        assert running_cluster("near").cache == f"grpc://127.0.0.1:{cache}"
        with flame.connect(cluster.endpoint) as connection, large(connection) as session:
            assert session.invoke(LARGE, SECONDS) == LARGE * 2  # who is near knows it
        monkeypatch.setenv("FLAME_CACHE_ENDPOINT", f"grpc://127.0.0.1:{cache}")
        with flame.connect(f"http://{listen}") as connection, connection.create_session("large") as session:
            assert session.invoke(LARGE, SECONDS) == LARGE * 2


def test_what_memory_has_no_room_for_goes_to_disk(folder: Path) -> None:
    file = folder / "cluster.yaml"
    file.write_text(SMALL_CACHE)
    with (
        Cluster(1, config=file, cache=f"127.0.0.1:{free_ports(1)}") as cluster,
        flame.connect(cluster.endpoint) as connection,
        large(connection) as session,
    ):
        futures = [session.submit(bytes([2]) + bytes([number]) * (3 << 20)) for number in range(4)]
        for number, future in enumerate(futures):
            assert future.result(SECONDS) == (bytes([2]) + bytes([number]) * (3 << 20)) * 2
        assert session.invoke(b"\x20" + bytes(1 << 20), SECONDS) == (b"\x20" + bytes(1 << 20)) * 32


@pytest.mark.parametrize(
    ("cache", "says"),
    [("0.0.0.0:9090", "without TLS"), ("127.0.0.1:0", "needs a port"), ("nonsense", "nonsense")],
)
def test_bad_addresses(cache: str, says: str) -> None:
    with pytest.raises(InvalidConfigError, match=says):
        Cluster(1, cache=cache).start()


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UnavailableError, match=f"can't listen at grpc://127.0.0.1:{port}"):
            Cluster(1, cache=f"127.0.0.1:{port}").start()

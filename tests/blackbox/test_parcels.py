"""Payloads that are too large for a task go through the object cache by themselves."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import flame
from blackbox.trouble import until
from cache_daemon import CacheDaemon
from cluster import Cluster
from flame.objects import ObjectClient

SERVICE = str(Path(__file__).parent / "services" / "large.py")
# Serves in the dialect of executor managers that do not speak the link.
OVER_GRPC = (
    "import os, runpy, sys; del os.environ['FLAME_INSTANCE_LINK']; runpy.run_path(sys.argv[1], run_name='__main__')"
)
LIMIT = 1 << 20
SECONDS = 30.0
SMALL = b"\x02" + bytes(9)
LARGE = b"\x02" + bytes(3 << 20)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CacheDaemon]:
    with CacheDaemon(tmp_path_factory.mktemp("cache")) as cache:
        yield cache


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, cache: CacheDaemon) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("cluster")
    settings = {"limits": {"max_payload": LIMIT}}
    with Cluster(folder, storage="none", settings=settings, cache=cache.endpoint) as cluster:
        with flame.connect(cluster.endpoint) as connection:
            for name, arguments in (("large", [SERVICE]), ("large-grpc", ["-c", OVER_GRPC, SERVICE])):
                connection.register_application(name, {"command": sys.executable, "arguments": arguments})
        yield cluster


@pytest.fixture
def connection(cluster: Cluster, cache: CacheDaemon, monkeypatch: pytest.MonkeyPatch) -> Iterator[flame.Connection]:
    monkeypatch.setenv("FLAME_CACHE_ENDPOINT", cache.endpoint)
    with flame.connect(cluster.endpoint) as connection:
        yield connection


@pytest.mark.parametrize("application", ["large", "large-grpc"])
def test_inputs_and_outputs_of_any_size(connection: flame.Connection, application: str) -> None:
    with connection.create_session(application, common_data=LARGE) as session:
        assert session.invoke(LARGE, SECONDS) == LARGE * 2
        assert session.invoke(SMALL, SECONDS) == SMALL * 2
        assert session.invoke(b"\x05" + bytes(LIMIT // 2), SECONDS) == (b"\x05" + bytes(LIMIT // 2)) * 5
        assert list(session.map([SMALL, LARGE, SMALL])) == [SMALL * 2, LARGE * 2, SMALL * 2]
        assert int(session.invoke(b"length", SECONDS) or b"") == len(LARGE)


def test_for_asyncio_too(connection: flame.Connection, cluster: Cluster) -> None:
    async def main() -> list[bytes | None]:
        async with (
            await flame.aio.connect(cluster.endpoint) as connection,
            await connection.create_session("large", common_data=LARGE) as session,
        ):
            found = [await session.submit(LARGE), await session.invoke(b"length", SECONDS)]
            return found + [output async for output in session.map([LARGE])]

    assert asyncio.run(main()) == [LARGE * 2, str(len(LARGE)).encode(), LARGE * 2]


def test_a_map_goes_on_however_much_its_inputs_are_together(connection: flame.Connection, cluster: Cluster) -> None:
    large = bytes(LIMIT * 40)  # five of them are more than a map may hold of what the cluster has not accepted

    async def main() -> list[bytes | None]:
        async with (
            await flame.aio.connect(cluster.endpoint) as connection,
            await connection.create_session("large") as session,
        ):
            return [output async for output in session.map([large] * 5, timeout=SECONDS)]

    with connection.create_session("large") as session:
        assert list(session.map([large] * 5, timeout=SECONDS)) == [b""] * 5
    assert asyncio.run(main()) == [b""] * 5


def test_they_go_after_their_session(
    connection: flame.Connection, cache: CacheDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLAME_KEEP_PARCELS", "1")
    objects: ObjectClient = cache.client()
    with connection.create_session("large") as session:
        assert session.invoke(LARGE, SECONDS) == LARGE * 2
        infos = list(objects.list(f"parcels/{session.id}"))
        assert len(infos) == 2
        assert all(info.expires is None for info in infos)
    assert all(info.expires is not None for info in objects.list(f"parcels/{session.id}"))


class Payloads:
    """What lies in the cache for a session."""

    def __init__(self, cache: CacheDaemon, session: flame.Session) -> None:
        self._objects: ObjectClient = cache.client()
        self._session = session

    def __len__(self) -> int:
        return len(list(self._objects.list(f"parcels/{self._session.id}")))

    def become(self, count: int) -> None:
        until(lambda: len(self) == count, f"there are {count} payloads")


def test_inputs_go_with_their_tasks_and_outputs_with_their_futures(
    connection: flame.Connection, cache: CacheDaemon
) -> None:
    with connection.create_session("large") as session:
        payloads = Payloads(cache, session)
        future = session.submit(LARGE)
        assert future.result(SECONDS) == LARGE * 2
        payloads.become(1)
        assert future.result(SECONDS) == LARGE * 2  # as often as it is asked for
        task = session.get_task(future.task_id or "")
        assert (len(task.input or b"") < 500, task.output) == (True, LARGE * 2)
        del future
        payloads.become(0)
        assert [len(output) for output in session.map([LARGE] * 5)] == [len(LARGE) * 2] * 5
        payloads.become(0)
        given_up = session.map([LARGE] * 3)
        until(lambda: all(task.state.terminal for task in session.list_tasks()), "all have ended")
        next(given_up)
        del given_up
        payloads.become(0)


def test_for_asyncio_they_go_too(connection: flame.Connection, cluster: Cluster, cache: CacheDaemon) -> None:
    async def main() -> flame.Session:
        async with await flame.aio.connect(cluster.endpoint) as other:
            session = await other.create_session("large")
            assert await session.submit(LARGE) == LARGE * 2
            assert [output async for output in session.map([LARGE] * 2)] == [LARGE * 2] * 2
            return connection.open_session(session.id)

    session = asyncio.run(main())
    Payloads(cache, session).become(0)
    session.close()


def test_what_was_not_taken_is_there_for_another_client(
    connection: flame.Connection, cluster: Cluster, cache: CacheDaemon
) -> None:
    with connection.create_session("large") as session:
        payloads = Payloads(cache, session)
        future = session.submit(LARGE)
        future.exception(SECONDS)
        task_id = future.task_id or ""
        del future
        payloads.become(1)
        with flame.connect(cluster.endpoint) as other:
            assert other.open_session(session.id).get_task(task_id).output == LARGE * 2


def test_the_end_of_a_connection_is_not_that_of_its_tasks(connection: flame.Connection, cluster: Cluster) -> None:
    with connection.create_session("large", max_instances=1) as session:
        with flame.connect(cluster.endpoint) as other:
            futures = [other.open_session(session.id).submit(LARGE) for _ in range(20)]
            until(lambda: futures[-1].task_id is not None, "all are accepted")
        tasks = [list(session.watch_task(task.id))[-1] for task in session.list_tasks()]
        assert [task.state.name for task in tasks] == ["SUCCEED"] * 20  # with their inputs


def test_a_smaller_limit_can_be_chosen(
    connection: flame.Connection, cluster: Cluster, cache: CacheDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLAME_PARCEL_FROM", "64k")
    monkeypatch.setenv("FLAME_KEEP_PARCELS", "1")
    with flame.connect(cluster.endpoint) as connection, connection.create_session("large") as session:
        data = b"\x01" + bytes(100_000)
        future = session.submit(data)
        assert future.result(SECONDS) == data
        (listed,) = session.list_tasks()
        assert len(listed.input or b"") < 500
        assert listed.output == data  # the instance has its own limit
        assert session.get_task(future.task_id or "").input == data


def test_without_a_cache_they_are_refused(
    connection: flame.Connection, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FLAME_CACHE_ENDPOINT")
    with connection.create_session("large") as session:
        with pytest.raises(flame.TooLargeError, match="set up an object cache"):
            session.submit(LARGE)
        # What the instance put there is found by its reference.
        data = b"\x05" + bytes(LIMIT // 2)
        assert session.invoke(data, SECONDS) == data * 5
    with pytest.raises(flame.TooLargeError):
        connection.create_session("large", common_data=LARGE)


def test_what_is_gone_fails_its_task_only(connection: flame.Connection, cache: CacheDaemon) -> None:
    with connection.create_session("large", max_instances=1) as session:
        parcel = session.submit(LARGE)
        assert parcel.result(SECONDS) == LARGE * 2
        cache.client().delete(f"parcels/{session.id}")
        with pytest.raises(flame.NotFoundError):
            parcel.result(SECONDS)
        task = session.get_task(parcel.task_id or "")
        with pytest.raises(flame.TaskFailedError, match="parcels"):
            session.invoke(task.input, SECONDS)
        assert session.invoke(SMALL, SECONDS) == SMALL * 2

"""Objects of closed sessions go away, with a real session manager; everything else stays."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from blackbox.trouble import connect, register, until
from cache_daemon import CacheDaemon
from cluster import Cluster
from flame.cache.cache import ObjectCache
from flame.cache.sessions import Sessions
from flame.link import parse
from flame.objects.keys import ObjectKey
from flame.objects.messages import Options

OFTEN = 0.05


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path, nodes=0) as running:
        yield running


@pytest.fixture
def cache() -> Iterator[ObjectCache]:
    made = ObjectCache(max_memory=1 << 24, retention=0.0)
    yield made
    made.close()


@pytest.fixture
def sessions(cluster: Cluster, cache: ObjectCache) -> Iterator[Sessions]:
    made = Sessions(cache, parse(cluster.link), None, pause=OFTEN)
    made.start()
    yield made
    made.stop()


def put(cache: ObjectCache, prefix: str, tenant: str = "") -> str:
    key = ObjectKey.from_prefix(prefix).with_generated_id()
    endpoint_key, _ = cache.put_bytes(key, b"data", Options(tenant=tenant))
    return endpoint_key


def held(cache: ObjectCache) -> set[str]:
    cache.sweep()
    return {str(prefix) for prefix in cache.prefixes()}


@pytest.mark.usefixtures("sessions")
def test_objects_of_a_closed_session_go_away_and_others_stay(cluster: Cluster, cache: ObjectCache) -> None:
    with connect(cluster) as connection:
        register(connection)
        closing, open_one = (connection.create_session("trouble") for _ in range(2))
        put(cache, f"parcels/{closing.id}")  # a payload that was too large for a task
        put(cache, "parcels/forgotten")  # of a session that was purged before anybody looked
        stay = [
            f"trouble/{open_one.id}",
            f"parcels/{open_one.id}",
            "trouble/shared",
            "trouble/never-was",
            f"another/{closing.id}",
        ]
        for prefix in [f"trouble/{closing.id}", *stay]:
            put(cache, prefix)
        closing.close()
        until(lambda: held(cache) == set(stay), "the objects of the closed session to go")


def test_what_a_closed_session_left_goes_when_that_is_deleted(cluster: Cluster) -> None:
    """Its results are gone then, so nobody asks for what lies in the cache; otherwise it has its time."""
    cache = ObjectCache(max_memory=1 << 24, retention=3600.0)
    sessions = Sessions(cache, parse(cluster.link), None, pause=OFTEN)
    sessions.start()
    try:
        with connect(cluster) as connection:
            register(connection)
            deleted, kept, short = (connection.create_session("trouble", retention=n) for n in (None, None, 0))
            keys = [put(cache, f"parcels/{session.id}") for session in (deleted, kept, short)]
            for session in (deleted, kept):
                session.close()
            until(lambda: all(_expires(cache, key) for key in keys[:2]), "the objects to have a time")
            connection.delete_session(deleted.id)
            short.close()
            until(lambda: held(cache) == {f"parcels/{kept.id}"}, "the objects of those that are gone to go")
    finally:
        sessions.stop()
        cache.close()


def _expires(cache: ObjectCache, key: str) -> float | None:
    info = cache.info(ObjectKey.from_key(key))
    return info.expires if info is not None else None


@pytest.mark.usefixtures("sessions")
def test_an_end_is_not_missed_while_the_session_manager_is_away(cluster: Cluster, cache: ObjectCache) -> None:
    with connect(cluster) as connection:
        register(connection)
        session = connection.create_session("trouble")
        put(cache, f"trouble/{session.id}")
        cluster.manager.kill()
        cluster.start_manager()
        session.close()
        until(lambda: held(cache) == set(), "the objects to go")


@pytest.mark.usefixtures("sessions")
def test_objects_count_for_the_tenant_of_their_session(cluster: Cluster, cache: ObjectCache) -> None:
    with connect(cluster) as connection:
        register(connection)
        connection.create_tenant("team")
        session = connection.create_session("trouble", tenant="team")
        put(cache, f"trouble/{session.id}", tenant="other")
        until(lambda: cache.status("x").tenants == {"team": 4}, "the object to be the tenant's")
        put(cache, f"trouble/{session.id}", tenant="other")
        put(cache, "trouble/shared", tenant="other")
        assert cache.status("x").tenants == {"team": 8, "other": 4}


def test_the_daemon_asks_the_session_manager_of_its_settings(tmp_path: Path) -> None:
    with CacheDaemon(tmp_path, storage=True) as cache:
        cache.client().put("trouble/some", b"data")
        cache.daemon.stop()
        cache.start()  # it looks at once
        cache.daemon.wait_for("sessions_unknown manager=tcp:127.0.0.1:8082")

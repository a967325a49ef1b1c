"""Services that raise, exit, loop, babble or never start: each has one clear outcome, for its own tasks only."""

from __future__ import annotations

import collections
import json
import sys
from concurrent.futures import CancelledError

import pytest

import flame
from blackbox.trouble import ask, connect, echoes, numbers, register
from cluster import Cluster
from flame.model.errors import TaskFailedError

LIMIT = 4 * 1024 * 1024


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> collections.abc.Iterator[Cluster]:
    settings = {"limits": {"max_payload": LIMIT}, "recovery": {"session": {"retry_limits": 3}}}
    with Cluster(tmp_path_factory.mktemp("cluster"), settings=settings) as running, connect(running) as connection:
        register(connection)
        register(connection, "slow-start", start_timeout=0.5)
        yield running


@pytest.fixture
def session(cluster: Cluster) -> collections.abc.Iterator[flame.Session]:
    with connect(cluster) as connection, connection.create_session("trouble", max_instances=1) as made:
        yield made


def test_an_exception_reaches_the_future_with_its_traceback(session: flame.Session) -> None:
    with pytest.raises(TaskFailedError, match="the value is wrong") as caught:
        session.invoke(ask("raise"), timeout=30)
    assert "ValueError" in caught.value.traceback
    assert "on_task_invoke" in caught.value.traceback
    assert numbers([session.invoke(ask(n=1))]) == [1]


@pytest.mark.parametrize(("what", "words"), [("exit", "3"), ("leave", "4"), ("segfault", "SEGV")])
def test_a_task_that_ends_its_instance_each_time_fails_alone(session: flame.Session, what: str, words: str) -> None:
    before = [session.submit(ask(n=n)) for n in range(20)]
    poison = session.submit(ask(what))
    after = [session.submit(ask(n=n)) for n in range(20, 40)]
    with pytest.raises(TaskFailedError, match="3 times") as caught:
        poison.result(60)
    assert words in str(caught.value)
    assert numbers(future.result(60) for future in before + after) == list(range(40))


def test_an_endless_loop_is_stopped_by_the_timeout(session: flame.Session) -> None:
    with pytest.raises(flame.FlameError, match="timed out"):
        session.submit(ask("loop"), run_timeout=0.5).result(30)
    assert numbers([session.invoke(ask(n=1), timeout=30)]) == [1]


def test_a_sleeping_task_is_really_cancelled(session: flame.Session) -> None:
    session.invoke(ask())
    sleeper = session.submit(ask("sleep", seconds=600))
    next_one = session.submit(ask(n=5))
    assert sleeper.cancel()
    with pytest.raises(CancelledError):
        sleeper.result(30)
    assert sleeper.cancelled()
    assert numbers([next_one.result(30)]) == [5]


def test_output_over_the_limit_fails_and_names_the_setting(session: flame.Session) -> None:
    assert len(session.invoke(ask("big", size=LIMIT - 100), timeout=30) or b"") == LIMIT - 100
    with pytest.raises(TaskFailedError, match=r"cluster\.limits\.max_payload"):
        session.invoke(ask("big", size=100_000_000), timeout=60)
    assert numbers([session.invoke(ask(n=1))]) == [1]


def test_input_over_the_limit_is_refused_at_once(session: flame.Session) -> None:
    with pytest.raises(flame.FlameError, match=r"cluster\.limits\.max_payload"):
        session.submit(bytes(LIMIT + 1)).result(30)
    assert numbers([session.invoke(ask(n=1))]) == [1]


def test_output_that_is_not_bytes_fails_with_its_type(session: flame.Session) -> None:
    with pytest.raises(TaskFailedError, match="str"):
        session.invoke(ask("text"), timeout=30)


def test_a_flood_of_prints_is_kept_short(session: flame.Session, cluster: Cluster) -> None:
    assert session.invoke(ask("print", lines=200_000, n=1), timeout=60)
    kept = sum(
        path.stat().st_size for path in cluster.folder.rglob("*") if path.is_file() and "flame.db" not in path.name
    )
    assert kept < 40_000_000
    with connect(cluster) as connection:
        chunks = list(connection.logs(session.id))
    assert any(chunk.truncated for chunk in chunks)
    assert chunks[-1].data.endswith(b"x\n")


@pytest.mark.parametrize(
    ("application", "common_data", "words"),
    [
        ("trouble", b"refuse", "no model here"),
        ("trouble", b"die", "17"),
        ("not-there", None, "no-such-program"),
        ("silent", None, "did not become ready"),
        ("garbage", None, ""),
    ],
)
def test_a_service_that_never_starts_fails_its_tasks_with_the_reason(
    cluster: Cluster, application: str, common_data: bytes | None, words: str
) -> None:
    garbage = (
        "import os, socket, time\n"
        "s = socket.socket(socket.AF_UNIX); s.connect(os.environ['FLAME_INSTANCE_LINK'])\n"
        "s.sendall(b'GET / HTTP/1.1\\r\\n' * 100); time.sleep(600)\n"
    )
    programs = {
        "not-there": flame.ApplicationAttributes(command="no-such-program"),
        "silent": flame.ApplicationAttributes(command="sleep", arguments=["600"], start_timeout=0.3),
        "garbage": flame.ApplicationAttributes(command=sys.executable, arguments=["-c", garbage], start_timeout=1.0),
    }
    with connect(cluster) as connection:
        if application in programs:
            connection.register_application(application, programs[application])
        session = connection.create_session(application, common_data=common_data, max_instances=1)
        futures = [session.submit(ask(n=n)) for n in range(3)]
        for future in futures:
            with pytest.raises(flame.FlameError, match="retry limit") as caught:
                future.result(60)
            assert words in str(caught.value)
        session.refresh()
        codes = [event.code for event in session.events]
        assert codes.count(1001) == 3
        assert codes[-1] == 1002
        assert session.explain().reasons
        session.close()


def test_one_instance_never_serves_two_sessions(cluster: Cluster) -> None:
    with connect(cluster) as connection:
        pids: list[set[int]] = []
        for _ in range(3):
            with connection.create_session("trouble") as session:
                pids.append({json.loads(output or b"")["pid"] for output in session.map(echoes(50))})
        assert not pids[0] & pids[1]
        assert not pids[1] & pids[2]
        assert not pids[0] & pids[2]

"""Deadlines, pauses between attempts, keys and priorities of tasks, through the real daemons."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from concurrent.futures import CancelledError
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import flame
from blackbox.trouble import connect, until
from cluster import Cluster

SERVICE = Path(__file__).parent / "services" / "recorder.py"


def task(name: str, **more: Any) -> bytes:
    return json.dumps({"name": name, **more}).encode()


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    path = tmp_path / "notes"
    path.touch()
    return path


@pytest.fixture
def cluster(tmp_path: Path, notes: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path, nodes=2, capacity="cpu=1,mem=4g", settings={"recovery": {"node": {"drain": 3}}}) as running:
        with connect(running) as connection:
            connection.register_application(
                "recorder",
                flame.ApplicationAttributes(
                    command=sys.executable, arguments=[str(SERVICE)], environments={"NOTES": str(notes)}
                ),
            )
        yield running


@pytest.fixture
def connection(cluster: Cluster) -> Iterator[flame.Connection]:
    with connect(cluster) as made:
        yield made


def running(session: flame.Session, count: int = 1) -> None:
    until(lambda: (session.refresh(), session.running == count)[1], f"{count} tasks to run")


def most_at_once(notes: Path, prefix: str) -> int:
    """How many tasks whose name begins so were between begin and end at a time."""
    now = most = 0
    for line in notes.read_text().splitlines():
        what, name = line.split()
        if name.startswith(prefix):
            now += 1 if what == "begin" else -1
            most = max(most, now)
    return most


def begun(notes: Path, prefix: str = "") -> list[str]:
    lines = (line.split() for line in notes.read_text().splitlines())
    return [name for what, name in lines if what == "begin" and name.startswith(prefix)]


def test_a_task_past_its_deadline_fails_and_frees_its_executor(connection: flame.Connection, notes: Path) -> None:
    session = connection.create_session("recorder", max_instances=1)
    first = session.submit(task("endless", seconds=600), deadline=1.0)
    queued = session.submit(task("queued"), deadline=timedelta(seconds=1))
    with pytest.raises(flame.TaskFailedError, match=r"the deadline of 1 s is over: .* spent .* in 1 attempt"):
        first.result(30)
    with pytest.raises(flame.TaskFailedError, match=r"waited .* and never ran: the session's executors had other"):
        queued.result(30)
    assert session.invoke(task("next"), timeout=30) == b"next 1"
    assert begun(notes) == ["endless", "next"]
    listed = {item.id: item for item in session.list_tasks()}
    assert "the deadline of 1 s is over" in ((listed["1"].events or [])[-1].message or "")
    session.close()


def test_a_task_that_never_got_an_executor_says_why(connection: flame.Connection) -> None:
    session = connection.create_session("recorder", resreq="cpu=64,mem=1g")
    future = session.submit(task("huge"), deadline=1)
    with pytest.raises(flame.TaskFailedError, match=r"never ran: .*cpu"):
        future.result(30)
    session.close()


def test_a_deadline_passes_while_the_session_manager_is_away(cluster: Cluster, connection: flame.Connection) -> None:
    session = connection.create_session("recorder", max_instances=1)
    session.invoke(task("warm"))
    late = session.submit(task("late", seconds=600), deadline=2)
    later = session.submit(task("later"), deadline=1.5)  # over before the other one frees the executor
    in_time = session.submit(task("in_time"), deadline=60)
    until(lambda: (session.refresh(), session.running + session.pending == 3)[1], "all of them to be acknowledged")
    running(session)
    cluster.manager.kill()
    cluster.start_manager()
    for future, text in ((later, "the deadline of 1.5 s is over"), (late, "the deadline of 2 s is over")):
        with pytest.raises(flame.TaskFailedError, match=text):
            future.result(30)
    assert in_time.result(30) == b"in_time 1"
    session.close()


def test_a_failing_task_is_tried_again_after_a_pause_and_explains_it(connection: flame.Connection) -> None:
    session = connection.create_session("recorder", max_instances=1)
    assert session.invoke(task("t", fail_until=3), max_retries=2, retry_delay=0.05, timeout=30) == b"t 3"
    with pytest.raises(
        flame.TaskFailedError, match=r"attempt 3 of u is not good enough \(after 3 attempts\)"
    ) as caught:
        session.invoke(task("u", fail_until=9), max_retries=2, retry_delay=0.05, timeout=30)
    assert "ValueError" in caught.value.traceback
    shown = session.get_task("2")
    assert "(after 3 attempts)" in ((shown.events or [])[-1].message or "")
    resting = session.submit(task("v", fail_until=9), max_retries=1, retry_delay=3600)
    until(lambda: resting.task_id and "rests until" in session.explain(resting.task_id).summary, "it to fail once")
    explained = session.explain("3")
    assert explained.reasons[0].rule == "back-off"
    assert "before attempt 2; its last failure: attempt 1 of v" in explained.summary
    assert session.invoke(task("w"), timeout=30) == b"w 1"  # others pass by
    assert resting.cancel()
    session.close()


def test_tasks_of_a_key_run_one_at_a_time_in_order(connection: flame.Connection, notes: Path) -> None:
    session = connection.create_session("recorder", min_instances=2)
    a = [session.submit(task(f"a{n}", seconds=0.02, fail_until=2 * (n == 3)), key="a", max_retries=1) for n in range(9)]
    b = [session.submit(task(f"b{n}", seconds=0.02), key="b") for n in range(9)]
    assert [future.result(30) for future in b] == [f"b{n} 1".encode() for n in range(9)]
    assert [future.result(30) for future in a] == [f"a{n} {1 + (n == 3)}".encode() for n in range(9)]
    assert most_at_once(notes, "a") == most_at_once(notes, "b") == 1
    assert begun(notes, "a") == ["a0", "a1", "a2", "a3", "a3", "a4", "a5", "a6", "a7", "a8"]
    assert begun(notes, "b") == [f"b{n}" for n in range(9)]
    session.close()


def test_a_session_allows_more_of_a_key_and_the_task_says_what_it_waits_for(
    connection: flame.Connection, notes: Path
) -> None:
    session = connection.create_session("recorder", max_running_per_key=2, min_instances=2)
    held = [session.submit(task(f"k{n}", seconds=600), key="k") for n in range(3)]
    until(lambda: len(begun(notes)) == 2, "two tasks to run")
    explained = session.explain("3")
    assert explained.reasons[0].rule == "key"
    assert "of its key 'k', 2 at a time may run; those that do, or are retried: 1, 2" in explained.summary
    for future in reversed(held):
        assert future.cancel()
        with pytest.raises(CancelledError):
            future.result(30)
    assert len(begun(notes)) == 2
    session.close()


def test_a_key_is_kept_while_the_session_manager_and_a_node_are_killed(
    cluster: Cluster, connection: flame.Connection, notes: Path
) -> None:
    session = connection.create_session("recorder", min_instances=2)
    futures = [session.submit(task(f"k{n}", seconds=0.3), key="k") for n in range(8)]
    until(lambda: len(begun(notes)) >= 2, "the second task to run")
    cluster.manager.kill()
    cluster.start_manager()
    until(lambda: len(begun(notes)) >= 5, "the fifth task to run")
    cluster.nodes["node-1"].kill()
    cluster.start_node("node-1")
    assert [future.result(60).split()[0] for future in futures] == [f"k{n}".encode() for n in range(8)]
    order = begun(notes)
    assert sorted(order) == order  # what was on the killed node ran again before its successors
    if len(order) == 8:  # nothing was cut short, so that each begin has its end
        assert most_at_once(notes, "k") == 1
    session.close()


def test_a_higher_priority_goes_first_while_executors_are_busy(connection: flame.Connection, notes: Path) -> None:
    session = connection.create_session("recorder", max_instances=1)
    futures = [session.submit(task("first", seconds=1))]
    running(session)
    futures += [session.submit(task(f"low{n}")) for n in range(3)]
    futures += [session.submit(task("high"), priority=5)]
    for future in futures:
        future.result(30)
    assert begun(notes) == ["first", "high", "low0", "low1", "low2"]
    session.close()


def test_defaults_of_the_session_count_where_a_task_says_nothing(connection: flame.Connection) -> None:
    defaults = flame.TaskOptions(max_retries=1, retry_delay_ms=10)
    session = connection.create_session("recorder", task_defaults=defaults)
    assert session.invoke(task("t", fail_until=2), timeout=30) == b"t 2"
    with pytest.raises(flame.TaskFailedError):
        session.invoke(task("u", fail_until=2), max_retries=0, timeout=30)
    session.close()


def test_the_options_work_under_asyncio(cluster: Cluster, notes: Path) -> None:
    async def main() -> list[Any]:
        async with await flame.aio.connect(cluster.endpoint) as remote:
            session = await remote.create_session("recorder", max_running_per_key=1, min_instances=2)
            with pytest.raises(flame.TaskFailedError, match=r"the deadline of 0\.5 s is over"):
                await session.invoke(task("slow", seconds=600), deadline=0.5)
            inputs = [task(f"k{n}", seconds=0.01, fail_until=2) for n in range(5)]
            outputs = [
                out async for out in session.map(inputs, key="k", max_retries=1, retry_delay=timedelta(0, 0, 10_000))
            ]
            await session.close()
            return outputs

    assert asyncio.run(main()) == [f"k{n} 2".encode() for n in range(5)]
    assert most_at_once(notes, "k") == 1

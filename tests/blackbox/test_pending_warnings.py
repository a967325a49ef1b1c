"""What a user reads whose tasks wait, how a full quota slows a client down, and logs that outlive their manager."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import flame
from blackbox.trouble import ask, connect, echoes, instances, numbers, register, until
from cluster import PATIENCE, Cluster
from flame import aio
from flame.model.errors import ExhaustedError, TaskFailedError, TimedOutError


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path, settings={"scheduling": {"unsatisfiable": 3}}) as running:
        with connect(running) as connection:
            register(connection)
        yield running


def run(cluster: Cluster, program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A client's program as a user runs it: nothing is configured for its log."""
    command = [sys.executable, "-W", "error", "-c", program]
    return subprocess.run(
        command, env=cluster.environ(**environment), capture_output=True, text=True, timeout=PATIENCE, check=False
    )


WAITING = """
import flame

with flame.connect(PENDING) as connection:
    session = connection.create_session("trouble", session_id="needy", resreq="cpu=64,mem=1g")
    futures = [session.submit(b"{}") for _ in range(3)]
    try:
        futures[0].result()
    except flame.TaskFailedError as error:
        print(error)
    session.close()
"""


def test_a_program_reads_why_nothing_runs_then_its_tasks_fail_with_that(cluster: Cluster) -> None:
    done = run(cluster, WAITING.replace("PENDING", "pending_warning=0.5"))
    assert done.returncode == 0, done.stderr
    warning = re.compile(
        r"session needy: 3 tasks wait and none runs, for \d+ s \(since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d\S+\): "
        r"needs 64 cpu; the largest node has 2 \(rule capacity: cluster\); ask for less in resreq, or add a larger node"
    )
    first, *_, last = done.stderr.splitlines()
    assert warning.fullmatch(first)
    assert "needs 64 cpu; the largest node has 2; ask for less" in last
    assert "(code 1004)" in last
    assert "needs 64 cpu; the largest node has 2; ask for less in resreq" in done.stdout


def test_the_environment_silences_it(cluster: Cluster) -> None:
    done = run(cluster, WAITING.replace("PENDING", ""), FLAME_PENDING_WARNING="never")
    assert done.returncode == 0, done.stderr
    assert "none runs" not in done.stderr
    wrong = run(cluster, WAITING.replace("PENDING", ""), FLAME_PENDING_WARNING="sometimes")
    assert "FLAME_PENDING_WARNING is 'sometimes'" in wrong.stderr
    assert wrong.returncode == 1


def test_a_time_out_names_what_was_waited_for(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    with flame.connect(cluster.endpoint, pending_warning=0.05) as connection:
        session = connection.create_session("trouble", resreq="cpu=64,mem=1g")
        future = session.submit(ask())
        until(lambda: any("none runs" in text for text in caplog.messages), "the warning")
        with pytest.raises(TimedOutError, match=r"it waits: needs 64 cpu.*ask for less in resreq"):
            future.result(0.01)
        session.close()
        with pytest.raises(flame.TaskCancelledError):
            future.result(PATIENCE)


def test_nothing_is_said_of_a_session_that_works(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    with (
        flame.connect(cluster.endpoint, pending_warning=0.05) as connection,
        connection.create_session("trouble", max_instances=1) as session,
    ):
        futures = [session.submit(ask("sleep", seconds=0.4)) for _ in range(3)]
        assert all(future.result(PATIENCE) for future in futures)
    assert not [text for text in caplog.messages if "none runs" in text]


def test_a_full_quota_slows_a_map_down_and_is_told_to_a_future(cluster: Cluster) -> None:
    with connect(cluster) as connection:
        made = connection.create_tenant("small", quota=flame.TenantQuota(pending=20))
        assert (made.name, made.quota.pending) == ("small", 20)
        session = connection.create_session("trouble", tenant="small", session_id="one")
        assert session.tenant == "small"
        assert numbers(session.map(echoes(1000))) == list(range(1000))
        session.refresh()
        assert (session.succeed, session.pending) == (1000, 0)
        other = connection.create_session("trouble", tenant="small")
        busy = [session.submit(ask("sleep", seconds=1)) for _ in range(20)]
        until(lambda: all(future.task_id for future in busy), "all to be accepted")
        with pytest.raises(
            ExhaustedError, match=r"tenant small has 20 tasks .* quota of 20 pending; submit again"
        ) as no:
            other.submit(ask()).result(PATIENCE)
        assert no.value.retryable
        assert numbers(other.map(echoes(30))) == list(range(30))  # waits for those
        with pytest.raises(flame.InvalidStateError):
            connection.delete_tenant("small")
        for each in (session, other):
            each.close(force=True)
        connection.delete_tenant("small")
        assert [tenant.name for tenant in connection.list_tenants()] == ["default"]


def test_two_clients_share_a_quota_that_neither_fits_into(cluster: Cluster) -> None:
    async def client(number: int) -> list[int]:
        async with await aio.connect(cluster.endpoint) as connection:
            session = await connection.create_session("trouble", tenant="small", session_id=f"s{number}")
            return numbers([output async for output in session.map(echoes(500))])

    async def both() -> list[list[int]]:
        return await asyncio.gather(client(1), client(2))

    with connect(cluster) as connection:
        connection.create_tenant("small", quota=flame.TenantQuota(pending=10))
        assert asyncio.run(both()) == [list(range(500))] * 2


def test_tasks_that_no_node_can_run_fail_in_a_map(cluster: Cluster) -> None:
    with connect(cluster) as connection:
        session = connection.create_session("trouble", resreq="cpu=1,mem=1g,gpu=2")
        with pytest.raises(TaskFailedError, match=r"needs 2 GPUs; the largest node has 0; ask for less"):
            list(session.map(echoes(3)))
        assert session.explain().reasons == []


def test_a_drained_node_says_so_and_comes_back(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    with flame.connect(cluster.endpoint, pending_warning=0.05) as connection:
        node = connection.drain_node("node-1", grace=1)
        assert (node.cordoned, node.draining) == (True, True)
        session = connection.create_session("trouble")
        future = session.submit(ask(n=1))
        until(lambda: any("none runs" in text for text in caplog.messages), "the warning")
        session.refresh()
        assert session.pending_reason
        assert session.pending_since is not None
        assert session.wanted == 1
        assert not connection.uncordon_node("node-1").cordoned
        assert numbers([future.result(PATIENCE)]) == [1]
        session.close()


def test_logs_are_followed_through_the_death_of_the_session_manager(cluster: Cluster) -> None:
    with connect(cluster) as connection:
        session = connection.create_session("trouble", max_instances=1)
        session.invoke(ask("print", lines=3))
        (pid,) = instances(connection, session.id)
        seen: list[flame.LogChunk] = []

        def follow() -> None:
            for chunk in session.logs(follow=True, stream="stdout"):
                seen.append(chunk)  # noqa: PERF402 - another thread looks at it meanwhile

        reader = threading.Thread(target=follow)
        reader.start()
        until(lambda: seen, "what is there already")
        for lines in (5, 7):
            cluster.manager.kill()
            cluster.start_manager()
            session.invoke(ask("print", lines=lines))
        assert instances(connection, session.id) == [pid]
        session.close()
        reader.join(PATIENCE)
        assert not reader.is_alive()
        assert b"".join(chunk.data for chunk in seen) == (b"x" * 999 + b"\n") * 15
        assert len({chunk.executor_id for chunk in seen}) == 1

"""What must be survived: real daemons are killed, frozen and starved while clients wait for their results."""

from __future__ import annotations

import collections
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import flame
from blackbox.trouble import alive, ask, connect, echoes, instances, numbers, register, until
from cluster import Cluster
from flame.model.errors import ReadOnlyError


@pytest.fixture
def cluster(tmp_path: Path) -> collections.abc.Iterator[Cluster]:
    with Cluster(tmp_path) as running:
        yield running


def test_the_manager_is_killed_again_and_again_under_load(cluster: Cluster) -> None:
    count = 20_000
    with connect(cluster) as connection:
        register(connection)
        session = connection.create_session("trouble")
        seen: list[int] = []

        def consume() -> None:
            seen.extend(numbers(session.map(echoes(count))))

        client = threading.Thread(target=consume)
        client.start()
        for progress in (500, 6_000, 12_000):
            until(lambda progress=progress: len(seen) >= progress or not client.is_alive(), f"{progress} results")
            cluster.manager.kill()
            cluster.start_manager()
        client.join(60)
        assert not client.is_alive()
        assert seen == list(range(count))
        session.refresh()
        assert (session.succeed, session.failed, session.pending, session.running) == (count, 0, 0, 0)
        session.close()


def test_futures_of_every_kind_outlive_the_manager(cluster: Cluster) -> None:
    with connect(cluster) as connection:
        register(connection)
        session = connection.create_session("trouble")
        session.invoke(ask())
        running = [session.submit(ask("sleep", seconds=1.0, n=n)) for n in range(2)]
        queued = [session.submit(ask(n=n)) for n in range(100)]
        cluster.manager.kill()
        during = [session.submit(ask(n=n)) for n in range(100, 200)]
        cluster.start_manager()
        assert numbers(future.result(30) for future in running) == [0, 1]
        assert numbers(future.result(30) for future in queued + during) == list(range(200))
        session.close()


def test_a_task_survives_the_death_of_its_instance(cluster: Cluster) -> None:
    with connect(cluster) as connection:
        register(connection)
        session = connection.create_session("trouble", max_instances=1)
        first = json.loads(session.invoke(ask()) or b"")["pid"]
        future = session.submit(ask("sleep", seconds=0.5, n=7))
        until(lambda: (session.refresh(), session.running == 1)[1], "the task to run")
        os.kill(first, signal.SIGKILL)
        answer = json.loads(future.result(30) or b"")
        assert answer["echo"] == 7
        assert answer["pid"] != first
        session.refresh()
        assert any("lost its instance" in event.message for event in session.events)
        session.close()


def test_tasks_move_to_another_node_when_theirs_is_killed(tmp_path: Path) -> None:
    with Cluster(tmp_path, nodes=2, capacity="cpu=1,mem=4g") as cluster, connect(cluster) as connection:
        register(connection)
        session = connection.create_session("trouble", min_instances=2)
        until(lambda: len(instances(connection, session.id)) == 2, "an instance on each node")
        futures = [session.submit(ask("sleep", seconds=0.3, n=n)) for n in range(6)]
        pids = instances(connection, session.id)
        cluster.nodes["node-1"].kill()
        until(lambda: sum(alive(pid) for pid in pids) <= 1, "its instance to be gone too")
        cluster.start_node("node-1")
        assert numbers(future.result(60) for future in futures) == list(range(6))
        session.close()


def test_a_killed_client_disturbs_nobody_and_its_work_goes_on(cluster: Cluster) -> None:
    with connect(cluster) as connection:
        register(connection)
        mine = connection.create_session("trouble")
        program = (
            "import flame, json, sys\n"
            "c = flame.connect(sys.argv[1])\n"
            "s = c.create_session('trouble', session_id='orphan')\n"
            "s.invoke(json.dumps({'n': 0}).encode())\n"
            "fs = [s.submit(json.dumps({'do': 'sleep', 'seconds': 0.05, 'n': n}).encode()) for n in range(1, 40)]\n"
            "fs[0].result()\n"
            "print('submitted', flush=True)\n"
            "fs[-1].result()\n"
            "import threading; threading.Event().wait()\n"
        )
        client = subprocess.Popen([sys.executable, "-c", program, cluster.endpoint], stdout=subprocess.PIPE, text=True)
        assert client.stdout is not None
        assert client.stdout.readline() == "submitted\n"
        client.kill()
        client.wait()
        client.stdout.close()
        assert numbers(mine.map(echoes(100))) == list(range(100))
        orphan = connection.open_session("orphan")
        until(lambda: (orphan.refresh(), orphan.succeed == 40)[1], "the orphan's tasks to end")
        outputs = {int(task.id): task.output for task in orphan.list_tasks()}
        assert numbers(outputs[task_id] for task_id in sorted(outputs)) == list(range(40))
        for session in (mine, orphan):
            session.close()


@pytest.mark.parametrize("victim", ["manager", "node"])
def test_a_frozen_daemon_is_a_pause(cluster: Cluster, victim: str) -> None:
    with connect(cluster) as connection:
        register(connection)
        session = connection.create_session("trouble")
        session.invoke(ask())
        daemon = cluster.manager if victim == "manager" else cluster.nodes["node-1"]
        os.kill(daemon.pid, signal.SIGSTOP)
        futures = [session.submit(ask(n=n)) for n in range(500)]
        with pytest.raises(TimeoutError):
            futures[-1].result(1.0)
        os.kill(daemon.pid, signal.SIGCONT)
        assert numbers(future.result(30) for future in futures) == list(range(500))
        session.close()


@pytest.mark.timeout(180)
def test_a_manager_frozen_beyond_its_deadlines_is_left_and_found_again(cluster: Cluster) -> None:
    with connect(cluster) as connection:
        register(connection)
        session = connection.create_session("trouble", max_instances=1)
        before = json.loads(session.invoke(ask()) or b"")["pid"]
        node = cluster.nodes["node-1"]
        futures = [session.submit(ask("sleep", seconds=0.05, n=n)) for n in range(100)]
        until(lambda: any(future.done() for future in futures), "the first of them to end")
        os.kill(cluster.manager.pid, signal.SIGSTOP)
        node.wait_for("the link to the session manager ended")  # three heartbeats were silent
        os.kill(cluster.manager.pid, signal.SIGCONT)
        assert numbers(future.result(60) for future in futures) == list(range(100))
        session.refresh()
        assert (session.succeed, session.failed) == (101, 0)
        assert json.loads(session.invoke(ask()) or b"")["pid"] == before  # its instance went on meanwhile
        session.close()


@pytest.mark.timeout(180)
def test_the_work_of_a_node_frozen_beyond_its_deadline_moves_and_the_node_comes_back(tmp_path: Path) -> None:
    settings = {"recovery": {"node": {"drain": 1}}}
    with (
        Cluster(tmp_path, nodes=2, capacity="cpu=1,mem=4g", settings=settings) as cluster,
        connect(cluster) as connection,
    ):
        register(connection)
        session = connection.create_session("trouble", min_instances=2)
        until(lambda: len(instances(connection, session.id)) == 2, "an instance on each node")
        frozen = cluster.nodes["node-1"]
        futures = [session.submit(ask("sleep", seconds=0.5, n=n)) for n in range(4)]
        until(lambda: (session.refresh(), session.running == 2)[1], "both nodes to work")
        said = len(cluster.manager.lines)
        os.kill(frozen.pid, signal.SIGSTOP)
        # The frozen node's own task is waited for until three heartbeats were silent, then it runs elsewhere.
        assert numbers(future.result(60) for future in futures) == list(range(4))
        os.kill(frozen.pid, signal.SIGCONT)
        cluster.manager.wait_for("node_joined node=node-1 ", after=said)
        assert numbers(session.map(echoes(200))) == list(range(200))
        session.refresh()
        assert (session.succeed, session.failed) == (204, 0)
        until(lambda: len(instances(connection, session.id)) == 2, "an instance on each node again")
        session.close()


def test_a_frozen_instance_costs_its_task_a_timeout_and_nobody_else(cluster: Cluster) -> None:
    with connect(cluster) as connection:
        register(connection)
        session = connection.create_session("trouble", max_instances=1)
        frozen = json.loads(session.invoke(ask()) or b"")["pid"]
        os.kill(frozen, signal.SIGSTOP)
        victim = session.submit(ask(n=1), run_timeout=1.0)
        with pytest.raises(flame.FlameError, match="timed out"):
            victim.result(30)
        assert numbers([session.invoke(ask(n=2), timeout=30)]) == [2]
        until(lambda: not alive(frozen), "the frozen instance to be killed")
        session.close()


def test_a_full_disk_stops_acceptance_and_loses_nothing(cluster: Cluster) -> None:
    with connect(cluster) as connection:
        register(connection)
        session = connection.create_session("trouble")
        assert numbers(session.map(echoes(100))) == list(range(100))
        unlimited = resource.prlimit(cluster.manager.pid, resource.RLIMIT_FSIZE, (8192, -1))
        waiting = [session.submit(bytes(100_000) if n % 2 else ask(n=n)) for n in range(0, 200, 2)]
        until(lambda: connection.get_cluster().read_only, "the manager to say that it can't write")
        assert connection.get_cluster().read_only_reason
        with pytest.raises(ReadOnlyError):
            connection.create_session("trouble")
        assert sum(future.done() for future in waiting) < len(waiting)
        resource.prlimit(cluster.manager.pid, resource.RLIMIT_FSIZE, (-1, unlimited[1]))
        assert numbers(future.result(60) for future in waiting) == list(range(0, 200, 2))
        assert numbers(session.map(echoes(50))) == list(range(50))
        cluster.manager.kill()
        cluster.start_manager()
        session.refresh()
        assert (session.succeed, session.failed) == (250, 0)
        session.close()


def test_a_disk_that_fails_to_sync_stops_acceptance_and_loses_nothing(cluster: Cluster) -> None:
    cluster.manager.stop()
    cluster.start_manager(Path(__file__).parent / "services" / "failing_sync.py")
    with connect(cluster) as connection:
        register(connection)
        session = connection.create_session("trouble")
        assert numbers(session.map(echoes(100))) == list(range(100))
        os.kill(cluster.manager.pid, signal.SIGUSR1)
        waiting = [session.submit(ask(n=n)) for n in range(100)]
        until(lambda: connection.get_cluster().read_only, "the manager to say that it can't write")
        with pytest.raises(ReadOnlyError):
            connection.create_session("trouble")
        assert not any(future.done() for future in waiting)
        cluster.manager.kill()
        cluster.start_manager()
        assert numbers(future.result(60) for future in waiting) == list(range(100))
        session.refresh()
        assert (session.succeed, session.failed) == (200, 0)
        session.close()


def test_nothing_runs_after_the_daemons_ended(tmp_path: Path) -> None:
    with Cluster(tmp_path) as cluster, connect(cluster) as connection:
        register(connection)
        session = connection.create_session("trouble", min_instances=2)
        until(lambda: len(instances(connection, session.id)) == 2, "two instances")
        pids = instances(connection, session.id)
        assert cluster.nodes["node-1"].kill() == -signal.SIGKILL
        until(lambda: not any(alive(pid) for pid in pids), "the instances to be gone")
    assert cluster.manager.process.returncode == 0

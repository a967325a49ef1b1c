"""Gangs with real daemons: three nodes, members that talk with each other, and what happens when one is lost."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import flame
from blackbox.trouble import alive, connect, until
from cluster import Cluster

SERVICE = Path(__file__).parent / "services" / "ring.py"


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path, nodes=3) as running:
        yield running


def gang(connection: flame.Connection, **attributes: Any) -> flame.Session:
    """A session whose three instances are a gang, each on another node."""
    connection.register_application(
        "ring", flame.ApplicationAttributes(command=sys.executable, arguments=[str(SERVICE)], warm_instances=2)
    )
    return connection.create_session("ring", min_instances=3, gang=True, topology="spread", **attributes)


def members(connection: flame.Connection, session: flame.Session) -> dict[int, int]:
    """Process ids of the members that are bound, by rank."""
    executors = connection.list_executors(session.id)
    bound = [executor for executor in executors if executor.state is flame.ExecutorState.BOUND]
    return {executor.gang.rank: executor.pid for executor in bound if executor.gang is not None}


def check(answers: list[dict[str, Any]]) -> dict[tuple[str, ...], dict[int, int]]:
    """Each answer fits its gang; gives the members (process ids by rank) that answered, by the gang's addresses."""
    gangs: dict[tuple[str, ...], dict[int, int]] = {}
    for answer in answers:
        addresses, rank = tuple(answer["addresses"]), answer["rank"]
        assert (answer["size"], answer["sum"], len(set(addresses))) == (3, 6, 3)
        master, port = addresses[0].split(":")
        assert answer["env"] == {
            "RANK": str(rank),
            "WORLD_SIZE": "3",
            "LOCAL_RANK": "0",
            "MASTER_ADDR": master,
            "MASTER_PORT": port,
            "FLAME_GANG_RANK": str(rank),
            "FLAME_GANG_SIZE": "3",
            "FLAME_GANG_ADDRESSES": ",".join(addresses),
        }
        assert gangs.setdefault(addresses, {}).setdefault(rank, answer["pid"]) == answer["pid"]
    return gangs


def test_members_on_three_nodes_find_each_other_and_start_again_together(cluster: Cluster) -> None:
    with connect(cluster) as connection:
        session = gang(connection)
        first = [json.loads(output or b"") for output in session.map([b"0.02"] * 30)]
        ((addresses, answered),) = check(first).items()
        until(lambda: sorted(members(connection, session)) == [0, 1, 2], "all members")
        before = members(connection, session)
        assert answered.items() <= before.items()
        nodes = {executor.node for executor in connection.list_executors(session.id)}
        assert len(nodes) == 3
        futures = [session.submit(b"0.1") for _ in range(30)]
        until(lambda: any(future.done() for future in futures), "the first results")
        os.kill(before[1], signal.SIGKILL)
        gangs = check([json.loads(future.result(60) or b"") for future in futures])
        ((again, _),) = [item for item in gangs.items() if item[0] != addresses]
        assert not set(again) & set(addresses)
        until(lambda: sorted(members(connection, session)) == [0, 1, 2], "all members again")
        assert not set(members(connection, session).values()) & set(before.values())
        until(lambda: not any(map(alive, before.values())), "the end of the first ones")
        session.refresh()
        assert any("member 1 of the gang was lost" in event.message for event in session.events)
        assert (session.succeed, session.failed) == (60, 0)
        session.close()


def test_tasks_of_a_gang_that_shall_fail_say_which_member_was_lost(cluster: Cluster) -> None:
    with connect(cluster) as connection:
        session = gang(connection, on_member_loss="fail")
        session.invoke(b"0")
        until(lambda: len(members(connection, session)) == 3, "all members")
        futures = [session.submit(b"60") for _ in range(6)]
        until(lambda: (session.refresh(), session.running)[1] >= 3, "running tasks")
        os.kill(members(connection, session)[2], signal.SIGKILL)
        for future in futures:
            with pytest.raises(flame.TaskFailedError, match="member 2 of the gang was lost"):
                future.result(60)
        session.close()


def test_a_gang_outlives_its_session_manager(cluster: Cluster) -> None:
    with connect(cluster) as connection:
        session = gang(connection)
        before = check([json.loads(output or b"") for output in session.map([b"0.02"] * 9)])
        until(lambda: sorted(members(connection, session)) == [0, 1, 2], "all members")
        pids = members(connection, session)
        cluster.manager.kill()
        cluster.start_manager()
        after = check([json.loads(output or b"") for output in session.map([b"0.02"] * 9)])
        assert after.keys() == before.keys()
        assert members(connection, session) == pids
        session.close()

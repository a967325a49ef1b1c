"""Logs of a session that is followed while its executors come and go on several nodes."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import wait
from pathlib import Path

import pytest

import flame
from blackbox.trouble import ask, connect, instances, register, until
from cluster import Cluster


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path, nodes=2, capacity="cpu=1,mem=4g") as running:
        yield running


class Follower(threading.Thread):
    """Reads the stdout of a session until it ends."""

    def __init__(self, connection: flame.Connection, session_id: str) -> None:
        super().__init__(daemon=True)
        self.connection = connection
        self.session_id = session_id
        self.seen: dict[str, bytes] = {}
        self.start()

    def run(self) -> None:
        for chunk in self.connection.logs(self.session_id, stream="stdout", follow=True):
            self.seen[chunk.executor_id] = self.seen.get(chunk.executor_id, b"") + chunk.data


def lines(follower: Follower) -> list[int]:
    return sorted(data.count(b"\n") for data in follower.seen.values())


def test_a_session_is_followed_from_before_its_first_executor_to_its_end(cluster: Cluster) -> None:
    with connect(cluster) as connection:
        register(connection)
        session = connection.create_session("trouble", max_instances=2)
        follower = Follower(connection, session.id)
        json.loads(session.invoke(ask("print", lines=3)) or b"")
        until(lambda: lines(follower) == [3], "what the first instance said")
        # Two at once: the second executor starts on the other node, which was asked in vain before.
        slow = [session.submit(ask("sleep", seconds=2, n=n)) for n in range(2)]
        until(lambda: len(instances(connection, session.id)) == 2, "an instance on each node")
        said: list[flame.TaskFuture] = []
        while len(follower.seen) < 2:
            said.extend(session.submit(ask("print", lines=1)) for _ in range(2))
            said.extend(session.submit(ask("sleep", seconds=0.05)) for _ in range(2))
            wait(said)
        assert all(future.result(30) for future in slow)
        printed = 3 + len(said) // 2
        until(lambda: sum(lines(follower)) == printed, "what both said, each line once")
        assert follower.is_alive()
        session.close()
        follower.join(30)
        assert not follower.is_alive()
        assert sum(lines(follower)) == printed

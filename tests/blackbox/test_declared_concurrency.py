"""Services that say how many tasks they want when they know their session, through the real daemons."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import flame
from cluster import Cluster

SERVICE = Path(__file__).parent / "services" / "declaring.py"


@pytest.mark.parametrize("kind", ["threads", "coroutines"])
def test_as_many_tasks_run_at_once_as_the_service_wants(tmp_path: Path, kind: str) -> None:
    with Cluster(tmp_path / "cluster") as cluster, flame.connect(cluster.endpoint) as connection:
        connection.register_application("declaring", {"command": sys.executable, "arguments": [str(SERVICE)]})
        for count in (1, 5):
            with connection.create_session(
                "declaring", common_data=f"{count} {kind}".encode(), max_instances=1
            ) as session:
                wanted = [kind.encode()] * count
                assert [future.result(60) for future in [session.submit() for _ in wanted]] == wanted
            if kind == "coroutines":  # the one that was named is told of the end as well
                assert b"left\n" in b"".join(chunk.data for chunk in session.logs(stream="stdout", follow=True))

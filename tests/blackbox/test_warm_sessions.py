"""Instances started ahead, as clients and operators meet them: with real daemons."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import flame
from blackbox.trouble import alive, ask, connect, instances, until
from cluster import Cluster

SERVICE = Path(__file__).parent / "services" / "trouble.py"
WARM = {"executors": {"capacity": "cpu=4,mem=8g", "warm": {"max_instances": 2, "idle": 600}}}


def register(connection: flame.Connection, **attributes: object) -> None:
    connection.register_application(
        "trouble",
        flame.ApplicationAttributes(
            command=sys.executable,
            arguments=[str(SERVICE)],
            warm_instances=5,
            **attributes,  # type: ignore[arg-type]
        ),
    )


def processes(cluster: Cluster) -> set[int]:
    """All that run the service on this cluster's nodes, told by their environment."""
    found: set[int] = set()
    for folder in Path("/proc").iterdir():
        try:
            if (
                folder.name.isdecimal()
                and f"FLAME_ENDPOINT={cluster.endpoint}".encode() in (folder / "environ").read_bytes().split(b"\0")
                and str(SERVICE).encode() in (folder / "cmdline").read_bytes()
            ):
                found.add(int(folder.name))
        except OSError:
            continue
    return found


def test_sessions_get_instances_that_were_there_before_them(tmp_path: Path) -> None:
    with Cluster(tmp_path, settings=WARM) as cluster, connect(cluster) as connection:
        register(connection)
        used: set[int] = set()
        for _ in range(3):
            before = processes(cluster) - used
            with connection.create_session("trouble", max_instances=1) as session:
                pid = json.loads(session.invoke(ask(n=1)) or b"")["pid"]
                assert pid not in used
                assert not before or pid in before
                used.add(pid)
            # Five are wished for, the node has room for two.
            until(lambda: len(processes(cluster) - used) == 2, "two instances that wait")
        connection.update_application(
            "trouble",
            flame.ApplicationAttributes(
                command=sys.executable,
                arguments=[str(SERVICE)],
                environments={"NEW": "1"},
                warm_instances=1,
            ),
        )
        old = processes(cluster)
        with connection.create_session("trouble") as session:
            assert json.loads(session.invoke(ask()) or b"")["pid"] not in old
            until(lambda: not any(map(alive, old)), "the end of those of the old specification")


def test_no_instance_that_waits_outlives_its_node(tmp_path: Path) -> None:
    with Cluster(tmp_path, settings=WARM) as cluster, connect(cluster) as connection:
        register(connection)
        for end in ("stop", "kill"):
            with connection.create_session("trouble", max_instances=1) as session:
                session.invoke(ask())
                (bound,) = instances(connection, session.id)
                until(lambda bound=bound: len(processes(cluster) - {bound}) == 2, "two instances that wait")
                pids = processes(cluster)
                getattr(cluster.nodes["node-1"], end)()
                until(lambda pids=pids: not any(map(alive, pids)), "the end of all instances")
                cluster.start_node("node-1")

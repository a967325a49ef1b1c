"""A session that let its isolated instances reach the session manager, when it comes to one where that is too much."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import yaml

from blackbox.trouble import ask, connect, instances, register, until
from cluster import Cluster
from untrusted import require_sandboxes


def accept_strangers(cluster: Cluster, *, accepted: bool) -> None:
    """What the cluster's file says of them, from the next start on."""
    config = yaml.safe_load(cluster.config.read_text())
    config["cluster"]["insecure"] = accepted
    cluster.config.write_text(yaml.safe_dump(config))


def test_an_open_session_gets_no_executor_where_its_network_leads_to_an_open_door(tmp_path: Path) -> None:
    require_sandboxes(tmp_path / "probe")
    with Cluster(tmp_path / "cluster", settings={"insecure": True}) as cluster, connect(cluster) as connection:
        register(connection, isolation="process", network="host")
        session = connection.create_session("trouble", min_instances=1)
        assert session.invoke(ask(n=1)) is not None
        (instance,) = instances(connection, session.id)
        cluster.manager.stop()
        accept_strangers(cluster, accepted=False)
        cluster.start_manager()
        assert (
            f" WARNING flame.manager session {session.id} gets no executors: network host would undo isolation"
            in cluster.manager.log
        )
        until(lambda: not Path(f"/proc/{instance}").exists(), "the end of the instance that could reach it")
        waiting = session.submit(ask(n=2))
        explained = flmctl(cluster, "explain", "session", session.id)
        assert "network host would undo isolation process: it leads to the cluster" in explained
        assert "start the session manager as it was when the session was opened" in explained
        assert instances(connection, session.id) == []
        cluster.manager.stop()
        accept_strangers(cluster, accepted=True)
        cluster.start_manager()
        assert waiting.result() is not None
        session.close()


def flmctl(cluster: Cluster, *arguments: str) -> str:
    command = [str(Path(sys.executable).with_name("flmctl")), *arguments]
    return subprocess.run(command, env=cluster.environ(), capture_output=True, text=True, check=True).stdout

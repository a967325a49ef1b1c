"""flmctl's commands about tenants, nodes and explanations, against the real daemons."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest

import flame
from blackbox.trouble import connect, until
from cluster import PATIENCE, Cluster

BIN = Path(sys.executable).parent

# A task ends when somebody writes into the pipe that it names.
SERVICE = """
from pathlib import Path
import flame

class Waits(flame.FlameService):
    def on_task_invoke(self, context):
        return Path(context.input.decode()).read_bytes()

flame.run(Waits())
"""


class Shell:
    """Runs flmctl as a user of the cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    def start(self, *arguments: str, stderr: int = subprocess.PIPE, **variables: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [BIN / "flmctl", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=self.cluster.environ(TZ="UTC", **variables),
        )

    def run(self, *arguments: str, **variables: str) -> tuple[int, str, str]:
        """Exit code, standard output, standard error."""
        with self.start(*arguments, **variables) as process:
            out, err = process.communicate(timeout=PATIENCE)
        return process.returncode, out, err

    def good(self, *arguments: str) -> str:
        code, out, err = self.run(*arguments)
        assert (code, err) == (0, "")
        return out

    def json(self, *arguments: str) -> Any:
        return json.loads(self.good(*arguments, "-o", "json"))


class Terminal:
    """A terminal that a program writes to."""

    def __init__(self) -> None:
        self.ours, self.theirs = os.openpty()
        self._unread = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.ours)
        os.close(self.theirs)

    def wait_for(self, text: str) -> None:
        """Read on until this text came."""
        while text not in self._unread:
            assert select.select([self.ours], [], [], PATIENCE)[0], f"no {text!r} came: {self._unread!r}"
            self._unread += os.read(self.ours, 4096).decode()
        self._unread = self._unread.partition(text)[2]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path, nodes=2, capacity="cpu=2,mem=4g") as running:
        service = tmp_path / "waits.py"
        service.write_text(SERVICE)
        with connect(running) as connection:
            connection.register_application(
                "waits", flame.ApplicationAttributes(command=sys.executable, arguments=[str(service)])
            )
        yield running


@pytest.fixture
def shell(cluster: Cluster) -> Shell:
    return Shell(cluster)


def where(shell: Shell, session: str) -> list[str]:
    """The nodes of the session's bound executors."""
    executors = shell.json("list", "-e", "--of-session", session)
    return sorted(entry["node"] for entry in executors if entry["state"] == "Bound")


# --- tenants ---------------------------------------------------------------------------------------------------------


def test_tenants_are_made_changed_kept_and_deleted(cluster: Cluster, shell: Shell) -> None:
    limits = ["--quota", "cpu=3,sessions=1", "--guarantee", "cpu=1"]
    assert shell.good("tenant", "create", "research", "--weight", "3", *limits) == "Tenant <research> was created.\n"
    shell.good("tenant", "create", "vision", "--parent", "research", "--description", "models that see")
    shell.good("tenant", "update", "research", "--quota", "sessions=none,pending=100")
    cluster.manager.kill()
    cluster.start_manager()

    header, *rows = shell.good("tenant", "list").splitlines()
    assert header.split()[:5] == ["Name", "Weight", "Share", "Fair", "share"]
    assert [row[: len("   vision")].rstrip() for row in rows] == [" default", " research", "   vision"]
    found = shell.json("tenant", "view", "research")
    assert (found["weight"], found["guarantee"]["cpu"]) == (3.0, 1)
    assert found["quota"] == {"cpu": 3, "memory": None, "gpu": None, "sessions": None, "pending": 100}
    assert shell.json("view", "-T", "vision")["description"] == "models that see"

    code, _, error = shell.run("tenant", "create", "vision")
    assert (code, "vision" in error) == (5, True)
    code, _, error = shell.run("tenant", "update", "research", "--parent", "vision")
    assert (code, "vision" in error) == (2, True)
    code, _, error = shell.run("tenant", "delete", "research")
    assert (code, "vision" in error) == (5, True)
    shell.good("tenant", "delete", "vision")
    shell.good("tenant", "delete", "research")
    assert shell.good("tenant", "list", "-o", "name") == "default\n"
    assert shell.run("tenant", "view", "vision")[0] == 4


def test_a_tenant_uses_no_more_than_its_quota_and_explain_says_so(shell: Shell) -> None:
    shell.good("tenant", "create", "small", "--quota", "cpu=1")
    shell.good("create", "-a", "waits", "--id", "s", "--tenant", "small", "--min-instances", "3")
    until(lambda: len(where(shell, "s")) == 1, "the executor that the quota allows")
    (row,) = [row for row in shell.good("tenant", "list").splitlines() if row.startswith(" small")]
    assert row.split()[-2:] == ["1", "2"]
    assert "small" in shell.good("top", "--once")

    said = shell.good("explain", "session", "s")
    assert "tenant small is at its quota of 1 cpu" in said
    assert "rule:        quota, of small" in said
    assert "what helps:" in said
    (entry,) = shell.json("explain")["sessions"]
    assert (entry["id"], entry["tenant"], entry["executors"], entry["wanted"]) == ("s", "small", 1, 3)
    assert "quota" in {reason["rule"] for reason in entry["reasons"]}

    shell.good("tenant", "update", "small", "--quota", "none")
    until(lambda: len(where(shell, "s")) == 3, "the other executors")
    assert shell.json("explain")["sessions"] == []


# --- nodes -----------------------------------------------------------------------------------------------------------


def test_a_cordoned_node_gets_no_executors_until_it_is_uncordoned(shell: Shell) -> None:
    assert shell.good("node", "cordon", "node-1") == "Node <node-1> is cordoned.\n"
    shell.good("create", "-a", "waits", "--id", "s", "--min-instances", "4")
    until(lambda: where(shell, "s") == ["node-2", "node-2"], "executors on the other node")
    states = {entry["name"]: (entry["cordoned"], entry["executors"]) for entry in shell.json("node", "list")}
    assert states == {"node-1": (True, 0), "node-2": (False, 2)}
    assert "Ready,cordoned" in shell.good("node", "view", "node-1")
    assert "node-1  Ready,cordoned" in shell.good("explain")
    assert shell.good("node", "uncordon", "node-1") == "Node <node-1> takes executors again.\n"
    until(lambda: where(shell, "s") == ["node-1", "node-1", "node-2", "node-2"], "executors on both nodes")
    assert shell.run("node", "cordon", "node-7")[0] == 4


def test_drain_waits_over_a_restart_of_the_session_manager(cluster: Cluster, shell: Shell, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    node = "node-1"
    shell.good("node", "cordon", "node-2")  # so that nobody takes the task over
    with connect(cluster) as connection:
        session = connection.create_session("waits", max_instances=1)
        future = session.submit(str(pipe).encode())
        with pipe.open("wb") as writer:  # opens when the task reads
            assert where(shell, session.id) == [node]
            code, out, error = shell.run("node", "drain", node, "--grace", "600", "--timeout", "0.2")
            assert (code, out) == (7, "")
            assert error.startswith(f"error: node {node} is not drained after 0.2 s: 1 executor left\n")
            with Terminal() as terminal:
                drain = shell.start("node", "drain", node, "--grace", "600", stderr=terminal.theirs)
                terminal.wait_for(f"Node <{node}>: 1 executor left")
                cluster.manager.kill()
                terminal.wait_for("the session manager is away")
                cluster.start_manager()
                cluster.manager.wait_for(f"node_joined node={node} ")
                terminal.wait_for("1 executor left")
                writer.write(b"done")
                writer.close()
                assert future.result(PATIENCE) == b"done"
                out, _ = drain.communicate(timeout=PATIENCE)
                assert (drain.returncode, out) == (0, f"Node <{node}> is drained.\n")
        session.close()
    assert "Ready,drained" in shell.good("node", "list")


# --- explain and completion ------------------------------------------------------------------------------------------


def test_explain_names_what_no_node_has(cluster: Cluster, shell: Shell) -> None:
    with connect(cluster) as connection:
        session = connection.create_session("waits", resreq="cpu=64,mem=1g")
        session.submit(b"never read")
        until(lambda: shell.json("view", "-s", session.id)["wanted"] == 1, "the task to be counted")
        for arguments in (["session", session.id], ["-s", session.id], ["task", f"{session.id}/1"]):
            said = shell.good("explain", *arguments)
            assert "needs 64 cpu; the largest node has 2" in said
            assert "rule:        capacity" in said
            assert "since:" in said
        assert session.id in shell.good("explain")
        assert "needs 64 cpu" in shell.good("list", "-s", "-o", "wide")
        assert shell.json("view", "-s", session.id)["pending_since"] is not None
        assert shell.run("explain", "task", f"{session.id}/9")[0] == 4
        session.close()


def test_the_shell_completes_names_of_the_cluster(shell: Shell) -> None:
    shell.good("tenant", "create", "vision")
    words = {"_FLMCTL_COMPLETE": "bash_complete", "COMP_CWORD": "3"}
    nodes = (0, "plain,node-1\nplain,node-2\n", "")
    assert shell.run(COMP_WORDS="flmctl node drain no", **words) == nodes
    assert shell.run(COMP_WORDS="flmctl tenant view v", **words) == (0, "plain,vision\n", "")


def test_completion_without_a_cluster_is_silent_and_starts_none(shell: Shell, tmp_path: Path) -> None:
    words = {"_FLMCTL_COMPLETE": "bash_complete", "COMP_CWORD": "3", "COMP_WORDS": "flmctl node drain no"}
    nowhere = {"FLAME_ENDPOINT": "", "XDG_RUNTIME_DIR": str(tmp_path / "run"), "XDG_STATE_HOME": str(tmp_path / "st")}
    code, out, error = shell.run(**words, **nowhere)
    assert (code, out.strip(), error) == (0, "", "")
    assert not (tmp_path / "st").exists()

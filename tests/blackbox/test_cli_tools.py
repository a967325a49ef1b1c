"""The command line tools as processes, with a real local cluster."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import yaml

from flame.config import TlsConfig
from flame.security import make_certificates

BIN = Path(sys.executable).parent
LIMIT = 60


NOISY = """
import sys
import flame

class Noisy(flame.FlameService):
    def on_session_enter(self, context):
        self.session = context.session_id
        print("entered", self.session, flush=True)
        print("careful", file=sys.stderr, flush=True)

    def on_task_invoke(self, context):
        return None

    def on_session_leave(self):
        print("left", self.session, flush=True)

flame.run(Noisy())
"""


def tls_text(tls: TlsConfig) -> str:
    """As YAML."""
    return f"{{cert_file: {tls.cert_file}, key_file: {tls.key_file}, ca_file: {tls.ca_file}}}"


class Shell:
    """Runs the tools with a home of their own, so that they meet no cluster or settings of the machine's user."""

    def __init__(self, home: Path) -> None:
        self.home = home
        kept = {name: value for name, value in os.environ.items() if not name.startswith("FLAME_")}
        self.environment: dict[str, str] = {
            **kept,
            "HOME": str(home),
            "XDG_RUNTIME_DIR": str(home / "run"),
            "XDG_STATE_HOME": str(home / "state"),
            "TMPDIR": str(home / "tmp"),
            "TZ": "UTC",
        }
        for name in ("run", "state", "tmp"):
            (home / name).mkdir()

    def start(self, tool: str, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        """Start a tool and leave it running."""
        return subprocess.Popen(
            [BIN / tool, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**self.environment, **variables},
        )

    def run(self, tool: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a tool to its end."""
        with self.start(tool, *arguments, **variables) as process:
            try:
                out, err = process.communicate(timeout=LIMIT)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def good(self, tool: str, *arguments: str, **variables: str) -> str:
        """Run a tool that has to succeed: what it printed."""
        done = self.run(tool, *arguments, **variables)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def json(self, tool: str, *arguments: str) -> list[Mapping[str, object]]:
        """Run a tool that prints a JSON list."""
        answer = json.loads(self.good(tool, *arguments, "-o", "json"))
        assert isinstance(answer, list)
        return answer


@contextlib.contextmanager
def private_shell() -> Iterator[Shell]:
    # A socket's path is short; the folders of pytest are not.
    home = Path(tempfile.mkdtemp(prefix="flame", dir="/tmp"))
    shell = Shell(home)
    try:
        yield shell
    finally:
        shell.run("flmadm", "down", "--all", "--quiet")
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def shell() -> Iterator[Shell]:
    """A shell where no cluster runs yet."""
    with private_shell() as made:
        yield made


@pytest.fixture(scope="module")
def running() -> Iterator[Shell]:
    """A shell with the default cluster, shared by tests that do not stop it."""
    with private_shell() as made:
        made.good("flmadm", "up", "--detach", "--executors", "2")
        yield made


def wait_for_end(endpoint: str) -> None:
    """Until nobody has the socket open any more: the connection ends with its server."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(LIMIT)
        with contextlib.suppress(ConnectionError, FileNotFoundError):
            probe.connect(endpoint.removeprefix("unix:"))
            while probe.recv(4096):
                pass


def free_port() -> int:
    """A port such that the three above it are free as well."""
    while True:
        with contextlib.ExitStack() as stack:
            first = stack.enter_context(socket.socket())
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            try:
                for number in (port + 1, port + 2, port + 3):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", number))
            except OSError:
                continue
            return port


# --- flmping ----------------------------------------------------------------------------------------------------


def test_flmping_prints_the_documented_layout(running: Shell) -> None:
    lines = running.good("flmping", "-t", "3").splitlines()
    session = re.fullmatch(
        r"Session <(flmping-\w{6})> was created in <[\d.]+ m?s>, start to run <3> tasks in the session:", lines[0]
    )
    assert session is not None
    assert lines[1] == ""
    assert lines[2] == " Session         Task  State    Output"
    for number, line in enumerate(lines[3:6], 1):
        row = rf" {session[1]}  {number}     Succeed  Completed on <.+> in <0> milliseconds with <0> memory"
        assert re.fullmatch(row, line)
    assert lines[6] == ""
    assert re.fullmatch(r"<3> tasks was completed in <[\d.]+ m?s>\.", lines[7])
    assert len(lines) == 8


def test_flmping_measures(running: Shell) -> None:
    lines = running.good("flmping", "-p", "-t", "2000").splitlines()
    assert "start to run <2,000> tasks" in lines[0]
    rule = "=" * 60
    assert lines[1:5] == ["", rule, "BENCHMARK RESULTS", rule]
    patterns = [
        r"Duration:        \d+\.\d\ds",
        r"Succeeded:       2000/2000",
        r"Failed:          0",
        r"Throughput:      \d+\.\d\d tasks/sec",
        r"Latency:         p50 [\d.]+ (us|ms|s), p99 [\d.]+ (us|ms|s)",
        rule,
    ]
    assert len(lines[5:]) == len(patterns)
    for pattern, line in zip(patterns, lines[5:], strict=True):
        assert re.fullmatch(pattern, line)


def test_flmping_for_programs(running: Shell) -> None:
    found = json.loads(running.good("flmping", "-t", "3", "-o", "json"))
    assert found["session"].startswith("flmping-")
    assert (found["succeeded"], found["failed"]) == (3, 0)
    assert found["tasks_per_second"] == pytest.approx(3 / found["seconds"])
    assert [(task["id"], task["state"]) for task in found["tasks"]] == [(1, "Succeed"), (2, "Succeed"), (3, "Succeed")]
    assert 0 < found["latency_ms"]["p50"] <= found["latency_ms"]["p99"] <= found["seconds"] * 1e3
    failed = running.run("flmping", "-p", "-t", "1", "-m", str(2**60), "-o", "yaml")
    assert failed.returncode == 1
    document = yaml.safe_load(failed.stdout)
    assert (document["succeeded"], document["failed"], "tasks" in document) == (0, 1, False)


def test_flmping_passes_on_what_tasks_should_do(running: Shell) -> None:
    out = running.good("flmping", "-t", "2", "-d", "20", "-m", "1m", "-P", "4", "-r", "cpu=1,mem=64m", "-c", "x")
    assert out.count("in <20> milliseconds with <1Mi> memory") == 2
    newest = running.json("flmctl", "list", "-s")[-1]
    assert (newest["priority"], newest["resreq"]) == (4, {"cpu": 1, "memory": 64 * 1024**2, "gpu": 0})
    assert newest["state"] == "Closed"


def test_a_failed_task_shows_its_error_and_the_exit_code_is_1(running: Shell) -> None:
    done = running.run("flmping", "-t", "2", "-m", str(2**60))
    assert done.returncode == 1
    assert done.stdout.count("  Failed  code 15: MemoryError\n") == 2


def test_flmping_gives_up_in_time(running: Shell) -> None:
    done = running.run("flmping", "-t", "2", "-d", "60000", "--timeout", "0.5")
    assert done.returncode == 7
    assert "error: 2 of 2 tasks were not done within 0.5 s" in done.stderr


def test_an_interrupted_flmping_closes_its_session(running: Shell) -> None:
    with running.start("flmping", "-t", "2", "-d", "600000") as ping:
        assert ping.stdout is not None
        found = re.search(r"<(flmping-\w{6})>", ping.stdout.readline())
        assert found is not None
        ping.send_signal(signal.SIGINT)
        assert ping.wait(LIMIT) == 130
        assert ping.stderr is not None
        assert "Traceback" not in ping.stderr.read()
    session = json.loads(running.good("flmctl", "view", "-s", found[1], "-o", "json"))
    assert (session["state"], session["running"], session["pending"]) == ("Closed", 0, 0)


def test_flmping_starts_a_cluster_that_ends_with_it(shell: Shell) -> None:
    assert "<1> tasks was completed" in shell.good("flmping", "-t", "1")
    assert shell.run("flmadm", "status").returncode == 4
    assert list((shell.home / "run" / "flame").iterdir()) == []
    assert list((shell.home / "tmp").iterdir()) == []


# --- flmctl ----------------------------------------------------------------------------------------------------


def test_the_life_of_a_session(running: Shell) -> None:
    assert running.good("flmctl", "create", "-a", "flmping", "--id", "life", "--label", "who=me") == (
        "Session <life> was created.\n"
    )
    assert running.good("flmctl", "list", "-s", "--label", "who=me", "-o", "name") == "life\n"
    assert "State:            Open" in running.good("flmctl", "view", "-s", "life")
    again = running.run("flmctl", "create", "-a", "flmping", "--id", "life")
    assert again.returncode == 5
    assert again.stderr.startswith("error: ")
    assert running.good("flmctl", "close", "-s", "life") == "Session <life> was closed.\n"
    assert running.good("flmctl", "delete", "-s", "life") == "Session <life> was deleted.\n"
    assert running.run("flmctl", "view", "-s", "life").returncode == 4


def test_sessions_and_tasks_of_a_run_can_be_listed(running: Shell) -> None:
    out = running.good("flmping", "-t", "5")
    found = re.search(r"<(flmping-\w{6})>", out)
    assert found is not None
    header, *rows = running.good("flmctl", "list", "-s").splitlines()
    titles = ["ID", "State", "App", "Slots", "Priority", "Pending", "Running", "Succeed", "Failed", "Created"]
    assert header.split() == titles
    row = next(row.split() for row in rows if row.split()[0] == found[1])
    assert row[1:9] == ["Closed", "flmping", "1", "0", "0", "0", "5", "0"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", row[9])
    tasks = running.json("flmctl", "list", "-t", found[1])
    assert [(task["id"], task["state"]) for task in tasks] == [(number, "Succeed") for number in range(1, 6)]
    task = json.loads(running.good("flmctl", "view", "-s", found[1], "-t", "3", "-o", "json"))
    assert json.loads(task["input"]["text"]) == {"duration": None, "memory": None}
    assert "Completed on" in task["output"]["text"]
    assert [event["code"] for event in task["events"]] == [0, 1, 2]


def test_the_other_lists(running: Shell) -> None:
    assert "flmping" in [entry["metadata"]["name"] for entry in running.json("flmctl", "list", "-a")]  # type: ignore[index]
    (node,) = running.json("flmctl", "list", "-n")
    assert (node["state"], node["capacity"]["cpu"]) == ("Ready", 2)  # type: ignore[index]
    assert "Name:" in running.good("flmctl", "view", "-n", str(node["name"]))
    assert running.good("flmctl", "list", "-e").split()[:4] == ["ID", "State", "Session", "Node"]


def test_applications_from_a_file(running: Shell) -> None:
    file = running.home / "app.yaml"
    file.write_text("metadata: {name: echo-1}\nspec: {command: /bin/cat, labels: [a, b]}\n")
    assert running.good("flmctl", "register", "-f", str(file)) == "Application <echo-1> was registered.\n"
    assert running.run("flmctl", "register", "-f", str(file)).returncode != 0
    file.write_text(running.good("flmctl", "view", "-a", "echo-1", "-o", "yaml").replace("/bin/cat", "/bin/true"))
    assert running.good("flmctl", "update", "-f", str(file)) == "Application <echo-1> was updated.\n"
    assert "/bin/true" in running.good("flmctl", "list", "-a")
    assert running.good("flmctl", "unregister", "-a", "echo-1") == "Application <echo-1> was unregistered.\n"
    assert running.run("flmctl", "view", "-a", "echo-1").returncode == 4


def test_a_waiting_session_is_explained_and_its_tasks_cancelled(running: Shell) -> None:
    running.good("flmctl", "create", "-a", "flmping", "--id", "big", "-r", "cpu=1000,mem=1g")
    with running.start("flmping", "-t", "1", "-r", "cpu=1000,mem=1g") as ping:
        assert ping.stdout is not None
        found = re.search(r"<(flmping-\w{6})>", ping.stdout.readline())
        assert found is not None
        with running.start("flmctl", "watch", "-s", found[1], "-o", "json") as watch:
            assert watch.stdout is not None
            for line in watch.stdout:
                if json.loads(line)["session"]["pending"] == 1:
                    break
            assert "cpu" in running.good("flmctl", "explain", "-s", found[1])
            assert running.good("flmctl", "cancel", "-s", found[1], "--all") == "1 of 1 tasks were cancelled.\n"
            states = [json.loads(line)["session"]["state"] for line in watch.stdout]
            assert states[-1] == "Closed"
            assert watch.wait(LIMIT) == 0
        ping.communicate(timeout=LIMIT)
        assert ping.returncode == 1
    running.good("flmctl", "close", "-s", "big")


def test_top_shows_nodes_and_open_sessions(running: Shell) -> None:
    running.good("flmctl", "create", "-a", "flmping", "--id", "shown")
    picture = running.good("flmctl", "top", "--once")
    assert "nodes 1/1 ready" in picture
    assert " shown " in picture
    running.good("flmctl", "close", "-s", "shown")


def test_logs_are_followed_until_the_session_ends_and_kept(running: Shell) -> None:
    program = running.home / "noisy.py"
    program.write_text(NOISY)
    file = running.home / "noisy.yaml"
    file.write_text(f"metadata: {{name: noisy}}\nspec: {{command: {sys.executable}, arguments: [{program}]}}\n")
    running.good("flmctl", "register", "-f", str(file))
    running.good("flmctl", "create", "-a", "noisy", "--id", "noise", "--min-instances", "1")
    with running.start("flmctl", "logs", "-s", "noise", "-f", "--stream", "stdout") as follower:
        assert follower.stdout is not None
        assert re.fullmatch(r"==> \S+ stdout <==\n", follower.stdout.readline())
        assert follower.stdout.readline() == "entered noise\n"
        running.good("flmctl", "close", "-s", "noise")
        assert follower.stdout.readline() == "left noise\n"
        assert follower.wait(LIMIT) == 0
    kept = running.good("flmctl", "logs", "-s", "noise")
    assert "entered noise\nleft noise\n" in kept
    assert "careful\n" in kept
    assert "entered" not in running.good("flmctl", "logs", "-s", "noise", "--stream", "stdout", "--tail", "5")
    assert running.run("flmctl", "logs", "-s", "nowhere").returncode == 4


def test_a_cluster_that_can_not_be_reached(running: Shell) -> None:
    done = running.run("flmctl", "list", "-s", FLAME_ENDPOINT=f"unix:{running.home}/nobody")
    assert done.returncode == 7
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) <= 2


# --- flmadm ----------------------------------------------------------------------------------------------------


def test_status_says_what_runs(running: Shell) -> None:
    (found,) = running.json("flmadm", "status")
    assert (found["name"], found["state"], found["nodes"]) == ("default", "Running", 1)
    assert str(found["storage"]).startswith(f"sqlite://{running.home}/state/flame/default/")
    assert running.good("flmadm", "status").split()[:2] == ["Name", "State"]


def test_a_cluster_of_another_name_is_used_when_it_is_named(shell: Shell) -> None:
    out = shell.good("flmadm", "up", "--detach", "--name", "mine")
    assert "FLAME_CLUSTER=mine" in out
    other = shell.run("flmctl", "list", "-s")
    assert "under other names run: mine" in other.stderr
    shell.good("flmctl", "create", "-a", "flmping", "--id", "here", FLAME_CLUSTER="mine")
    assert shell.good("flmctl", "list", "-s", "-o", "name", FLAME_CLUSTER="mine") == "here\n"
    assert "FLAME_CLUSTER" not in shell.good("flmadm", "status", FLAME_CLUSTER="mine")
    shell.good("flmadm", "down", "--name", "mine")


def test_a_second_cluster_of_the_same_name_is_refused(running: Shell) -> None:
    done = running.run("flmadm", "up", "--detach")
    assert done.returncode == 5
    assert "is running already" in done.stderr


def test_sessions_survive_down_and_up(shell: Shell) -> None:
    shell.good("flmadm", "up", "--detach")
    shell.good("flmctl", "create", "-a", "flmping", "--id", "kept")
    assert shell.good("flmadm", "down") == "Cluster <default> was stopped.\n"
    assert shell.run("flmadm", "down").returncode == 4
    shell.good("flmadm", "up", "--detach")
    assert shell.good("flmctl", "list", "-s", "-o", "name") == "kept\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_cluster_in_the_foreground_ends_on_a_signal(shell: Shell, number: signal.Signals) -> None:
    with shell.start("flmadm", "up", "--temporary") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "Cluster <default> is running.\n"
        process.send_signal(number)
        process.communicate(timeout=LIMIT)
        assert process.returncode == 0
    assert shell.run("flmadm", "status").returncode == 4


def test_a_failed_start_shows_why_and_the_log(shell: Shell) -> None:
    done = shell.run("flmadm", "up", "--detach", "--storage", "sqlite:///proc/nowhere/flame.db")
    assert done.returncode not in (0, 2)
    assert done.stderr.startswith("error: ")
    assert "daemon.log" in done.stderr
    assert shell.run("flmadm", "status").returncode == 4


def test_listening_beyond_the_machine_needs_tls_or_insistence(shell: Shell) -> None:
    done = shell.run("flmadm", "up", "--detach", "--listen", f"0.0.0.0:{free_port()}")
    assert done.returncode != 0
    assert "insecure" in done.stderr


def test_other_clients_can_connect_where_it_listens(shell: Shell) -> None:
    port = free_port()
    out = shell.good("flmadm", "up", "--detach", "--temporary", "--listen", f"127.0.0.1:{port}")
    assert f"http://127.0.0.1:{port}" in out
    endpoint = f"http://127.0.0.1:{port}"
    assert "flmping" in shell.good("flmctl", "--endpoint", endpoint, "list", "-a")
    assert "<2> tasks was completed" in shell.good("flmping", "-t", "2", FLAME_ENDPOINT=endpoint)


def test_with_tls_a_certificate_opens_the_door(shell: Shell) -> None:
    certificates = make_certificates(shell.home / "certs")
    port = free_port()
    endpoint = f"https://127.0.0.1:{port}"
    settings = f"{{name: c, endpoint: '{endpoint}', storage: none, tls: {tls_text(certificates.server)}}}"
    (shell.home / "cluster.yaml").write_text(f"cluster: {settings}\n")
    config = str(shell.home / "cluster.yaml")
    assert "valid" in shell.good("flmadm", "check", config)
    out = shell.good("flmadm", "up", "--detach", "--temporary", "--listen", f"127.0.0.1:{port}", "--config", config)
    assert endpoint in out
    client = shell.home / "flame.yaml"
    client.write_text(
        "current-context: me\ncontexts:\n"
        f"- {{name: me, cluster: {{endpoint: '{endpoint}', tls: {tls_text(certificates.client)}}}}}\n"
        f"- {{name: stranger, cluster: {{endpoint: '{endpoint}', tls: {{ca_file: certs/ca.pem}}}}}}\n"
    )
    assert "flmping" in shell.good("flmctl", "--config", str(client), "list", "-a")
    assert "<1> tasks was completed" in shell.good("flmping", "-t", "1", "--config", str(client))
    refused = shell.run("flmctl", "--config", str(client), "--context", "stranger", "list", "-a")
    assert refused.returncode == 6
    assert refused.stderr.startswith("error: ")


def test_a_cluster_ends_when_its_starter_is_killed(shell: Shell) -> None:
    program = "from flame.local import Cluster\nprint(Cluster().start().endpoint, flush=True)\ninput()"
    with subprocess.Popen(
        [sys.executable, "-c", program], env=shell.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as starter:
        assert starter.stdout is not None
        assert select.select([starter.stdout], [], [], LIMIT)[0]
        endpoint = starter.stdout.readline().strip()
        starter.kill()
    wait_for_end(endpoint)
    assert shell.run("flmadm", "status").returncode == 4


def test_named_clusters_live_beside_each_other(shell: Shell) -> None:
    shell.good("flmadm", "up", "--detach", "--temporary", FLAME_CLUSTER="one")
    shell.good("flmadm", "up", "--detach", "--temporary", "--name", "two")
    assert [entry["name"] for entry in shell.json("flmadm", "status")] == ["one", "two"]
    shell.good("flmctl", "create", "-a", "flmping", "--id", "x", FLAME_CLUSTER="two")
    assert shell.good("flmctl", "list", "-s", "-o", "name", FLAME_CLUSTER="one") == ""
    done = shell.run("flmctl", "list", "-s", FLAME_CLUSTER="three")
    assert done.returncode == 4
    assert "no local cluster 'three' is running" in done.stderr

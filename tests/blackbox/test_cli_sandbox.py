"""flmctl sandbox as its users run it, with the real daemons."""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

import flame
from blackbox.trouble import until
from cluster import PATIENCE, Cluster
from sandboxes import cluster_for_sandboxes

FLMCTL = str(Path(sys.executable).parent / "flmctl")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster_for_sandboxes(tmp_path_factory.mktemp("sandboxes")) as cluster:
        yield cluster


def call(cluster: Cluster, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [FLMCTL, "sandbox", *arguments],
        env=cluster.environ(),
        cwd=cluster.folder,
        input=stdin,
        capture_output=True,
        timeout=60,
        check=False,
    )


def good(cluster: Cluster, *arguments: str, stdin: bytes = b"") -> str:
    done = call(cluster, *arguments, stdin=stdin)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode()


def start(cluster: Cluster, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen([FLMCTL, "sandbox", *arguments], env=cluster.environ(), stdout=subprocess.PIPE, **options)


@pytest.fixture(scope="module")
def sandbox(cluster: Cluster) -> Iterator[str]:
    made = good(cluster, "create", "--label", "team=blue", "-e", "COLOUR=red", "-o", "name").strip()
    yield made
    good(cluster, "close", made)


# --- its life ---------------------------------------------------------------------------------------------------------


def test_a_sandbox_is_created_listed_and_closed(cluster: Cluster) -> None:
    with flame.connect(cluster.endpoint) as connection, connection.create_session("flmexec"):
        said = good(cluster, "create", "--limit", "memory=128Mi", "--idle-timeout", "90")
        match = re.fullmatch(r"Sandbox <(sandbox-\w{12})> was created\.\n", said)
        assert match is not None
        made = match[1]
        (found,) = [each for each in json.loads(good(cluster, "list", "-o", "json")) if each["id"] == made]
        assert {
            "state": "Running",
            "isolation": "process",
            "network": "none",
            "limits": {"memory": 128 * 1024**2},
            "idle_timeout": 90,
        }.items() <= found.items()
        names = good(cluster, "list", "-o", "name").split()
        assert made in names
        assert all(name.startswith("sandbox-") for name in names)  # the other session is none
    assert good(cluster, "close", made) == f"Sandbox <{made}> was closed.\n"
    assert made not in good(cluster, "list")
    assert re.search(rf"{made} +Closed", good(cluster, "list", "--all"))
    done = call(cluster, "exec", made, "true")
    assert (done.returncode, done.stderr) == (
        5,
        f"error: sandbox {made} was closed\nhint: create another one\n".encode(),
    )


def test_lists_are_chosen_by_label(cluster: Cluster, sandbox: str) -> None:
    assert good(cluster, "list", "--label", "team=blue", "-o", "name") == f"{sandbox}\n"
    assert good(cluster, "list", "--label", "team=red", "-o", "name") == ""


def test_a_paused_sandbox_says_so_until_it_goes_on(cluster: Cluster, sandbox: str) -> None:
    assert good(cluster, "pause", sandbox) == f"Sandbox <{sandbox}> is paused.\n"
    done = call(cluster, "exec", sandbox, "true")
    assert (done.returncode, done.stderr) == (5, b"error: the sandbox is paused\nhint: resume it first\n")
    assert good(cluster, "resume", sandbox) == f"Sandbox <{sandbox}> goes on.\n"
    assert good(cluster, "exec", sandbox, "echo", "on") == "on\n"


def test_snapshots_and_forks_begin_with_its_variables_and_files(cluster: Cluster, sandbox: str) -> None:
    good(cluster, "run", sandbox, "-c", "number = 41; import threading; lock = threading.Lock()")
    done = call(cluster, "snapshot", sandbox, "saved")
    assert re.fullmatch(rb"Snapshot <saved> was saved, \d+ bytes\.\n", done.stdout)
    assert done.stderr.startswith(b"note: variable lock was left out: ")
    made = good(cluster, "create", "--snapshot", "saved", "-o", "name").strip()
    fork = call(cluster, "fork", sandbox)
    match = re.fullmatch(rb"Sandbox <(sandbox-\w{12})> was created\.\n", fork.stdout)
    assert match is not None
    forked = match[1].decode()
    assert fork.stderr.startswith(b"note: variable lock was left out: ")
    for each in (made, forked):
        assert good(cluster, "run", each, "-c", "number + 1") == "42\n"
    again = call(cluster, "create", "--snapshot", "saved", "-o", "json")
    document = json.loads(again.stdout)
    assert (list(document["skipped"]), document["state"], again.stderr) == (["lock"], "Running", b"")
    good(cluster, "close", document["id"])
    good(cluster, "close", made, forked)
    done = call(cluster, "create", "--snapshot", str(cluster.config))
    assert (done.returncode, b"is no snapshot of a sandbox" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("exec", "nobody", "true"), 4, "there is no sandbox 'nobody'"),
        (("create", "--isolation", "none", "--network", "none"), 2, "can't be kept off the network"),
        (("create", "--limit", "memory=1"), 2, "nothing would start"),
        (("create", "-e", "A"), 2, "--env 'A' is not NAME=VALUE"),
        (("create", "--resreq", "cpu=64", "--timeout", "0.1"), 7, "did not start within 0.1 s"),
        (("run", "x"), 2, "give the code with one of --code and --file"),
        (("files", "cp", "a", "b"), 2, "one of SOURCE and TARGET is ID:PATH"),
        (("shell", "x"), 2, "standard input is no terminal"),
        (("lst",), 2, "no command 'lst'"),
    ],
)
def test_what_can_not_be_done_says_why(cluster: Cluster, arguments: tuple[str, ...], code: int, message: str) -> None:
    done = call(cluster, *arguments)
    assert (done.returncode, done.stdout) == (code, b"")
    assert message in done.stderr.decode()


def test_no_cluster_is_started_for_a_sandbox_that_would_end_with_it(cluster: Cluster, tmp_path: Path) -> None:
    environ = {**cluster.environ(), "HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path), "XDG_STATE_HOME": "/none"}
    del environ["FLAME_ENDPOINT"]
    done = subprocess.run([FLMCTL, "sandbox", "create"], env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 7
    assert "flmadm up --detach" in done.stderr


# --- code and commands ------------------------------------------------------------------------------------------------


def test_code_has_variables_that_last(cluster: Cluster, sandbox: str) -> None:
    good(cluster, "run", sandbox, "-c", "kept = 6")
    assert good(cluster, "run", sandbox, "-f", "-", stdin=b"print('so')\nkept * 7") == "so\n42\n"


def test_code_that_raises_shows_where(cluster: Cluster, sandbox: str) -> None:
    done = call(cluster, "run", sandbox, "-c", "print('before')\n1 / 0")
    assert (done.returncode, done.stdout) == (1, b"before\n")
    assert done.stderr.endswith(b"ZeroDivisionError: division by zero\n")
    done = call(cluster, "run", sandbox, "--time-limit", "0.3", "-c", "while True: pass")
    assert done.returncode == 124
    assert done.stderr.endswith(b"TimeoutError: the code ran for more than 0.3 s and was interrupted\n")
    assert b"while True: pass" in done.stderr


def test_what_code_displays_is_saved(cluster: Cluster, sandbox: str, tmp_path: Path) -> None:
    code = "class Plot:\n    def __repr__(self): return 'a plot'\n    def _repr_png_(self): return b'\\x89PNG'\nPlot()"
    done = call(cluster, "run", sandbox, "-c", code, "--save", str(tmp_path / "shown"))
    assert (done.stdout, (tmp_path / "shown" / "result-1.png").read_bytes()) == (b"a plot\n", b"\x89PNG")
    document = json.loads(good(cluster, "run", sandbox, "-c", "Plot()", "-o", "json"))
    assert document["results"] == [{"text": "a plot", "formats": {"image/png": {"base64": "iVBORw=="}}}]


def test_exec_passes_streams_and_exit_code_on(cluster: Cluster, sandbox: str) -> None:
    done = call(cluster, "exec", sandbox, "sh", "-c", "echo $COLOUR; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, b"red\n", b"err\n")
    assert call(cluster, "exec", sandbox, "sh", "-c", "kill -TERM $$").returncode == 128 + signal.SIGTERM
    assert good(cluster, "exec", sandbox, "--", "echo", "-n", "words  apart") == "words  apart"
    assert good(cluster, "exec", "-e", "COLOUR=blue", "--cwd", "/tmp", sandbox, "sh", "-c", "pwd; echo $COLOUR") == (
        "/tmp\nblue\n"
    )


def test_exec_passes_standard_input_on_when_told_so(cluster: Cluster, sandbox: str) -> None:
    assert good(cluster, "exec", "-i", sandbox, "cat", stdin=b"x" * 3_000_000) == "x" * 3_000_000
    assert good(cluster, "exec", sandbox, "cat", stdin=b"not passed on") == ""


def test_exec_streams_while_it_runs(cluster: Cluster, sandbox: str) -> None:
    with start(cluster, "exec", "-i", sandbox, "cat", stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for line in (b"one\n", b"two\n"):
            process.stdin.write(line)
            process.stdin.flush()
            assert process.stdout.readline() == line
        process.stdin.close()
        assert process.wait(60) == 0


def test_exec_ends_what_takes_too_long_or_is_interrupted(cluster: Cluster, sandbox: str) -> None:
    done = call(cluster, "exec", "--time-limit", "0.3", sandbox, "sh", "-c", "echo begun; sleep 600")
    assert (done.returncode, done.stdout, done.stderr) == (124, b"begun\n", b"error: its time was over\n")
    script = "trap 'echo trapped; exit 3' INT; echo ready; while true; do sleep 0.05; done"
    with start(cluster, "exec", sandbox, "sh", "-c", script) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == b"trapped\n"
        assert process.wait(60) == 3


def test_exec_ends_the_command_when_nobody_reads_it(cluster: Cluster, sandbox: str) -> None:
    with start(cluster, "exec", sandbox, "yes", "end of pipe") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"end of pipe\n"
        process.stdout.close()
        process.wait(60)
    with flame.connect(cluster.endpoint) as connection, flame.Sandbox.open(sandbox, connection=connection) as opened:
        until(lambda: not opened.commands(), "the end of the command")


class Terminal:
    """flmctl in a terminal of its own."""

    def __init__(self, cluster: Cluster, *arguments: str, rows: int = 24, columns: int = 80) -> None:
        self.ours, theirs = pty.openpty()
        self.resize(rows, columns)
        self.text = b""
        self.process = subprocess.Popen(
            [FLMCTL, "sandbox", *arguments],
            env=cluster.environ(TERM="dumb"),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(theirs, termios.TIOCSCTTY, 0),  # noqa: PLW1509
        )
        os.close(theirs)

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def read_until(self, text: bytes) -> None:
        while text not in self.text:
            try:
                data = os.read(self.ours, 65536)
            except OSError:
                data = b""
            assert data, f"no {text!r} in {self.text!r}"
            self.text += data
        self.text = self.text.partition(text)[2]

    def write(self, text: bytes) -> None:
        os.write(self.ours, text)

    def end(self) -> int:
        """Its exit code."""
        try:
            while os.read(self.ours, 65536):
                pass
        except OSError:
            pass
        os.close(self.ours)
        return self.process.wait(PATIENCE)


def test_a_shell_is_a_terminal_whose_size_follows(cluster: Cluster, sandbox: str) -> None:
    terminal = Terminal(cluster, "shell", sandbox, "sh", rows=33, columns=99)
    terminal.write(b"stty size; trap 'stty size' WINCH\n")
    terminal.read_until(b"33 99\r\n")
    terminal.resize(44, 111)
    terminal.write(b"until [ \"$(stty size)\" = '44 111' ]; do :; done; echo si''zed\n")
    terminal.read_until(b"sized\r\n")
    terminal.write(b"PS1=prompt'>'; echo sl''eeps; sleep 600\n")
    terminal.read_until(b"sleeps\r\n")
    terminal.write(b"\x03")
    terminal.read_until(b"prompt>")
    terminal.write(b"echo go''es on; exit 5\n")
    terminal.read_until(b"goes on\r\n")
    assert terminal.end() == 5


def test_a_shell_is_left_by_a_key_also_when_it_does_not_answer(cluster: Cluster, sandbox: str) -> None:
    terminal = Terminal(cluster, "shell", sandbox, "sh", "-c", "echo there; sleep 600")
    terminal.read_until(b"there\r\n")
    good(cluster, "pause", sandbox)
    terminal.write(b"\x1d")
    assert terminal.end() == 130
    good(cluster, "resume", sandbox)


# --- files and ports --------------------------------------------------------------------------------------------------


def test_files_are_written_listed_read_and_removed(cluster: Cluster, sandbox: str) -> None:
    good(cluster, "files", "write", sandbox, "notes/one.txt", stdin=b"first\n")
    good(cluster, "files", "write", sandbox, "notes/two.txt", "--text", "second")
    lines = good(cluster, "files", "ls", sandbox, "notes").splitlines()
    assert [line.split()[:4] for line in lines[1:]] == [
        ["one.txt", "file", "6", "rw-r--r--"],
        ["two.txt", "file", "6", "rw-r--r--"],
    ]
    assert good(cluster, "files", "read", sandbox, "notes/one.txt") == "first\n"
    (about,) = json.loads(good(cluster, "files", "ls", sandbox, "notes/two.txt", "-o", "json"))
    assert (about["name"], about["size"], about["mode"]) == ("two.txt", 6, 0o644)
    done = call(cluster, "files", "rm", sandbox, "notes")
    assert (done.returncode, done.stderr) == (5, b"error: folder notes is not empty\nhint: add -r\n")
    good(cluster, "files", "rm", "-r", sandbox, "notes")
    assert call(cluster, "files", "read", sandbox, "notes/one.txt").returncode == 4


def test_files_are_copied_both_ways(cluster: Cluster, sandbox: str, tmp_path: Path) -> None:
    source = tmp_path / "tree"
    (source / "below").mkdir(parents=True)
    (source / "below" / "data").write_bytes(bytes(range(256)) * 5000)
    (source / "run").write_text("#!/bin/sh\necho it runs\n")
    (source / "run").chmod(0o755)
    good(cluster, "files", "cp", str(source), f"{sandbox}:")
    assert good(cluster, "exec", sandbox, "./tree/run") == "it runs\n"
    good(cluster, "files", "cp", f"{sandbox}:tree", str(tmp_path / "back"))
    assert (tmp_path / "back" / "below" / "data").read_bytes() == (source / "below" / "data").read_bytes()
    good(cluster, "files", "cp", f"{sandbox}:tree/run", str(tmp_path))
    assert (tmp_path / "run").read_text() == (source / "run").read_text()
    good(cluster, "files", "cp", str(source / "run"), f"{sandbox}:new/name")
    assert good(cluster, "files", "read", sandbox, "new/name") == (source / "run").read_text()
    done = call(cluster, "files", "cp", str(tmp_path / "nothing"), f"{sandbox}:")
    assert (done.returncode, b"No such file or directory" in done.stderr) == (2, True)
    assert call(cluster, "files", "cp", f"{sandbox}:nothing", str(tmp_path)).returncode == 4


def test_a_port_is_reached_from_here_until_the_sandbox_ends(cluster: Cluster) -> None:
    made = good(cluster, "create", "-o", "name").strip()
    good(cluster, "files", "write", made, "page/index.html", "--text", "from the sandbox")
    server = "(cd page; exec python3 -u -m http.server 8000) >log 2>&1 & until grep -q Serving log; do sleep 0.02; done"
    good(cluster, "exec", made, "sh", "-c", f"touch log; {server}")
    with start(cluster, "expose", made, "8000", stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        where = urlsplit(process.stdout.readline().decode().strip())
        assert where.hostname == "127.0.0.1"
        assert where.port is not None
        page = http.client.HTTPConnection(where.hostname, where.port, timeout=30)
        page.request("GET", "/")
        assert page.getresponse().read() == b"from the sandbox"
        page.close()
        good(cluster, "close", made)
        assert process.wait(60) == 5
        assert process.stderr.read().startswith(f"error: sandbox {made} was closed".encode())

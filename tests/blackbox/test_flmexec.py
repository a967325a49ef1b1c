"""The built-in application flmexec and its tool, through the real daemons."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import flame
from blackbox.trouble import alive, until
from cluster import Cluster
from untrusted import require_sandboxes

TOOL = str(Path(sys.executable).parent / "flmexec")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("flmexec")) as cluster:
        yield cluster


def tool(cluster: Cluster, *arguments: str, stdin: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [TOOL, *arguments],
        env=cluster.environ(**variables),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_there_are_three_applications_from_the_start(cluster: Cluster) -> None:
    with flame.connect(cluster.endpoint) as connection:
        found = {application.name: application for application in connection.list_applications()}
    assert {"flmping", "flmexec", "flmrun"} == found.keys()
    assert {(app.shim, app.max_instances, app.delay_release) for app in found.values()} == {
        (flame.Shim.HOST, 1_000_000, 60)
    }
    assert (found["flmrun"].installer, found["flmrun"].url) == ("python", None)
    schema = found["flmexec"].schema
    assert schema is not None
    assert json.loads(schema.input or "")["required"] == ["language", "code"]
    assert json.loads(schema.output or "") == {"type": "string"}


def test_output_errors_and_exit_code_are_the_scripts(cluster: Cluster) -> None:
    done = tool(cluster, "-c", "echo out; echo err >&2; exit 3")
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "err\n")


def test_a_python_script_from_a_file_with_arguments_input_and_variables(cluster: Cluster, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import os, sys; print(sys.argv[1:], sys.stdin.read(), os.environ['COLOUR'])")
    done = tool(cluster, "-l", "python", "-f", str(script), "-i", "in", "-e", "COLOUR=red", "--", "-a", "b")
    assert (done.returncode, done.stdout, done.stderr) == (0, "['-a', 'b'] in red\n", "")


def test_our_own_standard_input_is_the_input_or_the_script(cluster: Cluster) -> None:
    assert tool(cluster, "-c", "cat", "-i", "-", stdin="ours").stdout == "ours"
    assert tool(cluster, "-f", "-", stdin="echo from $0").stdout.startswith("from /")
    assert tool(cluster, "-c", "cat; echo end", stdin="not passed on").stdout == "end\n"


def test_several_tasks_are_printed_in_their_order(cluster: Cluster) -> None:
    done = tool(cluster, "-t", "3", "-c", "echo hello")
    assert done.stdout == "".join(f"==> task {number}: exit code 0 <==\nhello\n" for number in (1, 2, 3))


def test_a_script_whose_time_is_over(cluster: Cluster) -> None:
    done = tool(cluster, "--time-limit", "0.5", "-c", "echo begun; sleep 60")
    assert (done.returncode, done.stdout, done.stderr) == (124, "begun\n", "error: its time was over\n")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "give the script with one of --code and --file"),
        (("-c", "x", "-l", "cobol"), 1, "unsupported language 'cobol'; this application runs shell, python"),
        (("-c", "x", "-r", "/tmp/sh"), 1, "unsupported shell runtime '/tmp/sh'"),
        (("-c", "x", "-e", "A"), 2, "--env 'A' is not NAME=VALUE"),
        (("-c", "x", "-a", "nobody"), 4, "nobody"),
        (("-c", "x", "--cwd", "/no/such/folder"), 2, "cwd '/no/such/folder' is no folder of the sandbox"),
        (("-c", "x", "--network", "none"), 2, "can't be kept off the network"),
        (("-c", "x", "--memory", "much"), 2, "much"),
        (("-c", "sleep 600", "--timeout", "0.5"), 7, "the script did not end within 0.5 s"),
        (("-c", "sleep 600", "--timeout", "0.5", "-t", "2"), 7, "the script did not end within 0.5 s"),
    ],
)
def test_what_can_not_be_run_says_why(cluster: Cluster, arguments: tuple[str, ...], code: int, message: str) -> None:
    done = tool(cluster, *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr


def test_an_application_of_ones_own_runs_other_languages(cluster: Cluster) -> None:
    attributes = flame.ApplicationAttributes(
        command="flmexec-service", environments={"FLAME_EXEC_INTERPRETERS": "reversed=rev"}
    )
    with flame.connect(cluster.endpoint) as connection:
        connection.register_application("rev", attributes)
    assert tool(cluster, "-a", "rev", "-l", "reversed", "-c", "olleh").stdout.strip() == "hello"


def test_output_comes_while_it_runs_and_input_goes_to_it(cluster: Cluster) -> None:
    code = "read line; echo got $line; echo aside >&2; read line; echo got $line"
    process = subprocess.Popen(
        [TOOL, "-c", code, "-i", "-"],
        env=cluster.environ(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        for word in ("one", "two"):
            process.stdin.write(f"{word}\n")
            process.stdin.flush()
            assert process.stdout.readline() == f"got {word}\n"
        assert process.stderr.readline() == "aside\n"
        assert process.wait(60) == 0


def test_much_output_and_input_are_passed_on_whole(cluster: Cluster) -> None:
    done = tool(cluster, "-c", "seq 1000000")
    assert done.stdout == "".join(f"{number}\n" for number in range(1, 1_000_001))
    assert tool(cluster, "-c", "wc -c", "-i", "-", stdin="x" * 3_000_000).stdout.strip() == "3000000"


def test_each_script_has_a_folder_of_its_own_that_goes_with_it(cluster: Cluster) -> None:
    found = [tool(cluster, "-c", "touch made; printf '%s\\n' m*e ma*.sh; pwd").stdout.split() for _ in range(2)]
    assert [each[:2] for each in found] == [["made", "main.sh"]] * 2
    assert found[0][2] != found[1][2]
    assert not Path(found[0][2]).exists()


def test_the_first_ctrl_c_is_the_scripts(cluster: Cluster, tmp_path: Path) -> None:
    code = f"trap 'echo trapped; exit 3' INT; touch {tmp_path}/ready; while true; do sleep 0.05; done"
    with subprocess.Popen([TOOL, "-c", code], env=cluster.environ(), stdout=subprocess.PIPE, text=True) as process:
        until((tmp_path / "ready").exists, "the script's start")
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None
        assert process.stdout.read() == "trapped\n"
        assert process.wait(60) == 3


def test_a_script_can_be_shut_in(cluster: Cluster, tmp_path: Path) -> None:
    require_sandboxes(tmp_path)
    (tmp_path / "secret").write_text("of the node")
    code = f"cat {tmp_path}/secret; echo $?; getent hosts localhost >/dev/null; wc -l < /proc/net/route"
    done = tool(cluster, "--isolation", "process", "-c", code)
    assert done.stdout.split() == ["1", "1"]  # no such file, and a table of routes with its title only
    assert "No such file or directory" in done.stderr
    done = tool(cluster, "--isolation", "process", "--memory", "64Mi", "-l", "python", "-c", "len(b'x' * 2**28)")
    assert done.returncode != 0
    done = tool(cluster, "--isolation", "process", "-t", "2", "-c", f"test -e {tmp_path}/secret || echo hidden")
    assert done.stdout.count("hidden\n") == 2


def test_a_cancelled_script_ends_with_all_that_it_started(cluster: Cluster, tmp_path: Path) -> None:
    started = tmp_path / "started"
    code = f"sleep 600 & echo $! > {started}.new; mv {started}.new {started}; wait"
    request = json.dumps({"language": "shell", "code": code, "input": None}).encode()
    with flame.connect(cluster.endpoint) as connection, connection.create_session("flmexec") as session:
        future = session.submit(request)
        until(started.exists, "the script's start")
        pid = int(started.read_text())
        assert future.cancel()
        until(lambda: not alive(pid), "the end of what the script started")
        request = json.dumps({"language": "shell", "code": "echo next"}).encode()
        assert bytes(json.loads(session.invoke(request) or b"{}")["data"]) == b"next\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_tool_that_is_ended_leaves_no_session_open(cluster: Cluster, tmp_path: Path, number: signal.Signals) -> None:
    started = tmp_path / "started"
    with subprocess.Popen([TOOL, "-c", f"touch {started}; sleep 600"], env=cluster.environ()) as process:
        until(started.exists, "the script's start")
        process.send_signal(number)
        assert process.wait(60) == 128 + number
    with flame.connect(cluster.endpoint) as connection:
        assert not [s for s in connection.list_sessions() if s.state == flame.SessionState.OPEN]

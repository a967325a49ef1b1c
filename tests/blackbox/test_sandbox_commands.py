"""Commands in sandboxes, through the real daemons."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator

import pytest

import flame
from flame.client.synchronous import Connection
from flame.sandbox.inside.buffers import SIZE
from sandboxes import LEVELS, cluster_for_sandboxes, create


@pytest.fixture(scope="module")
def connection(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Connection]:
    folder = tmp_path_factory.mktemp("commands")
    with cluster_for_sandboxes(folder) as cluster, flame.connect(cluster.endpoint) as made:
        yield made


@pytest.fixture(scope="module", params=LEVELS)
def sandbox(connection: Connection, request: pytest.FixtureRequest) -> Iterator[flame.Sandbox]:
    with create(connection, request.param, env={"GREETING": "hello"}) as made:
        yield made


def test_exit_code_and_both_streams_apart(sandbox: flame.Sandbox) -> None:
    found = sandbox.run_command("echo out; echo err >&2; exit 3")
    assert found == flame.sandbox.CommandResult(3, b"out\n", b"err\n")
    assert sandbox.run_command(["echo", "one word", "$HOME"]).stdout == b"one word $HOME\n"
    assert sandbox.run_command("kill -TERM $$").exit_code == 128 + signal.SIGTERM


def test_stdin_environment_and_working_folder(sandbox: flame.Sandbox) -> None:
    assert sandbox.run_command("cat", stdin="text").stdout == b"text"
    assert sandbox.run_command("cat").stdout == b""  # nothing, instead of waiting
    assert sandbox.run_command("echo $GREETING $ONCE", env={"ONCE": "now"}).stdout == b"hello now\n"
    sandbox.files.make_dir("below")
    assert sandbox.run_command("basename $(pwd)", cwd="below").stdout == b"below\n"
    assert sandbox.run_command("basename $(pwd)").stdout == b"work\n"


def test_a_long_stdin_is_sent_ahead(sandbox: flame.Sandbox) -> None:
    assert sandbox.run_command("wc -c", stdin=b"x" * 5_000_000).stdout.strip() == b"5000000"
    assert sandbox.run_command("cat", stdin=b"abc" * 1_000_000).stdout == b"abc" * 1_000_000


def test_output_comes_while_it_runs(sandbox: flame.Sandbox) -> None:
    heard: list[bytes] = []

    def on_stdout(data: bytes) -> None:
        heard.append(data)
        sandbox.files.write("go", b"")

    found = sandbox.run_command("echo first; until [ -e go ]; do sleep 0.01; done; echo second", on_stdout=on_stdout)
    assert b"".join(heard) == found.stdout == b"first\nsecond\n"
    assert heard[0] == b"first\n"


def test_a_lot_of_output_arrives_complete(sandbox: flame.Sandbox) -> None:
    found = sandbox.run_command([sys.executable, "-c", "import sys; sys.stdout.write('0123456789' * 2_000_000)"])
    assert (len(found.stdout), found.dropped) == (20_000_000, 0)
    assert found.stdout == b"0123456789" * 2_000_000


def test_when_the_time_is_over_nothing_is_left(sandbox: flame.Sandbox) -> None:
    command = """trap '' TERM; sleep 4711 & setsid sleep 4711 & (trap '' TERM; while :; do sleep 0.1; done)"""
    found = sandbox.run_command(f"echo on; {command}", timeout=0.3)
    assert (found.timed_out, found.stdout) == (True, b"on\n")
    assert sandbox.run_command("pgrep -f 'sleep 471[1]' || true").stdout == b""


def test_a_program_that_obeys_says_its_last_words(sandbox: flame.Sandbox) -> None:
    found = sandbox.run_command("trap 'echo bye; exit 5' TERM; while :; do sleep 0.05; done", timeout=0.3)
    assert (found.timed_out, found.exit_code, found.stdout) == (True, 5, b"bye\n")


def test_what_is_left_in_the_background_goes_on_and_is_not_waited_for(sandbox: flame.Sandbox) -> None:
    found = sandbox.run_command("(until [ -e stop ]; do sleep 0.02; done; touch stopped) & echo started")
    assert (found.exit_code, found.stdout) == (0, b"started\n")
    with sandbox.files.watch(".") as changes:
        sandbox.files.write("stop", b"")
        assert any(change.path == "stopped" for change in iter(changes.__next__, None) if change.path == "stopped")


def test_a_command_that_is_written_to_and_read_from(sandbox: flame.Sandbox) -> None:
    running = sandbox.start_command(["cat"])
    running.write(b"one\n")
    output = running.read()
    assert output is not None
    assert output.stdout == b"one\n"
    assert [info.id for info in sandbox.commands()] == [running.id]
    running.write("two\n")
    running.close_stdin()
    assert running.wait() == flame.sandbox.CommandResult(0, b"two\n", b"")
    assert running.read() is None
    assert sandbox.commands() == []
    with pytest.raises(flame.InvalidStateError):
        running.write(b"more")


def test_iterating_gives_all_of_it_and_ends(sandbox: flame.Sandbox) -> None:
    running = sandbox.start_command("for i in 1 2 3; do echo $i; sleep 0.02; done; echo e >&2")
    pieces = list(running)
    assert b"".join(piece.stdout for piece in pieces) == b"1\n2\n3\n"
    assert b"".join(piece.stderr for piece in pieces) == b"e\n"


def test_another_client_finds_it_by_its_id(sandbox: flame.Sandbox) -> None:
    running = sandbox.start_command("echo hello; read line; echo got $line")
    with flame.Sandbox.open(sandbox.id, connection=sandbox._caller.session.connection) as other:
        found = other.command(other.commands()[0].id)
        assert found.id == running.id
        found.write(b"word\n")
        assert found.wait().stdout == b"hello\ngot word\n"
        assert running.wait().stdout == b"hello\ngot word\n"


def test_signals_reach_the_whole_group(sandbox: flame.Sandbox) -> None:
    running = sandbox.start_command("trap 'echo usr1' USR1; echo on; while :; do sleep 0.05; done")
    assert running.read() is not None
    running.kill(signal.SIGUSR1)
    hear(running, b"usr1\n")
    running.kill()
    assert running.wait().exit_code == 128 + signal.SIGKILL
    running.kill()  # no error
    with pytest.raises(flame.InvalidArgumentError):
        running.kill(12345)


def test_waiting_has_a_limit_and_the_command_goes_on(sandbox: flame.Sandbox) -> None:
    running = sandbox.start_command("cat")
    with pytest.raises(flame.TimedOutError, match="it goes on"):
        running.wait(0.05)
    running.close_stdin()
    assert running.wait().exit_code == 0


def hear(running: flame.sandbox.RunningCommand, text: bytes) -> None:
    """Until it has printed this."""
    heard = b""
    while text not in heard:
        output = running.read()
        assert output is not None, heard
        heard += output.stdout


def test_a_terminal(sandbox: flame.Sandbox) -> None:
    running = sandbox.start_command(["/bin/sh"], pty=(24, 80))
    running.write("PS1=; tty >/dev/null && stty size\n")
    hear(running, b"24 80")
    running.resize(50, 100)
    running.write("stty size; sh -c \"echo rea''dy; exec sleep 4712\"\n")
    hear(running, b"50 100\r\nready")
    running.write(b"\x03")  # Ctrl-C ends the sleep, not the shell
    running.write("exit 9\n")
    assert running.wait().exit_code == 9
    with pytest.raises(flame.InvalidStateError):
        running.resize(1, 1)


def test_ctrl_d_ends_what_reads_a_terminal(sandbox: flame.Sandbox) -> None:
    running = sandbox.start_command(["cat"], pty=(24, 80))
    running.write("line\n")
    running.close_stdin()
    assert running.wait().exit_code == 0


def test_what_nobody_reads_is_dropped_from_the_front_and_counted(sandbox: flame.Sandbox) -> None:
    size = 3 * SIZE
    running = sandbox.start_command(
        [sys.executable, "-c", f"import sys; sys.stdout.write('x' * {size} + 'end'); sys.stdout.flush()"]
    )
    while sandbox.commands():
        pass
    found = running.wait()
    assert found.stdout.endswith(b"end")
    assert found.dropped > 0
    assert len(found.stdout) + found.dropped == size + 3


def test_what_somebody_reads_is_waited_for(sandbox: flame.Sandbox) -> None:
    size = 3 * SIZE
    running = sandbox.start_command(
        [sys.executable, "-c", f"import sys; sys.stdout.write('on'); input(); sys.stdout.write('x' * {size} + 'end')"]
    )
    assert running.read() is not None  # from now on somebody reads
    running.write("\n")
    total = 0
    while (output := running.read()) is not None:
        total += len(output.stdout)
        assert output.dropped == 0
    assert total == size + 3


def test_what_is_going_to_be_read_is_waited_for_from_the_start(sandbox: flame.Sandbox) -> None:
    size = 3 * SIZE
    running = sandbox.start_command(
        [sys.executable, "-c", f"import sys; sys.stdout.write('x' * {size} + 'end')"], followed=True
    )
    (info,) = sandbox.commands()
    # It sleeps: its pipe is full, as far as it can be seen.
    while sandbox.run_command(f"cut -d' ' -f3 /proc/{info.pid}/stat").stdout != b"S\n":
        pass
    found = b"".join(output.stdout for output in running if output.dropped == 0)
    assert (len(found), found[-3:]) == (size + 3, b"end")


def test_a_reader_is_told_what_was_lost_before_he_came(sandbox: flame.Sandbox) -> None:
    size = 3 * SIZE
    running = sandbox.start_command([sys.executable, "-c", f"import sys; sys.stderr.write('x' * {size})"])
    while sandbox.commands():
        pass
    heard = list(running)
    assert sum(output.dropped + len(output.stderr) for output in heard) == size
    assert heard[0].dropped > 0
    assert running.read() is None


@pytest.mark.parametrize(
    ("command", "options"),
    [
        (["/no/such/program"], {}),
        ([], {}),
        (["a\0b"], {}),
        (["echo", 5], {}),
        (5, {}),
        (b"true", {}),
        ("echo \ud800", {}),
        ("true", {"cwd": "nowhere"}),
        ("true", {"timeout": -1}),
        ("true", {"timeout": "1"}),
        ("true", {"stdin": 5}),
        ("true", {"stdin": "\ud800"}),
        ("true", {"env": {"A=B": "c"}}),
        ("true", {"env": {"A": 1}}),
    ],
)
def test_what_cant_be_started_is_refused(sandbox: flame.Sandbox, command: object, options: dict[str, object]) -> None:
    with pytest.raises(flame.InvalidArgumentError):
        sandbox.run_command(command, **options)  # type: ignore[arg-type]


def test_what_no_command_can_be_told_is_refused(sandbox: flame.Sandbox) -> None:
    running = sandbox.start_command(["cat"])
    for ask in (lambda: running.kill("TERM"), lambda: running.resize("1", 2), lambda: running.write(5)):  # type: ignore[arg-type]
        with pytest.raises(flame.InvalidArgumentError):
            ask()
    running.kill()


def test_unknown_commands(sandbox: flame.Sandbox) -> None:
    with pytest.raises(flame.NotFoundError):
        sandbox.command("nobody").wait()


def test_ctrl_c_of_the_caller_ends_the_command(sandbox: flame.Sandbox) -> None:
    def interrupt(data: bytes) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sandbox.run_command("echo on; sleep 4713", on_stdout=interrupt)
    while sandbox.commands():
        pass
    assert sandbox.run_command("pgrep -f 'sleep 471[3]' || true").stdout == b""

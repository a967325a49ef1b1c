"""Running commands in a sandbox."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

from flame.client.values import short_name
from flame.model.errors import TimedOutError
from flame.sandbox import wire
from flame.sandbox.arguments import as_bytes, as_command, check_env, check_timeout
from flame.sandbox.steps import Steps, Tell, ask, do, hand_over
from flame.sandbox.values import CommandInfo, CommandResult, Output

MAX_KEPT = 64 * 1024**2  # bytes of each stream in a CommandResult
OnBytes = Callable[[bytes], object]


class Follower:
    """Where one client is in the output of a command."""

    def __init__(self, name: str) -> None:
        self.id = name
        self.ended: wire.Exit | None = None
        self._at_stdout = 0
        self._at_stderr = 0

    def take(self, output: wire.Output) -> Output:
        self._at_stdout, self._at_stderr = output.at_stdout, output.at_stderr
        self.ended = output.ended
        return Output(output.stdout, output.stderr, output.dropped)

    def follow(self, *, wait: bool = False, patience: float = wire.POLL_S) -> Steps[Output]:
        """What comes next; may be nothing."""
        call = wire.FollowCommand(self.id, self._at_stdout, self._at_stderr, wait, patience)
        return self.take((yield from ask(call, wire.Output)))

    def read(self) -> Steps[Output | None]:
        """What comes next, None at the end."""
        while self.ended is None:
            output = yield from self.follow()
            if output.stdout or output.stderr or output.dropped:
                return output
        return None


def run(
    command: str | Sequence[str],
    stdin: bytes | str | None,
    timeout: float | None,
    env: Mapping[str, str] | None,
    cwd: str | None,
    on_stdout: OnBytes | None,
    on_stderr: OnBytes | None,
) -> Steps[CommandResult]:
    """Run it to its end, handing over what it prints meanwhile."""
    check_timeout(timeout)
    wait = not (on_stdout or on_stderr)
    name = short_name("run")
    call = yield from _request(name, command, b"" if stdin is None else stdin, timeout, env, cwd, None)
    follower = Follower(name)
    kept = _Kept()
    try:
        started = yield from ask(_with(call, followed=True, wait=wait), wire.Output)
        output = follower.take(started)
        while True:
            kept.add(output)
            if output.stdout:
                yield from hand_over(on_stdout, output.stdout)
            if output.stderr:
                yield from hand_over(on_stderr, output.stderr)
            if follower.ended is not None:
                return kept.result(follower.ended)
            output = yield from follower.follow(wait=wait)
    except GeneratorExit:
        raise
    except Exception:
        raise
    except BaseException:  # whoever waits for it gives up
        yield Tell(wire.Kill(name, 9))
        raise


def start(
    command: str | Sequence[str],
    stdin: bytes | str | None,
    timeout: float | None,
    env: Mapping[str, str] | None,
    cwd: str | None,
    pty: tuple[int, int] | None,
    *,
    followed: bool,
) -> Steps[str]:
    """Start it; its id."""
    check_timeout(timeout)
    name = short_name("command")
    call = yield from _request(name, command, stdin, timeout, env, cwd, pty)
    yield from ask(_with(call, followed=followed), wire.Output)
    return name


def wait_for(follower: Follower, timeout: float | None) -> Steps[CommandResult]:
    """Wait for its end; what was not read yet is in the result. Raises TimedOutError."""
    until = None if timeout is None else time.monotonic() + timeout
    kept = _Kept()
    while follower.ended is None:
        patience = wire.POLL_S if until is None else min(wire.POLL_S, until - time.monotonic())
        if patience <= 0:
            raise TimedOutError(f"command {follower.id} did not end within {timeout:g} s; it goes on")
        kept.add((yield from follower.follow(wait=True, patience=patience)))
    return kept.result(follower.ended)


def write(name: str, data: bytes, *, end: bool = False) -> Steps[None]:
    """Write all of it, however long it takes the command to read."""
    view = memoryview(data)
    while True:
        piece = bytes(view[: wire.PIECE])
        last = len(piece) == len(view)
        taken = yield from ask(wire.Write(name, piece, end and last), wire.Taken)
        view = view[taken.size :]
        if not view and last and taken.size == len(piece):
            return


def running() -> Steps[list[CommandInfo]]:
    """The commands that run."""
    found = yield from ask(wire.ListCommands(), wire.Commands)
    return [
        CommandInfo(each.id, each.command, each.pid, datetime.fromtimestamp(each.started, UTC), each.pty)
        for each in found.commands
    ]


class _Kept:
    """What is kept of a command's output."""

    def __init__(self) -> None:
        self._stdout: list[bytes] = []
        self._stderr: list[bytes] = []
        self._room = [MAX_KEPT, MAX_KEPT]
        self._dropped = 0

    def add(self, output: Output) -> None:
        self._dropped += output.dropped
        for index, (data, kept) in enumerate(((output.stdout, self._stdout), (output.stderr, self._stderr))):
            kept.append(data[: self._room[index]])
            self._dropped += len(data) - len(kept[-1])
            self._room[index] -= len(kept[-1])

    def result(self, ended: wire.Exit) -> CommandResult:
        return CommandResult(
            ended.status, b"".join(self._stdout), b"".join(self._stderr), ended.timed_out, self._dropped
        )


def _request(
    name: str,
    command: str | Sequence[str],
    stdin: bytes | str | None,
    timeout: float | None,
    env: Mapping[str, str] | None,
    cwd: str | None,
    pty: tuple[int, int] | None,
) -> Steps[wire.StartCommand]:
    """The call that starts it; what is too long of its stdin is sent ahead."""
    data = None if stdin is None else as_bytes(stdin)
    call = wire.StartCommand(name, as_command(command), data, "", check_env(env), cwd or "", timeout, pty)
    if data is None or len(data) <= wire.PIECE:
        return call
    for offset in range(0, len(data), wire.PIECE):
        yield from do(wire.Spool(name, data[offset : offset + wire.PIECE]))
    return _with(call, stdin=None, spool=name)


def _with(call: wire.StartCommand, **changes: object) -> wire.StartCommand:
    import msgspec

    return msgspec.structs.replace(call, **changes)

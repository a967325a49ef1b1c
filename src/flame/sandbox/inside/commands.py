"""Commands: started, followed, written to, ended."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence

from flame.model.errors import AlreadyExistsError, InvalidArgumentError, InvalidStateError, NotFoundError
from flame.sandbox.arguments import check_env
from flame.sandbox.inside import processes
from flame.sandbox.inside.buffers import Buffer
from flame.sandbox.inside.spools import Spools
from flame.sandbox.inside.waiting import Bell, Clock
from flame.sandbox.wire import POLL_S, Command, Exit, FollowCommand, Output, StartCommand, Write

MAX_COMMANDS = 256  # that run at once
_KEPT = 64  # commands that have ended
_CHUNK = 64 * 1024
_ANSWER = 1024 * 1024  # of each stream in one answer
_STDIN = 1024 * 1024  # that waits to be read by a command
_LAST = 1024 * 1024  # that is read at most when a command has ended
_GRACE_S = 2.0  # from SIGTERM to SIGKILL
_LINGER_S = 0.2  # for output that others still hold when a command's first process has ended


class Running:
    """One command, from its start until it is forgotten."""

    def __init__(self, request: StartCommand, clock: Clock) -> None:
        words = request.command
        self.request = request
        self.words: Sequence[str] = ["/bin/sh", "-c", words] if isinstance(words, str) else words
        self.started = time.time()
        self.bell = Bell()
        self.ended: Exit | None = None
        self.stdout = Buffer(self._read_on)
        self.stderr = Buffer(self._read_on)
        self.pid = 0
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._process: subprocess.Popen[bytes]
        self._status: int | None = None
        self._timed_out = False
        self._readers: dict[int, Buffer] = {}  # descriptors that are still open
        self._paused: set[int] = set()  # of these, those that are not read now
        self._stdin = -1
        self._unwritten = bytearray()
        self._closing = False
        self._room = Bell()

    # --- its life ---------------------------------------------------------------------------------------------------

    def start(self, env: Mapping[str, str], cwd: str, stdin: int | None) -> None:
        """`stdin` is a file for it, else there is a pipe. Raises OSError."""
        if self.request.pty is not None:
            self._start_in_terminal(env, cwd, self.request.pty)
        else:
            self._process = subprocess.Popen(
                self.words,
                env=env,
                cwd=cwd,
                stdin=subprocess.PIPE if stdin is None else stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
            assert self._process.stdout is not None
            assert self._process.stderr is not None
            self._readers = {
                os.dup(self._process.stdout.fileno()): self.stdout,
                os.dup(self._process.stderr.fileno()): self.stderr,
            }
            if self._process.stdin is not None:
                self._stdin = os.dup(self._process.stdin.fileno())
                os.set_blocking(self._stdin, False)
            for file in (self._process.stdin, self._process.stdout, self._process.stderr):
                if file is not None:
                    file.close()
        self.pid = self._process.pid
        processes.as_victim(self.pid)
        processes.when_ended(self.pid, self._on_exit)
        for descriptor in self._readers:
            os.set_blocking(descriptor, False)
            self._loop.add_reader(descriptor, self._read, descriptor)
        self._timer = self._clock.after(self.request.timeout, self._time_is_up)

    def _start_in_terminal(self, env: Mapping[str, str], cwd: str, size: tuple[int, int]) -> None:
        ours, theirs = os.openpty()
        try:
            _set_size(ours, *size)
            self._process = subprocess.Popen(
                self.words,
                env={"TERM": "xterm-256color", **env},
                cwd=cwd,
                pass_fds=[theirs],
                # Makes a session, and the terminal its own; takes no lock that a thread may hold.
                preexec_fn=lambda: os.login_tty(theirs),  # noqa: PLW1509
            )
        except BaseException:
            os.close(ours)
            raise
        finally:
            os.close(theirs)
        self._readers = {ours: self.stdout}
        self._stdin = os.dup(ours)
        os.set_blocking(self._stdin, False)

    def _on_exit(self) -> None:
        if self._timed_out:
            processes.kill_family(self.pid)  # while its number is still its own
        self._status = self._process.wait()
        if self._timer is not None:
            self._timer.cancel()
        self._close_stdin()
        for descriptor in list(self._readers):
            self._read(descriptor)
        if self._readers:
            self._loop.call_later(_LINGER_S, self._end)
        else:
            self._end()

    def _end(self) -> None:
        """It is over; what it left behind may go on printing, but nobody listens."""
        if self.ended is not None or self._status is None:
            return
        status = self._status
        self.ended = Exit(status if status >= 0 else 128 - status, self._timed_out)
        for descriptor in list(self._readers):
            self._read(descriptor, to_the_end=True)
            self._close(descriptor)
        self.bell.ring()
        self._room.ring()

    def _time_is_up(self) -> None:
        self._timed_out = True
        self.signal(signal.SIGTERM)
        self._clock.after(_GRACE_S, lambda: self.signal(signal.SIGKILL))

    def signal(self, number: int) -> None:
        """Send a signal to all its processes."""
        if self._status is None:
            if number == signal.SIGKILL:
                processes.kill_family(self.pid)
            else:
                processes.kill_group(self.pid, number)

    # --- what it prints ---------------------------------------------------------------------------------------------

    def _read(self, descriptor: int, *, to_the_end: bool = False) -> None:
        buffer = self._readers.get(descriptor)
        left = _LAST  # others may go on writing to it for ever
        while buffer is not None and (left > 0 if to_the_end else buffer.wants_more):
            try:
                data = os.read(descriptor, _CHUNK)
            except BlockingIOError:
                return
            except OSError:
                data = b""  # a terminal that nobody holds any more
            if not data:
                self._close(descriptor)
                if self._status is not None and not self._readers:
                    self._end()
                return
            buffer.add(data)
            left -= len(data)
            self.bell.ring()
            if not to_the_end and self._status is None:
                break  # the others in turn
        if buffer is not None and not buffer.wants_more and descriptor not in self._paused:
            self._paused.add(descriptor)
            self._loop.remove_reader(descriptor)

    def _read_on(self) -> None:
        """Somebody took something, or nobody follows any more."""
        for descriptor in list(self._paused):
            if self._readers[descriptor].wants_more:
                self._paused.discard(descriptor)
                self._loop.add_reader(descriptor, self._read, descriptor)
                self._loop.call_soon(self._read, descriptor)

    def _close(self, descriptor: int) -> None:
        self._loop.remove_reader(descriptor)
        self._paused.discard(descriptor)
        if self._readers.pop(descriptor, None) is not None:
            os.close(descriptor)

    async def follow(self, at_stdout: int, at_stderr: int, *, wait: bool, patience: float = POLL_S) -> Output:
        """What it printed from there on, or with `wait` its end."""
        with self.stdout.followed(at_stdout), self.stderr.followed(at_stderr):
            self._read_on()

            def enough() -> bool:
                there = self.stdout.end - at_stdout + self.stderr.end - at_stderr
                return self.ended is not None or there >= (_ANSWER if wait else 1)

            await self.bell.wait_until(enough, min(patience, POLL_S))
            stdout, next_stdout, lost_stdout = self.stdout.take(at_stdout, _ANSWER)
            stderr, next_stderr, lost_stderr = self.stderr.take(at_stderr, _ANSWER)
        over = next_stdout == self.stdout.end and next_stderr == self.stderr.end
        return Output(stdout, stderr, next_stdout, next_stderr, lost_stdout + lost_stderr, self.ended if over else None)

    # --- what it reads ----------------------------------------------------------------------------------------------

    async def write(self, request: Write) -> int:
        """How many of these bytes were taken. Raises InvalidStateError."""
        if self._stdin < 0 or self._closing:
            raise InvalidStateError(f"command {self.request.id} reads nothing: it has ended, or its stdin is closed")
        await self._room.wait_until(lambda: self._stdin < 0 or len(self._unwritten) < _STDIN, POLL_S)
        if self._stdin < 0:
            raise InvalidStateError(f"command {self.request.id} has ended, or closed its stdin")
        size = min(len(request.data), _STDIN - len(self._unwritten))
        self._unwritten += request.data[:size]
        self._closing = request.end and size == len(request.data)
        self._write_on()
        return size

    def _write_on(self) -> None:
        if self._stdin < 0:
            return
        try:
            while self._unwritten:
                del self._unwritten[: os.write(self._stdin, self._unwritten[:_CHUNK])]
        except BlockingIOError:
            self._loop.add_writer(self._stdin, self._write_on)
            self._room.ring()
            return
        except OSError:
            self._close_stdin()
            return
        self._loop.remove_writer(self._stdin)
        self._room.ring()
        if self._closing:
            if self.request.pty is not None:
                self._closing = False
                self._unwritten += b"\x04"  # what Ctrl-D sends
                self._write_on()
            else:
                self._close_stdin()

    def _close_stdin(self) -> None:
        if self._stdin >= 0:
            self._loop.remove_writer(self._stdin)
            os.close(self._stdin)
            self._stdin = -1
            self._unwritten.clear()
            self._room.ring()

    def resize(self, rows: int, columns: int) -> None:
        """Raises InvalidStateError."""
        if self.request.pty is None or self._stdin < 0:
            raise InvalidStateError(f"command {self.request.id} has no terminal, or has ended")
        _set_size(self._stdin, rows, columns)


class Commands:
    """All commands of the sandbox. `env` and `folder` are what they start with."""

    def __init__(self, clock: Clock, spools: Spools) -> None:
        self.env: Mapping[str, str] = os.environ
        self.folder = ""
        self._clock = clock
        self._spools = spools
        self._commands: dict[str, Running] = {}

    async def start(self, request: StartCommand) -> Output:
        """Start one. Raises FlameError for one that can't be started."""
        if request.id in self._commands:
            raise AlreadyExistsError(f"there is a command {request.id} already")
        if sum(running.ended is None for running in self._commands.values()) >= MAX_COMMANDS:
            raise InvalidStateError(f"{MAX_COMMANDS} commands run already", remedy="end some of them")
        running = Running(request, self._clock)
        if not running.words or not all(running.words) or any("\0" in word for word in running.words):
            raise InvalidArgumentError("a command is words, the first one a program, without NUL characters")
        os.makedirs(self.folder, exist_ok=True)  # code may have removed it
        cwd = os.path.join(self.folder, request.cwd) if request.cwd else self.folder
        if not os.path.isdir(cwd):  # noqa: ASYNC240 - it takes no time
            raise InvalidArgumentError(f"cwd {request.cwd!r} is no folder of the sandbox")
        env = {**self.env, **check_env(request.env)}
        stdin = self._stdin(request)
        try:
            running.start(env, cwd, stdin)
        except (OSError, ValueError) as error:
            text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise InvalidArgumentError(f"can't start {running.words[0]!r}: {text}") from None
        finally:
            if stdin is not None:
                os.close(stdin)
        self._commands[request.id] = running
        self._forget()
        if request.followed:
            running.stdout.expect()
            running.stderr.expect()
        if request.wait:
            return await running.follow(0, 0, wait=True)
        return Output(b"", b"", 0, 0)

    def _stdin(self, request: StartCommand) -> int | None:
        """What it reads, as a file; None for a pipe."""
        if request.spool:
            return self._spools.take(request.spool)
        if request.stdin is None or request.pty is not None:
            return None
        file = os.memfd_create("stdin")
        os.write(file, request.stdin)
        os.lseek(file, 0, os.SEEK_SET)
        return file

    async def follow(self, request: FollowCommand) -> Output:
        running = self.named(request.id)
        return await running.follow(request.at_stdout, request.at_stderr, wait=request.wait, patience=request.patience)

    def kill(self, name: str, number: int) -> None:
        """Raises NotFoundError, InvalidArgumentError."""
        running = self.named(name)
        if number not in signal.valid_signals():
            raise InvalidArgumentError(f"{number} is no signal")
        running.signal(number)

    def named(self, name: str) -> Running:
        """Raises NotFoundError."""
        try:
            return self._commands[name]
        except KeyError:
            raise NotFoundError(
                f"there is no command {name}", remedy="those that ended long ago are forgotten"
            ) from None

    def list(self) -> list[Command]:
        """Those that run."""
        return [
            Command(name, list(running.words), running.pid, running.started, running.request.pty is not None)
            for name, running in self._commands.items()
            if running.ended is None
        ]

    def pids(self) -> set[int]:
        return {running.pid for running in self._commands.values() if running.ended is None}

    def close(self) -> None:
        for running in self._commands.values():
            running.signal(signal.SIGKILL)

    def _forget(self) -> None:
        ended = [name for name, running in self._commands.items() if running.ended is not None]
        for name in ended[:-_KEPT]:
            del self._commands[name]


def _set_size(terminal: int, rows: int, columns: int) -> None:
    """Raises InvalidArgumentError."""
    try:
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    except struct.error:
        raise InvalidArgumentError(f"a terminal can't have {rows} rows and {columns} columns") from None

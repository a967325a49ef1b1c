"""A kernel is started: as a copy of the service at its very beginning, or as an interpreter of its own."""

from __future__ import annotations

import io
import os
import signal
import socket
import sys
from typing import cast

from flame.sandbox.inside.processes import as_victim, kill_group

TYPE_CHECKING = False  # like typing's, without its import
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Self, TextIO

_PROGRAM = "from flame.sandbox.inside.kernel import main; main({})"
_SOCKET = 3  # in a copy, behind its three standard streams
# Variables that are read when a program begins and never again: by Python, the loader, the C library.
_AT_START = ("PYTHON", "LD_", "LC_", "LANG", "MALLOC_", "GLIBC_")


class Started:
    """A kernel's process and the ends of its socket and its output."""

    def __init__(
        self, pid: int, sock: socket.socket, stdout: int, stderr: int, wait: Callable[[], int], env: Mapping[str, str]
    ) -> None:
        self.pid = pid
        self.socket = sock
        self.stdout = stdout
        self.stderr = stderr
        self.ended = False  # and was waited for
        self._wait = wait
        self._env = env
        as_victim(pid)

    def wait(self) -> int:
        """Its return code, as Popen's."""
        self.ended = True
        return self._wait()

    @property
    def waits(self) -> bool:
        """Whether it has not ended while nobody looked."""
        return not self.ended and os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def kill(self) -> None:
        """End it and what it started in its group."""
        kill_group(self.pid, signal.SIGKILL)

    def end(self) -> None:
        """Be done with one that nobody uses."""
        if self.ended:
            return
        self.kill()
        self.wait()
        self.socket.close()
        for pipe in (self.stdout, self.stderr):
            os.close(pipe)

    def learn(self, env: Mapping[str, str]) -> dict[str, str | None] | None:
        """What it has to be told, so that it has these variables from now on; None = it takes a new process."""
        after = complete(env)
        changed = changes(self._env, after)
        if changed is not None:
            self._env = after
        return changed


def interpreter(env: Mapping[str, str], cwd: str) -> Started:
    """A kernel in an interpreter of its own. Raises OSError."""
    import subprocess

    env = complete(env)
    with _Ends() as ends:
        process = subprocess.Popen(
            # -P: no file of the working folder is taken for a module of ours.
            [sys.executable, "-P", "-c", _PROGRAM.format(ends.theirs.fileno())],
            env=env,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=ends.writing[0],
            stderr=ends.writing[1],
            pass_fds=[ends.theirs.fileno()],
            start_new_session=True,
        )
        return Started(process.pid, *ends.kept(), process.wait, env)


def copy(env: Mapping[str, str], cwd: str) -> Started:
    """A kernel that needs no interpreter to be started: a copy of this process, which has one thread, no event loop,
    and has loaded little else. Raises OSError."""
    from flame.sandbox.inside import kernel

    env = complete(env)
    with _Ends() as ends:
        pid = os.fork()
        if not pid:
            try:
                _become_kernel(ends, env, cwd)
                kernel.main(_SOCKET)
            except BaseException as error:
                sys.excepthook(type(error), error, error.__traceback__)
            finally:
                os._exit(1)
        return Started(pid, *ends.kept(), lambda: os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), env)


class _Ends:
    """A socket and two pipes between the service and a kernel. The kernel's ends are closed behind the block, and ours
    too unless they are `kept`."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        pipes = os.pipe(), os.pipe()
        self.reading = pipes[0][0], pipes[1][0]
        self.writing = pipes[0][1], pipes[1][1]
        self._kept = False

    def kept(self) -> tuple[socket.socket, int, int]:
        """Our ends."""
        self._kept = True
        return self.ours, *self.reading

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.theirs.close()
        for pipe in self.writing if self._kept else (*self.writing, *self.reading):
            os.close(pipe)
        if not self._kept:
            self.ours.close()


def changes(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, str | None] | None:
    """The variables that are different, None for what is gone; nothing at all where a process that has begun would not
    heed them: some are read at the beginning only."""
    names = {name for name, _ in before.items() ^ after.items()}
    return None if any(name.startswith(_AT_START) for name in names) else {name: after.get(name) for name in names}


def complete(env: Mapping[str, str]) -> dict[str, str]:
    """What a kernel's process knows besides."""
    return {"MPLBACKEND": "Agg", **env, "PYTHONUNBUFFERED": "1"}


def _become_kernel(ends: _Ends, env: Mapping[str, str], cwd: str) -> None:
    """As a new process would be: its own session, folder, descriptors, variables and streams."""
    os.setsid()
    os.chdir(cwd)
    nothing = os.open(os.devnull, os.O_RDONLY)
    sources = [_above(_SOCKET, each) for each in (nothing, *ends.writing, ends.theirs.fileno())]
    for target, source in enumerate(sources):
        os.dup2(source, target)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > _SOCKET:
            try:
                os.close(int(name))
            except OSError:
                pass  # that of the list itself
    os.environ.clear()
    os.environ.update(env)
    if not sys.flags.safe_path:
        del sys.path[0]  # where the service's program lies
    sys.stdin = sys.__stdin__ = _stream(0, sys.__stdin__, "r")
    sys.stdout = sys.__stdout__ = _stream(1, sys.__stdout__, "w")
    sys.stderr = sys.__stderr__ = _stream(2, sys.__stderr__, "w")


def _above(lowest: int, descriptor: int) -> int:
    """The same open file under a number that is not wanted for another one."""
    while descriptor <= lowest:
        descriptor = os.dup(descriptor)
    return descriptor


def _stream(descriptor: int, like: TextIO | None, mode: str) -> TextIO:
    """What Python makes of a standard stream under PYTHONUNBUFFERED, in the encoding that it chose at its start."""
    assert like is not None
    raw = io.FileIO(descriptor, mode, closefd=False)
    raw.name = like.name  # pyright: ignore[reportAttributeAccessIssue]
    # Nothing is kept back of what is written, as Python itself does it, whatever the types say.
    binary = io.BufferedReader(raw) if mode == "r" else cast("io.BufferedWriter", raw)
    text = io.TextIOWrapper(
        binary, like.encoding, like.errors, newline=None if mode == "r" else "\n", write_through=mode == "w"
    )
    text.mode = mode  # pyright: ignore[reportAttributeAccessIssue]
    return text

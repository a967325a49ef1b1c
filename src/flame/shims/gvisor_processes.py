"""The processes that the one in front of a sandbox of gVisor starts, and the signals that it gets. Each of them ends
with the one that started it. Only the standard library: the runner uses it."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import time
from collections.abc import Iterable
from contextlib import suppress

NO_PROGRAM = 128  # as runsc exits when it could not start one
PREFIX = "INSIDE_"  # before the name of each variable that is meant for inside
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_LAST_S = 1.0  # for what ends by itself when a part of it is gone
_PR_SET_PDEATHSIG = 1
_F_SETPIPE_SZ = 1031
_PIPE = 1024**2  # bytes; what others than root may have of them would soon be used up
_LIBC = ctypes.CDLL(None, use_errno=True)


class Ended(Exception):  # noqa: N818 - nothing is wrong
    """The launch is over, with this exit status."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def block_signals() -> None:
    """Signals wait until they are asked for."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {*PASSED_ON, signal.SIGCHLD})


def fork() -> int:
    """As os.fork. The new process ends when this one does."""
    parent = os.getpid()
    pid = os.fork()
    if not pid:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the line above took effect
            os._exit(NO_PROGRAM)
    return pid


def start(command: list[str], streams: list[int]) -> int:
    """Start a program with these as its stdin and stdout, and stderr if that is named too; gives its number."""
    pid = fork()
    if pid:
        return pid
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        for target, source in enumerate(streams):
            os.dup2(source, target)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
        os.execve(command[0], command, kept)
    except BaseException as error:
        complain(f"can't start {command[0]}: {error}")
    finally:
        os._exit(NO_PROGRAM)


def watch(main: int, passing_on: list[str], nothing: int, parts: Iterable[int] = ()) -> int:
    """Pass signals on until the program has ended; gives its exit status. `passing_on` wants the number of a signal.
    `parts` are processes without which it would hang: it ends soon after the first of them has. Raises OSError."""
    signals = Signals()
    poll = select.poll()
    for descriptor in (signals.descriptor, *map(os.pidfd_open, parts)):
        poll.register(descriptor, select.POLLIN)
    deadline: float | None = None
    while True:
        ready = poll.poll(None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000)
        if not ready:
            end(main)
            return 128 + signal.SIGKILL
        for descriptor, _ in ready:
            if descriptor != signals.descriptor:
                poll.unregister(descriptor)
                deadline = deadline or time.monotonic() + _LAST_S
        for number in signals.taken():
            if number != signal.SIGCHLD:
                start([*passing_on, str(number)], [nothing] * 3)
                continue
            status = reaped(main)
            if status is not None:
                return status


def children(pid: int) -> list[int]:
    """Those of a process, as far as the kernel tells."""
    found: list[int] = []
    with suppress(FileNotFoundError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children") as file:
                found += map(int, file.read().split())
    return found


def reaped(main: int) -> int | None:
    """The exit status of this process if it has ended, with 128 and its number for a signal. Others are forgotten."""
    while True:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == main:
            return exit_status(status)
        if not pid:
            return None


def exit_status(status: int) -> int:
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def end(pid: int) -> None:
    """Kill a process, and wait until it is gone."""
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


class Signals:
    """The blocked signals as something to poll. Raises OSError."""

    def __init__(self) -> None:
        bits = ctypes.sizeof(ctypes.c_ulong) * 8
        mask = (ctypes.c_ulong * (1024 // bits))()
        for number in (*PASSED_ON, signal.SIGCHLD):
            mask[(number - 1) // bits] |= 1 << (number - 1) % bits
        self.descriptor: int = _LIBC.signalfd(-1, mask, os.O_CLOEXEC | os.O_NONBLOCK)
        if self.descriptor < 0:
            raise OSError(ctypes.get_errno(), "can't wait for signals")

    def taken(self) -> list[int]:
        """The numbers of those that came."""
        try:
            found = os.read(self.descriptor, 128 * 16)
        except BlockingIOError:
            return []
        return [int.from_bytes(found[at : at + 4], sys.byteorder) for at in range(0, len(found), 128)]

    def close(self) -> None:
        os.close(self.descriptor)


def widen(descriptors: Iterable[int]) -> None:
    """Give pipes more room, if they may have it. gVisor writes without waiting, and where a pipe is full it tells the
    program that less was written: many take no notice, and the rest is lost."""
    if os.getuid():
        return
    for descriptor in descriptors:
        _LIBC.fcntl(descriptor, _F_SETPIPE_SZ, _PIPE)


def complain(text: str) -> None:
    """Say it on stderr; waits while that is full, which gVisor has made one that does not wait."""
    rest = f"{text}\n".encode(errors="replace")
    while rest:
        try:
            rest = rest[os.write(2, rest) :]
        except BlockingIOError:
            select.select([], [2], [])
        except BrokenPipeError:
            return  # nobody is there to read it

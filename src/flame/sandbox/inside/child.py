"""A program that a service runs for a task: its output collected, its time limited, nothing of it left behind."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

_PIECE = 64 * 1024


class Outcome(NamedTuple):
    """How it ended. `status` is its exit status, 128 and the signal's number when it was killed; when its time was
    over `timed_out` is set and its status is 124, as of `timeout` in shells."""

    status: int
    stdout: bytes
    stderr: bytes
    timed_out: bool


class TooMuchOutputError(Exception):
    """It printed more than was allowed, and was ended."""


def run(
    argv: Sequence[str], *, env: Mapping[str, str], cwd: str, data: bytes, timeout: float | None, limit: int
) -> Outcome:
    """Run it with `data` as its standard input, for at most `timeout` seconds; `limit` in bytes is for what it prints.

    When it ends, whatever it left in its process group ends too. Raises OSError when it can't be started, and
    TooMuchOutputError.
    """
    # A file: a program that does not read its input is no concern of ours, and one that does never waits.
    stdin = os.memfd_create("stdin")
    try:
        with open(stdin, "wb", closefd=False) as file:
            file.write(data)
        os.lseek(stdin, 0, os.SEEK_SET)
        process = subprocess.Popen(
            argv,
            env=env,
            cwd=cwd,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            process_group=0,
        )
    finally:
        os.close(stdin)
    with process:
        try:
            timed_out, output = _collect(process, timeout, limit)
        finally:
            _kill(process)
    status = process.returncode
    if timed_out:
        status = 124
    elif status < 0:
        status = 128 - status
    return Outcome(status, output[0], output[1], timed_out)


def _collect(process: subprocess.Popen[bytes], timeout: float | None, limit: int) -> tuple[bool, tuple[bytes, bytes]]:
    """What it prints until it ends, not until all that it started let go of its output."""
    assert process.stdout is not None
    assert process.stderr is not None
    pipes = {process.stdout.fileno(): bytearray(), process.stderr.fileno(): bytearray()}
    deadline = None if timeout is None else time.monotonic() + timeout
    watch = os.pidfd_open(process.pid)
    timed_out = ended = False
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(watch, selectors.EVENT_READ)
            for pipe in pipes:
                os.set_blocking(pipe, False)
                selector.register(pipe, selectors.EVENT_READ)
            while not ended:
                wait = None if deadline is None else deadline - time.monotonic()
                ready = [key.fd for key, _ in selector.select(wait)] if wait is None or wait > 0 else []
                if not ready:
                    timed_out = ended = True
                ended = ended or watch in ready
                # At the end all that is there; before, a piece of each, so that neither is in the way of the other.
                for pipe in pipes if ended else [pipe for pipe in ready if pipe != watch]:
                    if not _read(pipe, pipes[pipe], limit, to_the_end=ended):
                        selector.unregister(pipe)
                if sum(map(len, pipes.values())) > limit:
                    raise TooMuchOutputError(f"it printed more than {limit:,} bytes")
    finally:
        os.close(watch)
    return timed_out, (bytes(pipes[process.stdout.fileno()]), bytes(pipes[process.stderr.fileno()]))


def _read(pipe: int, into: bytearray, limit: int, *, to_the_end: bool) -> bool:
    """Take what is there. False when nothing more will come."""
    while True:
        try:
            piece = os.read(pipe, _PIECE)
        except BlockingIOError:
            return True
        into += piece
        if not piece:
            return to_the_end
        if not to_the_end or len(into) > limit:
            return True


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Its first process is not reaped yet, so the group's number is its own."""
    if process.returncode is None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass

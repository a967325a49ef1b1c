"""What the commands of `flmctl sandbox` and flmexec share: opening, waiting, following a command."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flame.cli.options import Settings
from flame.cli.progress import StatusLine
from flame.cli.times import span
from flame.model.errors import InvalidArgumentError, UnavailableError
from flame.proto import types_pb2 as ty

if TYPE_CHECKING:
    from flame.cli.api import Api
    from flame.client.synchronous import Connection
    from flame.sandbox import RunningCommand, Sandbox, Snapshot

TIMED_OUT = 124  # as of `timeout` in shells
_DELAY = 0.5  # seconds; what is over before says nothing


@contextmanager
def connected(settings: Settings) -> Generator[Connection, None, None]:
    """A connection to a cluster that runs already: sandboxes of one that ends with the command are of no use."""
    from flame.cli.connecting import open_connection

    try:
        connection = open_connection(replace(settings, start=False))
    except UnavailableError as error:
        remedy = error.remedy or "flmadm up --detach starts a local cluster; --endpoint names another one"
        raise UnavailableError(error.message, remedy=remedy) from None
    with connection:
        yield connection


@contextmanager
def opened(settings: Settings, sandbox_id: str) -> Generator[Sandbox, None, None]:
    """The sandbox of that id; it stays when the block is left."""
    from flame.sandbox import Sandbox

    with connected(settings) as connection, Sandbox.open(sandbox_id, connection=connection) as sandbox:
        yield sandbox


@contextmanager
def waiting(what: str) -> Generator[None, None, None]:
    """Say on a terminal, after a moment, what is being done and for how long already."""
    over = threading.Event()
    start = time.monotonic()

    def show() -> None:
        with StatusLine() as line:
            delay = _DELAY
            while not over.wait(delay):
                line.show(f"{what} ({span(time.monotonic() - start)})")
                delay = 1.0

    thread = threading.Thread(target=show, name="waiting", daemon=True)
    if sys.stderr.isatty():
        thread.start()
    try:
        yield
    finally:
        over.set()
        if thread.is_alive():
            thread.join()


def follow(command: RunningCommand) -> int:
    """Copy what the command prints to our own outputs until it ends; the exit code for us.

    Ctrl-C goes to the command; the second one kills it.
    """
    interrupted = False
    while True:
        try:
            return copy(command)
        except KeyboardInterrupt:
            command.kill(signal.SIGKILL if interrupted else signal.SIGINT)
            interrupted = True


def copy(command: RunningCommand) -> int:
    """As follow, but Ctrl-C raises KeyboardInterrupt. When nobody reads our output any more, the command is ended."""
    try:
        for output in command:
            if output.dropped:
                note(f"{output.dropped} bytes of output were lost: nobody read them in time")
            for stream, data in ((sys.stdout.buffer, output.stdout), (sys.stderr.buffer, output.stderr)):
                if data:
                    stream.write(data)
                    stream.flush()
        result = command.wait()
    except BrokenPipeError:
        command.kill(signal.SIGKILL)
        raise
    if result.timed_out:
        print("error: its time was over", file=sys.stderr)
        return TIMED_OUT
    return result.exit_code


def sandboxes(api: Api, labels: Mapping[str, str], closed_too: bool = False) -> list[ty.Session]:
    """The sessions of a cluster that are sandboxes; unless told otherwise those that are open."""
    from flame.sandbox.wire import APPLICATION, is_sandbox

    states = [] if closed_too else [ty.SessionState.Open]
    found = api.sessions(states, APPLICATION, labels, without_common_data=False)
    return [session for session in found if is_sandbox(session.spec.common_data)]


def network_of(isolation: str, network: str | None) -> str:
    """What a sandbox may reach, when nothing is said: as little as its isolation can hold."""
    return network or ("host" if isolation == "none" else "none")


def load_snapshot(file: Path) -> Snapshot:
    """A snapshot that was saved. Raises InvalidArgumentError."""
    from flame.sandbox import Snapshot

    try:
        return Snapshot.load(file)
    except OSError as error:
        raise InvalidArgumentError(f"{file} can't be read: {error.strerror}") from None


def note(text: str) -> None:
    """Say something besides the output that was asked for."""
    print(f"note: {text}", file=sys.stderr)


def note_skipped(skipped: Mapping[str, str]) -> None:
    """Say which variables a snapshot or a fork lacks."""
    for name, why in skipped.items():
        note(f"variable {name} was left out: {why}")


def variables(entries: tuple[str, ...], ctx: click.Context) -> dict[str, str]:
    """The values of --env NAME=VALUE. Raises UsageError."""
    found: dict[str, str] = {}
    for entry in entries:
        name, separator, value = entry.partition("=")
        if not name or not separator:
            raise click.UsageError(f"--env {entry!r} is not NAME=VALUE", ctx)
        found[name] = value
    return found

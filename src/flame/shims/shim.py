"""The seam between an executor and what runs its instance.

A shim starts instances; an instance is entered, given tasks and left in the terms of the link whatever dialect the
service speaks: `tasks` takes a wire Tasks, `Owner.results` gets a wire Results. The executor decides, the shim acts:
it never ends an instance by itself, it says what happened. All calls are made in the event loop.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import msgspec

from flame.model.states import BindCode
from flame.proto import shim_pb2, types_pb2


class BindError(Exception):
    """The executor can't be bound to its session. `code` says in which step it failed."""

    def __init__(self, code: BindCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Package(Protocol):
    """An application's package, installed on this node. `identity` is the same for the same content; of `variables`,
    PATH, PYTHONPATH and LD_LIBRARY_PATH go before those that the instance has, others only where it has none."""

    identity: str
    variables: Mapping[str, str]

    def hold(self) -> None:
        """Keep it until `release`. Raises FlameError when it is gone."""
        ...

    def release(self) -> None:
        """Undo one `hold`."""
        ...


class Packages(Protocol):
    """The packages of a node."""

    async def provide(self, name: str, application: types_pb2.ApplicationSpec) -> Package | None:
        """The package of the application of that name, installed now if need be; None when it wants none. Raises
        FlameError."""
        ...


class ObjectDoor(Protocol):
    """The way of one instance to the object cache, which it can't reach itself. `path` is where its socket is."""

    path: Path

    def belongs_to(self, session_id: str, readable: Sequence[str] = ()) -> None:
        """It may have the objects of this session from now on, and read those that are `readable` (keys and prefixes);
        before it has none."""
        ...

    def adopt(self, connection: socket.socket) -> None:
        """Serve somebody at the other end of a connected socket, too."""
        ...

    def close(self) -> None:
        """Nobody is served any more."""
        ...


class Objects(Protocol):
    """The object cache of a node, for instances that can't reach it."""

    def open(self, application: str) -> ObjectDoor:
        """A door for one instance. Raises OSError."""
        ...


class AsWritten(msgspec.Struct, frozen=True):
    """What an application has from its image, where `$NAME` means nothing: the variables of these names, and so many of
    its arguments, the first ones."""

    variables: frozenset[str] = frozenset()
    arguments: int = 0


class Launch(msgspec.Struct, frozen=True):
    """What is to be started. `token` is the instance's credential, `devices` the GPUs it may see, None = don't say.

    One that is started ahead has an id and a token of its own here, and no session in its `context`.
    """

    executor_id: str
    token: str
    application: types_pb2.ApplicationSpec
    context: shim_pb2.SessionContext
    devices: str | None = None
    package: Package | None = None
    resreq: types_pb2.ResourceRequirement | None = None  # what its executor was given
    root: Path | None = None  # the unpacked image in which it runs
    as_written: AsWritten = AsWritten()
    user: tuple[int, int] | None = None  # as whom and in which group it runs there, None = don't care


class Owner(Protocol):
    """Whom an instance belongs to: hears what the instance does by itself."""

    def results(self, body: bytes) -> None:
        """A wire Results came. Raises ProtocolError when it is not one."""
        ...

    def retracted(self, body: bytes) -> None:
        """A wire Retracted came. Raises ProtocolError when it is not one."""
        ...

    def broken(self, why: str) -> None:
        """It does not keep to its contract: garbage, or it ended its connection. It still runs."""
        ...


class Dialect(Protocol):
    """One way to talk with an instance that is ready. `owner` hears what it says."""

    owner: Owner
    concurrency: int
    ends_by_itself: bool  # whether the instance ends after it left its session

    async def enter(self, context: shim_pb2.SessionContext) -> types_pb2.Result:
        """Enter the session: once, first."""
        ...

    def tasks(self, body: bytes) -> None:
        """Run these (wire Tasks) after those it has."""
        ...

    def cancel(self, body: bytes) -> None:
        """Stop these (wire Cancel); each is answered with a result, if the instance obeys."""
        ...

    def retract(self, body: bytes) -> None:
        """Give back what is not started (wire Retract); answered with a wire Retracted."""
        ...

    async def leave(self) -> None:
        """Leave the session; returns when the service has."""
        ...

    def pause(self) -> None:
        """Take no further results for now."""
        ...

    def resume(self) -> None:
        """Undo pause."""
        ...

    def close(self) -> None:
        """Say nothing more and hear nothing more."""
        ...


@runtime_checkable
class Buffered(Protocol):
    """A dialect that tells how many bytes of tasks wait here because the instance does not take them."""

    @property
    def unread(self) -> int: ...


class Instance(Protocol):
    """One started instance. `ended` gets a text, such as "exited with status 3", when nothing of it runs any more."""

    pid: int
    ended: asyncio.Future[str]

    async def ready(self) -> Dialect:
        """Wait until it can be talked to. Raises BindError when it ends before."""
        ...

    def entered(self) -> None:
        """It is told that its session is entered: the node has no more work with its start."""
        ...

    def last_words(self) -> str:
        """The end of what it wrote to stderr, empty when there is nothing."""
        ...

    def terminate(self) -> None:
        """Ask all its processes to end."""
        ...

    def kill(self) -> None:
        """End all its processes."""
        ...

    async def dispose(self) -> None:
        """Let go of what it used, after `ended`."""
        ...


class Usage(msgspec.Struct, frozen=True):
    """What an instance used. `kills` counts its processes that were killed because memory ran out, `written` bytes that
    went to its log, `sent` and `received` bytes to and from what its network lists."""

    cpu: float = 0.0  # seconds of processor time
    peak_memory: int = 0  # bytes
    kills: int = 0
    written: int = 0
    sent: int = 0
    received: int = 0

    def and_then(self, later: Usage) -> Usage:
        """Of two programs, one after the other."""
        return Usage(
            self.cpu + later.cpu,
            max(self.peak_memory, later.peak_memory),
            self.kills + later.kills,
            self.written + later.written,
            self.sent + later.sent,
            self.received + later.received,
        )


@runtime_checkable
class Measured(Protocol):
    """An instance that may know what it used."""

    def usage(self) -> Usage | None:
        """So far, until it is disposed of; None when nobody counts."""
        ...

    def lap(self) -> Usage | None:
        """Since this was asked before; the peak is that of the program that runs."""
        ...


class Shim(Protocol):
    """Starts instances. `missing` says why this node can't run it, empty = it can."""

    missing: str

    async def prepare(self, launch: Launch) -> Launch:
        """What the instance needs is there afterwards: its package. It may take long. Raises BindError."""
        ...

    async def start(self, launch: Launch, owner: Owner) -> Instance:
        """Start one, or take one that was started ahead; it may not be ready yet. Raises BindError."""
        ...

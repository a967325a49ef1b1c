"""The stdio shim: an instance is a program that talks over its stdin and stdout. Its stderr is its log.

A label of the application says in which form: `stdio=framed` (the instance link), `stdio=lines` (a line of JSON per
task, the default), `stdio=once` (a process per task, stdio_once.py). In the first two forms stdin and stdout are one
socket, which a byte stream in both directions is simplest with.
"""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Iterable
from typing import Protocol

import msgspec

from flame.model.errors import InvalidArgumentError
from flame.model.states import BindCode
from flame.shims.processes import Process, Program, describe_status
from flame.shims.shim import BindError, Dialect, Instance, Launch, Owner
from flame.shims.stdio_framed import FramedStream
from flame.shims.stdio_lines import LinesStream
from flame.shims.stdio_once import OnceInstance
from flame.shims.workplace import Workplace, Workshop, in_words

FORMS = ("framed", "lines", "once")
_MAX_CONCURRENCY = 10_000
_LAST_WORDS_S = 2.0
# The keeper gives programs no stdin of their own: the shell takes it from where stdout goes.
_STDIN_IS_STDOUT = 'exec "$0" "$@" <&1'


class Form(msgspec.Struct, frozen=True):
    """How a program talks, and how many tasks it wants at once (lines only)."""

    name: str = "lines"
    concurrency: int = 1


def label_values(labels: Iterable[str]) -> dict[str, str]:
    """The labels of the shape `name=value`."""
    return {name: value for name, found, value in (label.partition("=") for label in labels) if found}


def concurrency_of(text: str) -> int:
    """A label's or header's number of tasks at once. Raises InvalidArgumentError."""
    if not text.isdecimal() or not text.isascii() or not 1 <= int(text) <= _MAX_CONCURRENCY:
        raise InvalidArgumentError(f"concurrency must be a number from 1 to {_MAX_CONCURRENCY}, not {text[:20]!r}")
    return int(text)


def form_of(labels: Iterable[str]) -> Form:
    """What an application's labels say. Raises InvalidArgumentError."""
    values = label_values(labels)
    name = values.get("stdio", "lines")
    if name not in FORMS:
        raise InvalidArgumentError(f"unknown label stdio={name}", remedy=f"write stdio= and one of {', '.join(FORMS)}")
    concurrency = concurrency_of(values.get("concurrency", "1"))
    if concurrency > 1 and name != "lines":
        raise InvalidArgumentError(
            f"the label concurrency={concurrency} means nothing with stdio={name}", remedy="leave it out"
        )
    return Form(name, concurrency)


class StdioShim:
    """Starts programs and talks with them over stdin and stdout."""

    def __init__(self, workshop: Workshop) -> None:
        self._workshop = workshop

    async def prepare(self, launch: Launch) -> Launch:
        """Install the application's package if it is not there yet. Raises BindError with code 10."""
        return await self._workshop.prepare(launch)

    async def start(self, launch: Launch, owner: Owner) -> Instance:
        """Start the application's command; in the form `once` only look for it. Raises BindError with code 11."""
        try:
            form = form_of(launch.application.labels)
        except InvalidArgumentError as error:
            raise BindError(BindCode.START, in_words(error)) from None
        place = await self._workshop.open(launch)
        if form.name == "once":
            return OnceInstance(place, owner)
        stream = (
            FramedStream(owner, place.max_payload)
            if form.name == "framed"
            else LinesStream(owner, launch.context.session_id, place.max_payload, form.concurrency)
        )
        instance = StreamInstance(place, stream)
        try:
            await instance.start(form.name)
        except BaseException:
            await place.close()
            raise
        return instance


class Stream(Protocol):
    """One way to talk over the socket: a protocol of asyncio that becomes a dialect. `over` is done when nothing more
    can come from the program."""

    over: asyncio.Future[None]

    def make(self) -> asyncio.Protocol:
        """What the socket's transport is connected to."""
        ...

    async def ready(self) -> Dialect:
        """The dialect, once the program can be talked to. Raises BindError when it talks nonsense."""
        ...

    def last_call(self) -> None:
        """The program has ended: read what it left."""
        ...


class StreamInstance:
    """One process with a socket as its stdin and stdout."""

    def __init__(self, place: Workplace, stream: Stream) -> None:
        self.pid = 0
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._place = place
        self._stream = stream
        self._dialect: Dialect | None = None
        self._process: Process | None = None
        self._ending: asyncio.Task[None] | None = None

    async def start(self, form: str) -> None:
        """Start the process. Raises BindError."""
        found = self._place.program
        command = ["sh", "-c", _STDIN_IS_STDOUT, found.path, *found.argv[1:]]
        env = self._place.variables(FLAME_INSTANCE_STDIO=form)
        ours, theirs = socket.socketpair()
        with theirs:
            ours.setblocking(False)
            loop = asyncio.get_running_loop()
            self._transport, _ = await loop.create_unix_connection(self._stream.make, sock=ours)
            try:
                self._process = await self._place.start(Program("/bin/sh", command, env, found.cwd), theirs.fileno())
            except BaseException:
                self._transport.abort()
                raise
        self.pid = self._process.pid
        self._process.ended.add_done_callback(self._on_exit)

    async def ready(self) -> Dialect:
        """Wait until it can be talked to. Raises BindError (11) when it ends before or talks nonsense."""
        becoming = asyncio.ensure_future(self._stream.ready())
        try:
            await asyncio.wait({becoming, self.ended}, return_when=asyncio.FIRST_COMPLETED)
            if becoming.done():
                self._dialect = becoming.result()
                return self._dialect
        finally:
            becoming.cancel()
        raise BindError(BindCode.START, f"the instance {self.ended.result()} before it was ready{self.last_words()}")

    def entered(self) -> None:
        pass

    def last_words(self) -> str:
        return self._place.last_words()

    def terminate(self) -> None:
        if self._process is not None:
            self._process.signal(signal.SIGTERM)

    def kill(self) -> None:
        if self._process is not None:
            self._process.signal(signal.SIGKILL)

    async def dispose(self) -> None:
        """Close its socket and its log, remove its folder."""
        if self._dialect is not None:
            self._dialect.close()
        self._transport.abort()
        await self._place.close()

    def _on_exit(self, status: asyncio.Future[int]) -> None:
        self._ending = asyncio.get_running_loop().create_task(self._end(describe_status(status.result())))

    async def _end(self, how: str) -> None:
        """What it said before its end counts: it has ended when that is read."""
        self._stream.last_call()
        # Somebody whom it gave its socket may keep it open.
        await asyncio.wait({self._stream.over}, timeout=_LAST_WORDS_S)
        self.ended.set_result(how)

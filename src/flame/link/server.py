"""The listening side of the framed carrier: reads HELLO, asks `accept`, answers WELCOME or ERROR."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from ssl import SSLContext

from flame.link.address import Address, unix
from flame.link.connection import HELLO_TIMEOUT, MAX_HELLO, Link, check_version
from flame.link.doorway import Doorway
from flame.link.framed import FramedCarrier
from flame.link.frames import DEFAULT_MAX_PAYLOAD, FRAME_SLACK, VERSION, Frame, Kind
from flame.link.memory import MemoryCarrier, join
from flame.model.errors import FlameError, InternalError, InvalidConfigError, ProtocolError
from flame.proto import link_pb2

logger = logging.getLogger("flame.link")

Accept = Callable[[Link], Awaitable[link_pb2.Welcome]]
_BACKLOG = 1024


class Greeter:
    """The answering side's half of the greeting, for any carrier."""

    def __init__(self, accept: Accept, *, max_frame: int, heartbeat: float | None) -> None:
        self._accept = accept
        self._max_frame = max_frame
        self._heartbeat = heartbeat
        self._deadlines: dict[Link, asyncio.TimerHandle] = {}
        self._answering: dict[Link, asyncio.Task[None]] = {}
        self._closed_unheard: set[Link] = set()  # closed while `accept` had not yet set who wants to know
        self.links: set[Link] = set()
        self.on_refused: Callable[[FlameError], None] = _nobody_asks  # of each that ends before it is welcome

    def make_link(self) -> Link:
        """A link that waits for its HELLO. The caller gives it a carrier whose limit is MAX_HELLO."""
        link = Link(self._greeted, max_frame=self._max_frame, heartbeat=self._heartbeat)
        link.on_closed = self._closed_early
        self.links.add(link)
        overdue = ProtocolError(f"no HELLO came within {HELLO_TIMEOUT:g} s")
        self._deadlines[link] = asyncio.get_running_loop().call_later(HELLO_TIMEOUT, link.close, overdue)
        return link

    def make_carrier(self) -> FramedCarrier:
        """A link, and its carrier for a socket."""
        link = self.make_link()
        carrier = FramedCarrier(link, MAX_HELLO)
        link.carry(carrier)
        link.when_gone(lambda: self.forget(link))
        return carrier

    def forget(self, link: Link) -> None:
        """The link's connection is gone."""
        self.links.discard(link)
        self._disarm(link)

    def _disarm(self, link: Link) -> None:
        deadline = self._deadlines.pop(link, None)
        if deadline is not None:
            deadline.cancel()

    def _closed_early(self, link: Link, error: FlameError | None) -> None:
        self._disarm(link)
        if link in self._answering:
            self._closed_unheard.add(link)
        if error is not None:
            self.on_refused(error)

    def _greeted(self, link: Link, frames: list[Frame]) -> None:
        first = frames[0]
        if first.kind != Kind.HELLO or first.channel or link not in self._deadlines:
            raise ProtocolError("the first frame must be a HELLO on channel 0, and the next must wait for WELCOME")
        hello = link_pb2.Hello.FromString(first.body)
        if len(frames) > 1:
            raise ProtocolError("frames came before WELCOME was sent")
        check_version(hello.version)
        self._disarm(link)
        link.hello = hello
        self._answering[link] = asyncio.get_running_loop().create_task(self._answer(link))

    async def _answer(self, link: Link) -> None:
        try:
            welcome = await self._accept(link)
        except Exception as error:
            if not isinstance(error, FlameError):
                logger.exception("accepting %s failed", link.peer.address)
                error = InternalError(f"{type(error).__name__} while the connection was set up")
            link.on_closed = self._closed_early  # whoever refused does not hear of it again
            link.close(error)
            return
        finally:
            del self._answering[link]
            closed_unheard = link in self._closed_unheard
            self._closed_unheard.discard(link)
        if closed_unheard:
            link.on_closed(link, link.error)
        welcome.version = VERSION
        if not welcome.heartbeat_ms and self._heartbeat is not None:
            welcome.heartbeat_ms = round(self._heartbeat * 1000)
        link.welcome_with(welcome)


def _nobody_asks(error: FlameError) -> None:
    """Why a connection was not welcome."""


# Servers on unix sockets without TLS, by their loop and address: see memory.py.
_NEAR: dict[tuple[asyncio.AbstractEventLoop, Address], Greeter] = {}


def dial_near(address: Address, link: Link, max_frame: int) -> bool:
    """Connect the new link with a server of this very loop, when one listens at the address."""
    greeter = _NEAR.get((asyncio.get_running_loop(), address))
    if greeter is None:
        return False
    served = greeter.make_link()
    here, there = MemoryCarrier(link, max_frame), MemoryCarrier(served, MAX_HELLO)
    peer = join(here, there)
    link.carry(here)
    served.carry(there)
    served.when_gone(lambda: greeter.forget(served))
    served.connected(peer)
    link.connected(peer)
    return True


class LinkServer:
    """A listening socket and the links that came through it."""

    def __init__(self, address: Address, greeter: Greeter) -> None:
        self.address = address
        self._greeter = greeter
        self._server: asyncio.Server | Doorway | None = None
        self._inode = 0

    def listen(self, server: asyncio.Server | Doorway) -> None:
        """The socket is open; with port 0 the address now has the real one."""
        self._server = server
        if self.address.unix:
            self._inode = Path(self.address.path).stat().st_ino
        elif not isinstance(server, Doorway):
            self.address = self.address._replace(port=server.sockets[0].getsockname()[1])

    @property
    def links(self) -> list[Link]:
        """The links that are open or in their greeting."""
        return list(self._greeter.links)

    def stop_listening(self) -> None:
        """Let nobody else in; the links that there are go on. Harmless when repeated."""
        if self._server is not None:
            self._server.close()
        near = (asyncio.get_running_loop(), self.address)
        if _NEAR.get(near) is self._greeter:
            del _NEAR[near]
        if self.address.unix:
            file = Path(self.address.path)
            with contextlib.suppress(OSError):
                if file.stat().st_ino == self._inode:  # not a successor's
                    file.unlink()

    def close(self, error: FlameError | None = None) -> None:
        """Listen no more and close all links, telling the peers `error`."""
        self.stop_listening()
        for link in self.links:
            link.close(error)

    async def wait_closed(self) -> None:
        """Wait until all connections are gone."""
        for link in self.links:
            await link.wait_closed()
        if self._server is not None:
            await self._server.wait_closed()


async def serve(
    address: Address,
    accept: Accept,
    *,
    ssl: SSLContext | None = None,
    max_frame: int = DEFAULT_MAX_PAYLOAD + FRAME_SLACK,
    heartbeat: float | None = 5.0,
    mode: int = 0o600,
    near: bool = True,
) -> LinkServer:
    """Listen for links.

    `accept` gets each link after its HELLO was read; it sets the callbacks and returns the WELCOME, or raises a
    FlameError to refuse. What it sends on the link leaves after WELCOME. `max_frame` is the longest body a peer may
    send (64 KiB before it is accepted), `heartbeat` is in seconds, `mode` the permissions of a unix socket;
    `near`: who connects from this very loop to a unix socket without TLS gets the memory carrier (memory.py). Raises
    InvalidConfigError when the address can't be used.
    """
    greeter = Greeter(accept, max_frame=max_frame, heartbeat=heartbeat)
    server = LinkServer(address, greeter)
    create = partial(
        asyncio.get_running_loop().create_unix_server if address.unix else asyncio.get_running_loop().create_server,
        greeter.make_carrier,
        ssl=ssl,
        backlog=_BACKLOG,
        ssl_handshake_timeout=HELLO_TIMEOUT if ssl is not None else None,
    )
    try:
        if address.unix:
            listening = await create(sock=_unix_socket(Path(address.path), mode))
        else:
            listening = await create(host=address.host, port=address.port)
    except OSError as error:
        raise InvalidConfigError(f"can't listen at {address}: {error.strerror or error}") from error
    server.listen(listening)
    if near and address.unix and ssl is None:
        _NEAR[asyncio.get_running_loop(), address] = greeter
    return server


def serve_few(
    path: Path,
    accept: Accept,
    *,
    max_frame: int,
    most: int,
    crowded: Callable[[], None],
    refused: Callable[[FlameError], None],
    mode: int = 0o600,
) -> LinkServer:
    """Listen at a unix socket for somebody who is not trusted: as `serve`, but without heartbeat, and for `most`
    connections only. Who tries once more ends the listening, and `crowded` is called; `refused` is called with what is
    wrong with one that is not welcome. Raises OSError."""
    greeter = Greeter(accept, max_frame=max_frame, heartbeat=None)
    greeter.on_refused = refused
    server = LinkServer(unix(path), greeter)
    server.listen(Doorway(_unix_socket(path, mode), greeter.make_carrier, most, crowded))
    return server


def _unix_socket(path: Path, mode: int) -> socket.socket:
    """A bound socket whose file has its permissions from the first moment. A dead socket's file is replaced."""
    if path.is_socket():
        path.unlink()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Linux gives the file the mode of the socket itself; the chmod afterwards undoes the umask.
        os.fchmod(sock.fileno(), mode)
        sock.bind(str(path))
        path.chmod(mode)
    except OSError:
        sock.close()
        raise
    return sock

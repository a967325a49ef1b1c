"""The connecting side of the framed carrier."""

from __future__ import annotations

import asyncio
import ssl as tls
from ssl import SSLContext

from flame.link.address import Address
from flame.link.connection import Link, OnCall, OnClosed, OnFrames, check_version
from flame.link.errors import from_wire
from flame.link.framed import FramedCarrier, loss
from flame.link.frames import DEFAULT_MAX_PAYLOAD, FRAME_SLACK, VERSION, Frame, Kind
from flame.link.server import dial_near
from flame.model.errors import FlameError, ProtocolError, UnavailableError
from flame.proto import link_pb2


class Dialer:
    """The connecting side's half of the greeting, for any carrier."""

    def __init__(self, hello: link_pb2.Hello, on_frames: OnFrames, on_closed: OnClosed, on_call: OnCall | None) -> None:
        self._hello = hello
        self._on_frames = on_frames
        self._on_closed = on_closed
        self._on_call = on_call
        self._welcomed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def make_link(self, *, max_frame: int, heartbeat: float | None) -> Link:
        """A link that waits for its WELCOME."""
        link = Link(self._greeted, max_frame=max_frame, heartbeat=heartbeat)
        self._hello.version = VERSION
        link.hello = self._hello
        link.on_closed = self._closed_early
        return link

    async def greet(self, link: Link) -> None:
        """Send HELLO and wait for the answer. Raises the error that ends the link instead of a WELCOME."""
        link.greet_with(self._hello)
        await self._welcomed

    def give_up(self, link: Link) -> None:
        """Nobody waits for the WELCOME any more."""
        self._welcomed.cancel()
        link.abort()

    def _closed_early(self, link: Link, error: FlameError | None) -> None:
        if not self._welcomed.done():
            self._welcomed.set_exception(error or UnavailableError("the link was closed before it was accepted"))

    def _greeted(self, link: Link, frames: list[Frame]) -> None:
        first = frames[0]
        if first.kind == Kind.ERROR:
            link.end(from_wire(link_pb2.Error.FromString(first.body)))
            return
        if first.kind != Kind.WELCOME or first.channel:
            raise ProtocolError("the peer did not answer HELLO with WELCOME")
        welcome = link_pb2.Welcome.FromString(first.body)
        check_version(welcome.version)
        link.on_frames, link.on_closed, link.on_call = self._on_frames, self._on_closed, self._on_call
        if welcome.heartbeat_ms and link.heartbeat is not None:
            link.heartbeat = min(link.heartbeat, welcome.heartbeat_ms / 1000)
        link.open(welcome)
        if not self._welcomed.done():
            self._welcomed.set_result(None)
        if len(frames) > 1:
            link.received(frames[1:], True)


async def connect(
    address: Address,
    hello: link_pb2.Hello,
    *,
    ssl: SSLContext | None = None,
    server_hostname: str | None = None,
    timeout: float = 10.0,
    on_frames: OnFrames,
    on_closed: OnClosed,
    on_call: OnCall | None = None,
    max_frame: int = DEFAULT_MAX_PAYLOAD + FRAME_SLACK,
    heartbeat: float | None = 5.0,
) -> Link:
    """Connect and greet; `timeout` and `heartbeat` in seconds, `max_frame` in bytes.

    `on_frames` may be called before this returns. `on_closed` is called only for a link that was returned. Raises
    UnavailableError when nobody answers, UnauthenticatedError when TLS or the peer refuses, or the peer's error.
    """
    dialer = Dialer(hello, on_frames, on_closed, on_call)
    link = dialer.make_link(max_frame=max_frame, heartbeat=heartbeat)
    name = (server_hostname or address.host) if ssl is not None else None
    try:
        async with asyncio.timeout(timeout):
            if ssl is not None or not dial_near(address, link, max_frame):
                await _dial(address, link, max_frame, ssl, name)
            await dialer.greet(link)
    except FlameError:
        raise
    except TimeoutError:
        dialer.give_up(link)
        raise UnavailableError(f"{address} did not answer within {timeout:g} s") from None
    except tls.SSLError as error:
        raise loss(error) from error
    except OSError as error:
        raise UnavailableError(f"can't connect to {address}: {error.strerror or error}") from error
    except asyncio.CancelledError:
        dialer.give_up(link)
        raise
    return link


async def _dial(address: Address, link: Link, max_frame: int, ssl: SSLContext | None, name: str | None) -> None:
    """Give the link a socket that is connected to the address."""
    loop = asyncio.get_running_loop()
    carrier = FramedCarrier(link, max_frame)
    link.carry(carrier)
    if address.unix:
        await loop.create_unix_connection(lambda: carrier, address.path, ssl=ssl, server_hostname=name)
    else:
        await loop.create_connection(lambda: carrier, address.host, address.port, ssl=ssl, server_hostname=name)

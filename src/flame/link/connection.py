"""One connection of the link, seen the same from both ends and over every carrier.

A link begins in the greeting: the connecting side sends HELLO, the other answers WELCOME or ERROR. Then frames flow
both ways until either side closes. PING, PONG, ERROR on channel 0 and calls are handled here; everything else goes to
`on_frames`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Protocol

from google.protobuf.message import DecodeError

from flame.link.calls import Calls
from flame.link.errors import from_wire, to_wire
from flame.link.frames import FIRST_KIND, FRAME_SLACK, VERSION, Frame, Kind
from flame.link.peer import PeerInfo
from flame.model.errors import FlameError, InternalError, ProtocolError, UnavailableError
from flame.proto import link_pb2

logger = logging.getLogger("flame.link")

HIGH_WATER = 1 << 20
MAX_HELLO = 64 * 1024
HELLO_TIMEOUT = 10.0
MAX_SILENT = 3
MAX_PINGS = 100  # in one read: who sends more has no heart that beats, but wants to keep this side busy

OnFrames = Callable[["Link", list[Frame]], None]
OnClosed = Callable[["Link", FlameError | None], None]
OnCall = Callable[["Link", str, bytes], Awaitable[bytes] | AsyncIterator[bytes]]


class Carrier(Protocol):
    """What moves the frames of one link. See FramedCarrier for what each does."""

    max_frame: int
    heard: bool

    @property
    def buffered(self) -> int: ...
    def write(self, kind: int, channel: int, body: bytes, flags: int) -> None: ...
    def flush(self) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def finish(self) -> None: ...
    def abort(self) -> None: ...


def _ignore_frames(link: Link, frames: list[Frame]) -> None:
    raise ProtocolError(f"nothing is expected here, but a frame of kind {frames[0].kind} came")


def _resolve(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def _ignore_closed(link: Link, error: FlameError | None) -> None:
    pass


class Link:
    """One connection. Use it from its event loop only.

    `on_frames` gets all frames of one read (never kinds below 16, except ERROR on a channel other than 0) and may
    raise a FlameError to end the link with it. `on_closed` is called exactly once, after the last `on_frames`, with
    the error that ended the link, or None when this side closed it without one.
    """

    def __init__(self, greet: OnFrames, *, max_frame: int, heartbeat: float | None) -> None:
        """`greet` gets the frames of the greeting; each side has its own. `heartbeat` is in seconds."""
        self.peer = PeerInfo()
        self.hello = link_pb2.Hello()
        self.welcome = link_pb2.Welcome()
        self.on_frames: OnFrames = _ignore_frames
        self.on_closed: OnClosed = _ignore_closed
        self.on_call: OnCall | None = None
        self.closed = False
        self.error: FlameError | None = None  # why it was closed
        self.max_frame = max_frame
        self.heartbeat = heartbeat
        self._loop = asyncio.get_running_loop()
        self._carrier: Carrier
        self._calls: Calls | None = Calls(self)
        self._paused = False
        self._greeting = True
        self._greet = greet
        # Frames that are sent before the greeting is over wait here.
        self._early: list[Frame] | None = []
        self._drain_waiters: list[Callable[[], object]] = []
        self._gone: asyncio.Future[None] = self._loop.create_future()
        self._silent = 0
        self._timer: asyncio.TimerHandle | None = None

    # --- use -----------------------------------------------------------------------------------------------------

    def send(self, kind: int, channel: int, body: bytes = b"", flags: int = 0) -> None:
        """Queue one frame. Never blocks; does nothing once the link is closed."""
        if self._early is None:
            self._carrier.write(kind, channel, body, flags)
        elif not self.closed:
            self._early.append(Frame(kind, channel, body, flags))

    def flush(self) -> None:
        """Hand over what is queued now, rather than at the end of this loop iteration."""
        if not self.closed:
            self._carrier.flush()

    @property
    def buffered(self) -> int:
        """Bytes not yet handed to the kernel."""
        return 0 if self.closed else self._carrier.buffered

    async def drain(self) -> None:
        """Wait until `buffered` is at most HIGH_WATER (1 MiB), or the link is closed."""
        while self.buffered > HIGH_WATER:
            waiter: asyncio.Future[None] = self._loop.create_future()
            self.when_drained(partial(_resolve, waiter))
            await waiter

    def when_drained(self, callback: Callable[[], object]) -> None:
        """Call back once when `buffered` is at most HIGH_WATER, or the link is closed."""
        if self.buffered <= HIGH_WATER:
            self._loop.call_soon(callback)
        else:
            self._drain_waiters.append(callback)

    def pause_reading(self) -> None:
        """Take nothing more from the peer, so that it stops sending once the buffers between are full."""
        if not self.closed and not self._paused:
            self._paused = True
            self._carrier.pause_reading()

    def resume_reading(self) -> None:
        """Undo pause_reading."""
        if not self.closed and self._paused:
            self._paused = False
            self._silent = 0
            self._carrier.resume_reading()

    async def call(self, method: str, request: bytes, *, timeout: float | None = None) -> bytes:
        """Call a method of the peer; `timeout` in seconds, also told to the peer.

        Raises the peer's FlameError, TimedOutError, or UnavailableError when the link ends first.
        """
        return await self._called().call(method, request, timeout)

    def stream(self, method: str, request: bytes) -> AsyncIterator[bytes]:
        """Call a method that answers with a stream. Closing the iterator ends the call at the peer."""
        return self._called().stream(method, request)

    def refuse_calls(self) -> None:
        """From now on a call, or anything that belongs to one, ends the link: neither side makes any here."""
        self._calls = None

    def close(self, error: FlameError | None = None) -> None:
        """End the link after what is queued has left; with an error the peer is told why."""
        if self.closed:
            return
        if error is not None:
            self._carrier.write(Kind.ERROR, 0, to_wire(error).SerializeToString(), 0)
        self._end(error)
        self._carrier.finish()

    def abort(self) -> None:
        """End the link at once; what is queued is dropped."""
        if not self.closed:
            self._end(None)
        self._carrier.abort()

    async def wait_closed(self) -> None:
        """Wait until the connection is gone, its last bytes included."""
        await asyncio.shield(self._gone)

    # --- for the sides that set a link up --------------------------------------------------------------------------

    def carry(self, carrier: Carrier) -> None:
        """Give the link the carrier that moves its frames."""
        self._carrier = carrier

    def when_gone(self, callback: Callable[[], object]) -> None:
        """Call back when the connection is gone, its last bytes included."""
        self._gone.add_done_callback(lambda _: callback())

    def greet_with(self, hello: link_pb2.Hello) -> None:
        """Send HELLO, past the frames that wait for the greeting's end."""
        self._carrier.write(Kind.HELLO, 0, hello.SerializeToString(), 0)

    def welcome_with(self, welcome: link_pb2.Welcome) -> None:
        """Send WELCOME; the greeting is over."""
        if not self.closed:
            self._carrier.write(Kind.WELCOME, 0, welcome.SerializeToString(), 0)
            self.open(welcome)

    def open(self, welcome: link_pb2.Welcome) -> None:
        """The greeting is over: frames flow."""
        self.welcome = welcome
        if self.closed:
            return
        self._greeting = False
        self._carrier.max_frame = self.max_frame = max(self.max_frame, welcome.max_payload + FRAME_SLACK)
        early, self._early = self._early or [], None
        for frame in early:
            self._carrier.write(frame.kind, frame.channel, frame.body, frame.flags)
        if self.heartbeat is not None:
            self._timer = self._loop.call_later(self.heartbeat, self._beat)

    # --- for the carrier -------------------------------------------------------------------------------------------

    def connected(self, peer: PeerInfo) -> None:
        self.peer = peer

    def received(self, frames: list[Frame], control: bool) -> None:
        if self.closed:
            return
        try:
            if self._greeting:
                self._greet(self, frames)
                return
            if control:
                frames = self._take_control(frames)
            if frames:
                self.on_frames(self, frames)
        except FlameError as error:
            self.close(error)
        except DecodeError:
            self.close(ProtocolError("the body of a frame is no valid message of its kind"))
        except Exception as error:
            logger.exception("handling frames from %s failed", self.peer.address)
            self.close(InternalError(f"{type(error).__name__} while frames were handled"))

    def failed(self, error: FlameError) -> None:
        self.close(error)

    def end(self, error: FlameError) -> None:
        """The peer ended the link with this error."""
        if not self.closed:
            self._end(error)
            self._carrier.finish()

    def drained(self) -> None:
        waiters, self._drain_waiters = self._drain_waiters, []
        for waiter in waiters:
            waiter()

    def lost(self, error: FlameError) -> None:
        if not self.closed:
            self._end(error)
        if not self._gone.done():
            self._gone.set_result(None)

    # --- inside ------------------------------------------------------------------------------------------------------

    def _take_control(self, frames: list[Frame]) -> list[Frame]:
        """Handle the link's own frames, give back the others."""
        others: list[Frame] = []
        pings = 0
        for frame in frames:
            kind = frame.kind
            if kind >= FIRST_KIND or (kind == Kind.ERROR and frame.channel):
                others.append(frame)
            elif kind == Kind.PING:
                pings += 1
                if pings > MAX_PINGS:
                    raise ProtocolError(f"more than {MAX_PINGS} pings came at once")
                # Whoever does not read what waits for it hears of us when it does, and shall not fill our memory.
                if self.buffered <= HIGH_WATER:
                    self.send(Kind.PONG, frame.channel)
            elif kind == Kind.ERROR:
                if others:
                    self.on_frames(self, others)
                self.end(from_wire(link_pb2.Error.FromString(frame.body)))
                return []
            elif kind in (Kind.CALL, Kind.REPLY, Kind.HANGUP, Kind.TAKEN):
                if self._calls is None:
                    raise ProtocolError("no calls are made here")
                self._calls.received(frame, self._handle_call if self.on_call is not None else None)
            elif kind != Kind.PONG:
                raise ProtocolError(f"{Kind(kind).name} belongs to the greeting, which is over")
        return others

    def _called(self) -> Calls:
        assert self._calls is not None, "this link refuses calls"
        return self._calls

    def _handle_call(self, method: str, request: bytes) -> Awaitable[bytes] | AsyncIterator[bytes]:
        assert self.on_call is not None
        return self.on_call(self, method, request)

    def _beat(self) -> None:
        """Once per heartbeat: has the peer said anything since the last time?"""
        assert self.heartbeat is not None
        if self._carrier.heard:
            self._carrier.heard = False
            self._silent = 0
        elif self._paused:
            self.send(Kind.PING, 0)  # this side does not listen, which the peer must not take for silence
        else:
            self._silent += 1
            if self._silent >= MAX_SILENT:
                seconds = self.heartbeat * MAX_SILENT
                self.close(UnavailableError(f"nothing was heard from the peer for {seconds:g} s"))
                return
            self.send(Kind.PING, 0)
        self._timer = self._loop.call_later(self.heartbeat, self._beat)

    def _end(self, error: FlameError | None) -> None:
        self.closed = True
        self._early = []  # from now on send() does nothing
        if self._timer is not None:
            self._timer.cancel()
        if self._calls is not None:
            self._calls.lost(error or UnavailableError("the link was closed"))
        self.drained()
        self.error = error
        self._loop.call_soon(self._tell_closed)

    def _tell_closed(self) -> None:
        self.on_closed(self, self.error)


def check_version(version: int) -> None:
    """Raises ProtocolError when the peer speaks another version of the link."""
    if version != VERSION:
        raise ProtocolError(
            f"the peer speaks version {version} of the link, this side speaks version {VERSION}",
            remedy="use the same version of Flame on both sides",
        )

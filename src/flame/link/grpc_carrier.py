"""The gRPC carrier: each frame is one message of the bidirectional stream `flame.v1.Link/Connect`.

It costs twenty times what the framed carrier costs, and passes where only gRPC passes. This module imports grpc, so
nothing imports it before it is needed.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from flame.link.connection import MAX_HELLO, Link, OnCall, OnClosed, OnFrames
from flame.link.dialing import Dialer
from flame.link.framed import LINGER, Receiver, loss
from flame.link.frames import DEFAULT_MAX_PAYLOAD, FIRST_KIND, FRAME_SLACK, HEADER_SIZE, KNOWN_KINDS, MORE, Frame
from flame.link.peer import PeerInfo, is_loopback
from flame.link.server import Accept, Greeter
from flame.model.errors import FlameError, ProtocolError, UnauthenticatedError, UnavailableError
from flame.proto import link_pb2

SERVICE = "flame.v1.Link"
METHOD = "Connect"
_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),  # a new connection is a new connection
)
_LOW_WATER = 256 * 1024
_EOF: Any = vars(grpc.aio)["EOF"]  # the stubs do not know it


class GrpcCarrier:
    """Frames over one gRPC stream. `read` answers raw messages and EOF, `write` takes raw messages."""

    def __init__(
        self,
        receiver: Receiver,
        max_frame: int,
        read: Callable[[], Awaitable[Any]],
        write: Callable[[bytes], Awaitable[Any]],
        half_close: Callable[[], Awaitable[Any]] | None = None,
    ) -> None:
        """`half_close` tells the peer that nothing more comes; then its end is waited for. The listening side has none:
        it ends the stream by returning."""
        self.max_frame = max_frame
        self.heard = False
        self.buffered = 0
        self._receiver = receiver
        self._read = read
        self._write = write
        self._half_close = half_close
        self._out: deque[bytes] = deque()
        self._more = asyncio.Event()
        self._readable = asyncio.Event()
        self._readable.set()
        self._finishing = False
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    # --- for the link --------------------------------------------------------------------------------------------

    def write(self, kind: int, channel: int, body: bytes, flags: int) -> None:
        """Queue one frame."""
        message = link_pb2.Frame(flags=flags, channel=channel, body=body)
        message.kind = kind  # type: ignore[assignment]  # an enumeration on the wire, a number here
        self._out.append(message.SerializeToString())
        self.buffered += len(body) + HEADER_SIZE
        self._more.set()

    def flush(self) -> None:
        """Nothing to do: the writer is awake."""

    def pause_reading(self) -> None:
        self._readable.clear()

    def resume_reading(self) -> None:
        self._readable.set()

    def finish(self) -> None:
        """End the stream once everything queued has left, or after LINGER seconds."""
        self._finishing = True
        self._more.set()
        asyncio.get_running_loop().call_later(LINGER, self.abort)

    def abort(self) -> None:
        """End the stream at once."""
        if not self._ended.done():
            self._ended.set_result(None)

    # --- the stream ----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Move frames until either side ends the stream."""
        loop = asyncio.get_running_loop()
        reading, writing = loop.create_task(self._keep_reading()), loop.create_task(self._keep_writing())
        tasks = (reading, writing)
        error: BaseException | None = None
        try:
            await asyncio.wait((*tasks, self._ended), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.abort()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for task in tasks:
                if not task.cancelled() and task.exception() is not None:
                    error = error or task.exception()
            self._out.clear()
            self.buffered = 0
            self._receiver.lost(_loss(error))

    async def _keep_reading(self) -> None:
        while True:
            await self._readable.wait()
            data = await self._read()
            if data is _EOF:
                return
            self.heard = True
            if self._finishing:
                continue
            frame = self._frame(data)
            if frame is not None:
                self._receiver.received([frame], frame.kind < FIRST_KIND)

    def _frame(self, data: bytes) -> Frame | None:
        try:
            message = link_pb2.Frame.FromString(data)
        except DecodeError:
            self._receiver.failed(ProtocolError("what came is no frame of the link"))
            return None
        kind, flags, body = int(message.kind), message.flags, message.body
        if kind not in KNOWN_KINDS or flags > MORE:
            self._receiver.failed(ProtocolError(f"what came is no frame of the link (kind {kind}, flags {flags})"))
            return None
        if len(body) > self.max_frame:
            self._receiver.failed(
                ProtocolError(f"a frame of {len(body)} bytes is over the limit of {self.max_frame} bytes")
            )
            return None
        return Frame(kind, message.channel, body, flags)

    async def _keep_writing(self) -> None:
        while True:
            while self._out:
                data = self._out.popleft()
                await self._write(data)
                self.buffered = max(0, self.buffered - len(data))
                if not self._out:
                    self.buffered = 0
                if self.buffered <= _LOW_WATER:
                    self._receiver.drained()
            if self._finishing:
                if self._half_close is not None:
                    await self._half_close()
                    await asyncio.shield(self._ended)
                return
            self._more.clear()
            await self._more.wait()


def _loss(error: BaseException | None) -> FlameError:
    if isinstance(error, grpc.RpcError):
        code: Any = getattr(error, "code", lambda: None)()
        details: Any = getattr(error, "details", lambda: "")()
        if code is grpc.StatusCode.UNAUTHENTICATED:
            return UnauthenticatedError(f"the connection was refused: {details}")
        return UnavailableError(f"the connection broke: {details or code}")
    return loss(error if isinstance(error, Exception) else None)


# --- the side that listens -------------------------------------------------------------------------------------------


def peer_of_context(context: Any) -> PeerInfo:
    """What the address of a gRPC call tells of its caller; whoever serves TLS gives a better function."""
    address: str = context.peer()
    kind, _, rest = address.partition(":")
    host = rest.rpartition(":")[0].replace("%5B", "").replace("%5D", "").strip("[]")
    return PeerInfo(address=address, loopback=kind == "unix" or is_loopback(host))


def serve_grpc(
    server: Any,
    accept: Accept,
    *,
    peer: Callable[[Any], PeerInfo] = peer_of_context,
    max_frame: int = DEFAULT_MAX_PAYLOAD + FRAME_SLACK,
    heartbeat: float | None = 5.0,
) -> None:
    """Add the service `flame.v1.Link` to a `grpc.aio.Server` that is not started; `accept` is that of `link.serve`."""
    greeter = Greeter(accept, max_frame=max_frame, heartbeat=heartbeat)

    async def handle(_: object, context: Any) -> None:
        link = greeter.make_link()
        carrier = GrpcCarrier(link, MAX_HELLO, context.read, context.write)
        link.carry(carrier)
        link.connected(peer(context))
        try:
            await carrier.run()
        finally:
            greeter.forget(link)

    rpc: Any = grpc  # the stubs give handlers unknown types
    handler = rpc.method_handlers_generic_handler(SERVICE, {METHOD: rpc.stream_stream_rpc_method_handler(handle)})
    server.add_generic_rpc_handlers((handler,))


# --- the side that connects ------------------------------------------------------------------------------------------


async def connect_grpc(
    target: str,
    hello: link_pb2.Hello,
    *,
    credentials: grpc.ChannelCredentials | None = None,
    timeout: float = 10.0,
    on_frames: OnFrames,
    on_closed: OnClosed,
    on_call: OnCall | None = None,
    max_frame: int = DEFAULT_MAX_PAYLOAD + FRAME_SLACK,
    heartbeat: float | None = 5.0,
) -> Link:
    """As `link.connect`, over gRPC; `target` is `host:port`. Raises UnavailableError, UnauthenticatedError."""
    if credentials is None:
        channel: Any = grpc.aio.insecure_channel(target, options=_OPTIONS)
    else:
        channel = grpc.aio.secure_channel(target, credentials, options=_OPTIONS)
    stream: Any = channel.stream_stream(f"/{SERVICE}/{METHOD}")()
    dialer = Dialer(hello, on_frames, on_closed, on_call)
    link = dialer.make_link(max_frame=max_frame, heartbeat=heartbeat)
    carrier = GrpcCarrier(link, max_frame, stream.read, stream.write, stream.done_writing)
    link.carry(carrier)
    link.connected(PeerInfo(address=target))

    async def run() -> None:
        try:
            await carrier.run()
        finally:
            stream.cancel()
            await channel.close()

    running = asyncio.get_running_loop().create_task(run())
    link.when_gone(lambda: running)  # the loop itself keeps no strong reference to its tasks
    try:
        async with asyncio.timeout(timeout):
            await dialer.greet(link)
    except TimeoutError as error:
        if isinstance(error, FlameError):
            raise
        link.abort()
        raise UnavailableError(f"{target} did not answer within {timeout:g} s") from None
    except asyncio.CancelledError:
        dialer.give_up(link)
        raise
    return link

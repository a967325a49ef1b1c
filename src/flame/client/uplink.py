"""The connection to one cluster over its whole life: links come and go, calls and streams see a pause.

When a link ends, another is made: at once, then after pauses that grow with the time that has passed. Streams are
taken up on it; calls that can be made twice without harm are made again. After `reconnect_timeout` without success, or
when the cluster says that trying again is no use, everything that waits fails.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import TypeVar

from google.protobuf.message import Message

from flame.client.endpoints import Dialer, Endpoint, lost_for_good
from flame.client.pending import PENDING_WARNING, PendingWatch
from flame.client.stream import TaskStream
from flame.link import Frame, Kind, Link
from flame.model.errors import (
    FlameError,
    InvalidConfigError,
    InvalidStateError,
    NotFoundError,
    PermissionDeniedError,
    ProtocolError,
    TimedOutError,
    UnauthenticatedError,
    UnavailableError,
)
from flame.proto import frontend_pb2 as fe
from flame.proto import types_pb2 as ty

logger = logging.getLogger("flame.client")

CALL_TIMEOUT = 30.0
RECONNECT_TIMEOUT = 300.0
_HOPELESS = (UnauthenticatedError, PermissionDeniedError, ProtocolError, InvalidConfigError)
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.02, 5.0
# Calls whose outcome is the same when they are made twice.
REPEATABLE = frozenset(
    {
        "GetApplication",
        "ListApplication",
        "UpdateApplication",
        "UnregisterApplication",
        "ListExecutor",
        "GetExecutor",
        "ListNodes",
        "GetNode",
        "OpenSession",
        "CloseSession",
        "GetSession",
        "ListSession",
        "GetTask",
        "CancelTask",
        "Explain",
        "UpdateTenant",
        "GetTenant",
        "ListTenants",
        "MarkNode",
        "GetCluster",
    }
)

M = TypeVar("M", bound=Message)


class Uplink:
    """See above. Use it from its event loop only."""

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        reconnect_timeout: float | None = RECONNECT_TIMEOUT,
        pending_warning: float | None = PENDING_WARNING,
        wake: Callable[[Callable[[], None]], object] | None = None,
        instance_token: bool = True,
    ) -> None:
        """`wake` runs a callable soon in the loop's thread; by default it may be called in that thread only. Both times
        in seconds."""
        self.endpoint = endpoint
        self.client_id = os.urandom(16).hex()
        self.reconnect_timeout = reconnect_timeout
        self.pending_warning = pending_warning
        self.link: Link | None = None
        self.max_payload = 0
        self._loop = asyncio.get_running_loop()
        self._wake = wake or self._loop.call_soon
        self._dialer = Dialer(endpoint, self.client_id, instance_token=instance_token)
        self._streams: dict[int, TaskStream] = {}
        self._by_session: dict[str, TaskStream] = {}
        self._known: set[str] = set()  # sessions that had a stream
        self._channel = 0
        self._changed = asyncio.Event()  # a link is there, or the reason why there will be none
        self._error: FlameError | None = None
        self._closed = False
        self._reconnecting: asyncio.Task[None] | None = None

    # --- life ------------------------------------------------------------------------------------------------------

    async def open(self, timeout: float) -> None:
        """Make the first link; `timeout` in seconds. Raises FlameError."""
        self._adopt(await self._dialer.dial(timeout, self._received, self._lost))

    async def close(self) -> None:
        """End the connection. What is unfinished fails on this side; the cluster goes on with it."""
        if self._closed:
            return
        self._closed = True
        if self._reconnecting is not None:
            self._reconnecting.cancel()
        self._give_up(InvalidStateError("the connection was closed"))
        link, self.link = self.link, None
        if link is not None:
            link.close()
            await link.wait_closed()

    def _adopt(self, link: Link) -> None:
        self.link = link
        self.max_payload = link.welcome.max_payload
        self._error = None
        self._changed.set()
        for stream in list(self._streams.values()):
            stream.connected(link, self.max_payload)

    def _lost(self, link: Link, error: FlameError | None) -> None:
        if self._closed or link is not self.link:
            return
        logger.info("the connection to %s broke: %s", self.endpoint.text, error)
        self.link = None
        self._changed.clear()
        for stream in list(self._streams.values()):
            stream.disconnected()
        self._reconnect()

    def _reconnect(self) -> None:
        if self._reconnecting is None or self._reconnecting.done():
            self._reconnecting = self._loop.create_task(self._keep_dialing())

    async def _keep_dialing(self) -> None:
        start = time.monotonic()
        while True:
            try:
                link = await self._dialer.dial(10.0, self._received, self._lost)
            except FlameError as error:
                elapsed = time.monotonic() - start
                if isinstance(error, _HOPELESS):
                    self._give_up(error)
                    return
                if why := lost_for_good(self.endpoint.text):
                    again = "run the program again; flame.connect() starts another one"
                    self._give_up(UnavailableError(why, remedy=again))
                    return
                if self.reconnect_timeout is not None and elapsed > self.reconnect_timeout:
                    self._give_up(UnavailableError(f"the cluster is gone for {elapsed:.0f} s: {error.message}"))
                    return
                pause = min(max(elapsed / 10, _SHORTEST_PAUSE), _LONGEST_PAUSE)
                await asyncio.sleep(pause * (0.5 + os.urandom(1)[0] / 512))  # so that clients do not come all at once
            except Exception as error:
                logger.exception("connecting to %s failed", self.endpoint.text)
                self._give_up(UnavailableError(f"{type(error).__name__}: {error}"))
                return
            else:
                logger.info("connected to %s again", self.endpoint.text)
                self._adopt(link)
                if not link.closed:
                    return
                self.link = None  # it broke at once, and _lost has not been called yet
                self._changed.clear()

    def _give_up(self, error: FlameError) -> None:
        self._error = error
        self._changed.set()
        streams = list(self._streams.values())
        self._streams.clear()
        self._by_session.clear()
        for stream in streams:
            stream.fail(error)

    async def _ready(self, method: str, deadline: float | None) -> Link:
        """The link, once there is one. Raises what made the connection end, or TimedOutError."""
        while True:
            if self._closed:
                raise InvalidStateError("the connection was closed", remedy="connect again")
            if self.link is not None and not self.link.closed:
                return self.link
            if self._error is not None:  # given up earlier: somebody wants it again
                self._error = None
                self._changed.clear()
            self._reconnect()
            try:
                async with asyncio.timeout(None if deadline is None else deadline - time.monotonic()):
                    await self._changed.wait()
            except TimeoutError:
                raise TimedOutError(f"{method} waited for the connection to {self.endpoint.text} in vain") from None
            if self._error is not None:
                raise self._error
            if self.link is not None and self.link.closed:
                await asyncio.sleep(0)  # _lost comes in this turn of the loop

    # --- calls -------------------------------------------------------------------------------------------------------

    async def call(self, method: str, request: Message, reply: type[M], timeout: float | None = CALL_TIMEOUT) -> M:
        """One call of Frontend; `timeout` in seconds, reconnections included. Raises FlameError."""
        deadline = None if timeout is None else time.monotonic() + timeout
        body = request.SerializeToString()
        while True:
            link = await self._ready(method, deadline)
            left = None if deadline is None else max(0.001, deadline - time.monotonic())
            try:
                return reply.FromString(await link.call(method, body, timeout=left))
            except UnavailableError as error:
                if not link.closed:
                    raise
                if method not in REPEATABLE:
                    raise UnavailableError(
                        f"the connection broke during {method}: {error.message}", remedy="look whether it was done"
                    ) from error

    async def stream(self, method: str, request: Message, reply: type[M], *, again: bool = False) -> AsyncGenerator[M]:
        """One streaming call. Raises UnavailableError when the connection breaks; the caller knows how to go on.

        `again`: it broke before, and is made again when there is a connection, however long that takes.
        """
        link = await self._ready(method, None if again else time.monotonic() + CALL_TIMEOUT)
        replies = link.stream(method, request.SerializeToString())
        try:
            async for body in replies:
                yield reply.FromString(body)
        finally:
            await replies.aclose()  # type: ignore[attr-defined]

    async def session(self, session_id: str) -> ty.Session:
        """State and counters of a session, without its common data. Raises NotFoundError."""
        request = fe.WatchSessionRequest(session_id=session_id)
        async with aclosing(self.stream("WatchSession", request, fe.SessionUpdate)) as updates:
            async for update in updates:
                return update.session  # the first one comes at once
        raise NotFoundError(f"session {session_id!r} is gone")

    def broken(self, error: FlameError) -> bool:
        """Whether this error of a call means that the link broke, so that the call may be made again. One that says
        that there will be no other link is the end."""
        if not isinstance(error, UnavailableError) or self._closed or error is self._error:
            return False
        return self.link is None or self.link.closed

    # --- sessions --------------------------------------------------------------------------------------------------

    def task_stream(self, session_id: str) -> TaskStream:
        """The stream of a session, made at the first call; a failed one is replaced. Callable in the loop only."""
        stream = self._by_session.get(session_id)
        if stream is not None and stream.error is None:
            return stream
        if stream is not None:
            self._streams.pop(stream.channel, None)
        self._channel += 1
        fresh = session_id not in self._known
        address = self.endpoint.text
        stream = TaskStream(session_id, self._channel, self._wake, self._loop.call_later, fresh=fresh, address=address)
        if self.pending_warning is not None:
            stream.watch = PendingWatch(stream, self, self.pending_warning, self._loop)
        self._known.add(session_id)
        if self._closed:
            stream.fail(InvalidStateError("the connection was closed", remedy="connect again"))
            return stream
        self._streams[stream.channel] = self._by_session[session_id] = stream
        if self.link is not None and not self.link.closed:
            stream.connected(self.link, self.max_payload)
        else:
            self._reconnect()
        return stream

    def release(self, stream: TaskStream) -> None:
        """The session is closed and all its tasks have ended: forget it."""
        if self._streams.pop(stream.channel, None) is None:
            return
        # What is submitted from now on needs another one, where the cluster refuses it.
        stream.fail(InvalidStateError(f"session <{stream.session_id}> is not open", remedy="create a new session"))
        if self._by_session.get(stream.session_id) is stream:
            del self._by_session[stream.session_id]
        if self.link is not None:
            self.link.send(Kind.DETACH, stream.channel)

    def _received(self, link: Link, frames: list[Frame]) -> None:
        if link is not self.link and self.link is not None:
            return
        for kind, channel, body, _ in frames:
            stream = self._streams.get(channel)
            if stream is not None:
                stream.received(kind, body)

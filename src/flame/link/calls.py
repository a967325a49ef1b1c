"""Calls over a link, in both directions: CALL, REPLY, HANGUP, TAKEN.

A call has the number that its caller chose as channel. Replies of a streaming call carry the flag MORE, its end is a
REPLY without it that holds an error or nothing. The side that answers stops after `WINDOW` bytes of replies that the
caller has not taken, so that a slow reader of a long stream costs neither side memory.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Protocol

from flame.link.errors import from_wire, to_wire
from flame.link.frames import MORE, Frame, Kind
from flame.model.errors import (
    ExhaustedError,
    FlameError,
    NotFoundError,
    ProtocolError,
    TimedOutError,
)
from flame.proto import link_pb2

logger = logging.getLogger("flame.link")

WINDOW = 1 << 20
_TAKEN_STEP = WINDOW // 4
# Calls that one peer may have open here at once; above it they are refused, so that a peer can't fill our memory.
MAX_SERVED = 4096
_LAST_NUMBER = 2**32 - 1

Answer = Awaitable[bytes] | AsyncIterator[bytes]
Handler = Callable[[str, bytes], Answer]


class Sender(Protocol):
    """The part of a link that calls need."""

    @property
    def buffered(self) -> int: ...
    def send(self, kind: int, channel: int, body: bytes = b"", flags: int = 0) -> None: ...
    async def drain(self) -> None: ...


class _Asked:
    """A call of ours: replies that came, and who waits for the next."""

    __slots__ = ("replies", "waiter")

    def __init__(self) -> None:
        self.replies: deque[tuple[bytes, bool] | FlameError] = deque()  # (response, whether more follow)
        self.waiter: asyncio.Future[None] | None = None

    def put(self, item: tuple[bytes, bool] | FlameError) -> None:
        self.replies.append(item)
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    async def get(self) -> tuple[bytes, bool]:
        while not self.replies:
            self.waiter = asyncio.get_running_loop().create_future()
            try:
                await self.waiter
            finally:
                self.waiter = None
        item = self.replies.popleft()
        if isinstance(item, FlameError):
            raise item
        return item


class _Served:
    """A call of the peer: the task that answers it, and how much of its answer the peer has not taken."""

    __slots__ = ("room", "task", "untaken")

    def __init__(self) -> None:
        self.task: asyncio.Task[None] | None = None
        self.untaken = 0
        self.room = asyncio.Event()

    async def wait_for_room(self) -> None:
        while self.untaken > WINDOW:
            self.room.clear()
            await self.room.wait()


class Calls:
    """The calls under way on one link."""

    def __init__(self, link: Sender) -> None:
        self._link = link
        self._asked: dict[int, _Asked] = {}
        self._served: dict[int, _Served] = {}
        self._number = 0
        self._lost: FlameError | None = None

    # --- our calls -----------------------------------------------------------------------------------------------

    async def call(self, method: str, request: bytes, timeout: float | None) -> bytes:
        """One request, one response; `timeout` in seconds. Raises the peer's error, TimedOutError, UnavailableError."""
        number, asked = self._ask(method, request, timeout)
        try:
            async with asyncio.timeout(timeout):
                response, more = await asked.get()
        except TimeoutError as error:
            if isinstance(error, FlameError):
                raise
            raise TimedOutError(f"{method} was not answered within {timeout:g} s") from None
        finally:
            self._end(number)
        if more:
            raise ProtocolError(f"{method} answers with a stream")
        return response

    async def stream(self, method: str, request: bytes) -> AsyncIterator[bytes]:
        """One request, any number of responses. Closing the iterator early tells the peer to stop."""
        number, asked = self._ask(method, request, None)
        taken = 0
        try:
            while True:
                response, more = await asked.get()
                if not more:
                    return
                yield response
                taken += len(response)
                if taken >= _TAKEN_STEP:
                    self._link.send(Kind.TAKEN, number, link_pb2.Taken(bytes=taken).SerializeToString())
                    taken = 0
        finally:
            self._end(number)

    def _ask(self, method: str, request: bytes, timeout: float | None) -> tuple[int, _Asked]:
        if self._lost is not None:
            raise self._lost
        self._number = self._number % _LAST_NUMBER + 1
        while self._number in self._asked:
            self._number = self._number % _LAST_NUMBER + 1
        asked = self._asked[self._number] = _Asked()
        call = link_pb2.Call(method=method, request=request)
        if timeout is not None:
            call.timeout_ms = max(1, min(int(timeout * 1000), 2**32 - 1))
        self._link.send(Kind.CALL, self._number, call.SerializeToString())
        return self._number, asked

    def _end(self, number: int) -> None:
        """The caller leaves; the peer hears of it if it may still be answering."""
        if self._asked.pop(number, None) is not None and self._lost is None:
            self._link.send(Kind.HANGUP, number)

    # --- the peer's frames ---------------------------------------------------------------------------------------

    def received(self, frame: Frame, handler: Handler | None) -> None:
        """Take a CALL, REPLY, HANGUP or TAKEN. Raises ProtocolError when it makes no sense."""
        kind, number = frame.kind, frame.channel
        if kind == Kind.REPLY:
            asked = self._asked.get(number)
            if asked is None:
                return  # the answer crossed our hanging up
            reply = link_pb2.Reply.FromString(frame.body)
            more = bool(frame.flags & MORE)
            if reply.HasField("error"):
                asked.put(from_wire(reply.error))
            else:
                asked.put((reply.response, more))
            if not more:
                # Whoever reads it finds it in the object; the number is free again.
                del self._asked[number]
        elif kind == Kind.CALL:
            if number in self._served:
                raise ProtocolError(f"call number {number} is in use")
            self._accept(number, link_pb2.Call.FromString(frame.body), handler)
        elif kind == Kind.HANGUP:
            served = self._served.pop(number, None)
            if served is not None and served.task is not None:
                served.task.cancel()
        elif kind == Kind.TAKEN:
            served = self._served.get(number)
            if served is not None:
                served.untaken = max(0, served.untaken - link_pb2.Taken.FromString(frame.body).bytes)
                served.room.set()

    def lost(self, error: FlameError) -> None:
        """The link is gone: our calls fail, the peer's calls are cancelled."""
        self._lost = error
        asked, self._asked = self._asked, {}
        for call in asked.values():
            call.put(error)
        served, self._served = self._served, {}
        for answer in served.values():
            if answer.task is not None:
                answer.task.cancel()

    # --- the peer's calls ----------------------------------------------------------------------------------------

    def _accept(self, number: int, call: link_pb2.Call, handler: Handler | None) -> None:
        error: FlameError
        if handler is None:
            error = NotFoundError(f"no method {call.method!r} here")
        elif len(self._served) >= MAX_SERVED:
            error = ExhaustedError(f"more than {MAX_SERVED} calls at once on one link")
        else:
            served = self._served[number] = _Served()
            served.task = asyncio.get_running_loop().create_task(self._serve(number, served, call, handler))
            return
        if self._link.buffered > WINDOW:
            raise ProtocolError("the peer goes on calling, and does not read what it is answered")
        self._reply(number, link_pb2.Reply(error=to_wire(error)))

    async def _serve(self, number: int, served: _Served, call: link_pb2.Call, handler: Handler) -> None:
        try:
            async with asyncio.timeout(call.timeout_ms / 1000 if call.timeout_ms else None):
                await self._link.drain()  # who does not read is not answered: the answers would fill our memory
                last = await self._answer(number, served, handler(call.method, call.request))
        except FlameError as error:
            last = link_pb2.Reply(error=to_wire(error))
        except TimeoutError:
            last = link_pb2.Reply(error=to_wire(TimedOutError(f"{call.method} took longer than {call.timeout_ms} ms")))
        except Exception as error:
            logger.exception("the call %s failed", call.method)
            last = link_pb2.Reply(error=to_wire(error))
        finally:
            mine = self._served.get(number) is served
            if mine:
                del self._served[number]
        if mine:
            self._reply(number, last)

    async def _answer(self, number: int, served: _Served, answer: Answer) -> link_pb2.Reply:
        if isinstance(answer, Awaitable):
            return link_pb2.Reply(response=await answer)
        try:
            async for response in answer:
                self._reply(number, link_pb2.Reply(response=response), MORE)
                served.untaken += len(response)
                await self._link.drain()
                await served.wait_for_room()
        finally:
            close = getattr(answer, "aclose", None)
            if close is not None:
                await close()
        return link_pb2.Reply()

    def _reply(self, number: int, reply: link_pb2.Reply, flags: int = 0) -> None:
        self._link.send(Kind.REPLY, number, reply.SerializeToString(), flags)

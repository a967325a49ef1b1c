"""The instance link: what an instance does that connected to the executor manager's socket."""

from __future__ import annotations

import asyncio

from flame.link import Frame, Kind, Link
from flame.model.errors import FlameError, ProtocolError
from flame.proto import shim_pb2, types_pb2
from flame.shims.link_objects import ObjectStreams
from flame.shims.shim import ObjectDoor, Owner

_OF_OBJECTS = (Kind.OBJECTS, Kind.OBJECTS_TAKEN)


class LinkDialect:
    """Talks with one instance over its link. Bodies pass unopened, both ways."""

    ends_by_itself = True

    def __init__(self, link: Link, owner: Owner, objects: ObjectDoor | None = None) -> None:
        """`objects`: where its connections to the object cache end, if the link carries those."""
        self.concurrency = max(1, link.hello.instance.concurrency)
        self._link = link
        self.owner = owner
        self._answers: dict[int, asyncio.Future[types_pb2.Result]] = {}
        self._objects = ObjectStreams(link, objects)
        link.refuse_calls()
        link.on_frames = self._on_frames
        link.on_closed = self._on_closed

    @property
    def unread(self) -> int:
        return self._link.buffered

    async def enter(self, context: shim_pb2.SessionContext) -> types_pb2.Result:
        result = await self._ask(Kind.ENTER, Kind.ENTERED, context.SerializeToString())
        self.concurrency = result.concurrency or self.concurrency
        return result

    async def leave(self) -> None:
        await self._ask(Kind.LEAVE, Kind.LEFT)

    def tasks(self, body: bytes) -> None:
        self._link.send(Kind.TASKS, 0, body)

    def cancel(self, body: bytes) -> None:
        self._link.send(Kind.CANCEL, 0, body)

    def retract(self, body: bytes) -> None:
        self._link.send(Kind.RETRACT, 0, body)

    def pause(self) -> None:
        self._link.pause_reading()

    def resume(self) -> None:
        self._link.resume_reading()

    def close(self) -> None:
        self._link.on_frames = _drop
        self._objects.close()
        self._link.abort()

    async def _ask(self, question: Kind, answer: Kind, body: bytes = b"") -> types_pb2.Result:
        waiter: asyncio.Future[types_pb2.Result] = asyncio.get_running_loop().create_future()
        self._answers[answer] = waiter
        self._link.send(question, 0, body)
        return await waiter

    def _on_frames(self, link: Link, frames: list[Frame]) -> None:
        owner = self.owner
        for frame in frames:
            if frame.kind == Kind.RESULTS:
                owner.results(frame.body)
            elif frame.kind == Kind.RETRACTED:
                owner.retracted(frame.body)
            elif frame.kind in _OF_OBJECTS:
                self._objects.received(frame)
            else:
                waiter = self._answers.pop(frame.kind, None)
                if waiter is None:
                    raise ProtocolError(f"an instance may not send a frame of kind {frame.kind} now")
                if not waiter.done():
                    waiter.set_result(types_pb2.Result.FromString(frame.body))

    def _on_closed(self, link: Link, error: FlameError | None) -> None:
        self._objects.close()
        if error is not None:
            self.owner.broken(error.message)


def _drop(link: Link, frames: list[Frame]) -> None:
    """What an instance says when nobody listens any more."""

"""The instance link over a program's stdin and stdout."""

from __future__ import annotations

import asyncio

from flame.link import FRAME_SLACK, Frame, Kind, Link
from flame.link.connection import check_version
from flame.link.framed import FramedCarrier
from flame.model.errors import FlameError, PermissionDeniedError, ProtocolError
from flame.model.states import BindCode
from flame.proto import link_pb2
from flame.shims.link_dialect import LinkDialect
from flame.shims.shim import BindError, ObjectDoor, Owner


class FramedStream:
    """The executor manager's end. The program has as long for its HELLO as for its start. `objects`: where its
    connections to the object cache end, if the link carries those."""

    def __init__(self, owner: Owner, max_payload: int, objects: ObjectDoor | None = None) -> None:
        loop = asyncio.get_running_loop()
        self.over: asyncio.Future[None] = loop.create_future()
        self.owner = owner
        self._max_payload = max_payload
        self._objects = objects
        self._dialect: asyncio.Future[LinkDialect] = loop.create_future()
        self._link = Link(self._greeted, max_frame=max_payload + FRAME_SLACK, heartbeat=None)
        self._link.on_closed = self._closed_early
        self._link.when_gone(self._gone)

    def make(self) -> asyncio.Protocol:
        carrier = FramedCarrier(self._link, self._max_payload + FRAME_SLACK)
        self._link.carry(carrier)
        return carrier

    async def ready(self) -> LinkDialect:
        return await self._dialect

    def last_call(self) -> None:
        self._link.resume_reading()

    def _greeted(self, link: Link, frames: list[Frame]) -> None:
        first = frames[0]
        if first.kind != Kind.HELLO or first.channel or len(frames) > 1:
            raise ProtocolError("the first frame must be a HELLO on channel 0, and the next must wait for WELCOME")
        hello = link_pb2.Hello.FromString(first.body)
        check_version(hello.version)
        if hello.role != "instance":
            raise PermissionDeniedError(f"an instance's HELLO has the role instance, not {hello.role!r}")
        link.hello = hello
        self._dialect.set_result(LinkDialect(link, self.owner, self._objects))
        link.welcome_with(link_pb2.Welcome(max_payload=self._max_payload))

    def _closed_early(self, link: Link, error: FlameError | None) -> None:
        # Without anything said the program has ended, and its exit status says more.
        if isinstance(error, ProtocolError | PermissionDeniedError) and not self._dialect.done():
            why = f"what the instance wrote to stdout is not the link: {error.message}"
            self._dialect.set_exception(BindError(BindCode.START, why))

    def _gone(self) -> None:
        if not self.over.done():
            self.over.set_result(None)

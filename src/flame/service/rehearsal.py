"""A session of nobody, run through an instance that waits for a real one. What is done for the first time takes long
where the processor is emulated: a copy of a saved machine does it before somebody waits for the outcome."""

from __future__ import annotations

import os
import select
import signal
import socket

from flame.proto import link_pb2, shim_pb2
from flame.service.api import FlameService, TaskContext
from flame.service.sequential import STRIKE, Sequential
from flame.service.wire import Frame, Wire

TYPE_CHECKING = False  # like typing's, without its import
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_QUIET_MS = 30  # with nothing sent for so long, nobody waits


class Nothing(FlameService):
    """Does nothing."""

    def on_task_invoke(self, context: TaskContext) -> bytes | None:
        return context.input


class Play:
    """What is rehearsed: who plays the service, the common data of the session, and the inputs of its tasks. A service
    that has a method `play` gives its own; what it does must leave nothing behind that a session could see."""

    def __init__(
        self, service: FlameService, common_data: bytes | None = None, inputs: Sequence[bytes] = (b"x",)
    ) -> None:
        self.service = service
        self.common_data = common_data
        self.inputs = inputs


def rehearse(service: FlameService | None = None) -> None:
    """Enter a session, run its tasks, leave: as this service plays it. Changes nothing that can be seen."""
    own: Callable[[], Play] | None = getattr(service, "play", None)
    play = Play(Nothing()) if own is None else own()
    known = {name: os.environ.get(name) for name in ("FLAME_SESSION_ID", "FLAME_EXECUTOR_ID", "FLAME_INSTANCE_TOKEN")}
    handler = signal.getsignal(STRIKE)
    ours, theirs = socket.socketpair()
    tasks = link_pb2.Tasks(task_ids=range(1, len(play.inputs) + 1), inputs=play.inputs)
    context = shim_pb2.SessionContext(session_id="none", common_data=play.common_data)
    frames: list[Frame] = [
        (link_pb2.ENTER, context.SerializeToString()),
        (link_pb2.TASKS, tasks.SerializeToString()),
    ]
    with ours, theirs:
        other = Wire(theirs)
        other.write(link_pb2.LEAVE)
        _serve(play.service, Wire(ours), frames)
        other.read(wait=True)
    signal.signal(STRIKE, handler)
    for name, value in known.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


def _serve(service: FlameService, wire: Wire, frames: list[Frame]) -> None:
    sequential = Sequential(service, wire)
    rest = sequential.serve(frames)
    if rest is None:
        return
    import asyncio

    from flame.service.concurrent import Concurrent

    async def serve() -> None:
        await Concurrent(service, wire, 1, sequential.entered).serve(rest)

    asyncio.run(serve())


def quiet(wire: Wire) -> bool:
    """Whether nothing comes for a moment."""
    poll = select.poll()
    poll.register(wire.sock, select.POLLIN)
    return not poll.poll(_QUIET_MS)

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

_QUIET_MS = 30  # with nothing sent for so long, nobody waits


class Nothing(FlameService):
    """Does nothing."""

    def on_task_invoke(self, context: TaskContext) -> bytes | None:
        return context.input


def rehearse() -> None:
    """Enter a session, run a task, leave. Changes nothing that can be seen."""
    known = {name: os.environ.get(name) for name in ("FLAME_SESSION_ID", "FLAME_EXECUTOR_ID", "FLAME_INSTANCE_TOKEN")}
    handler = signal.getsignal(STRIKE)
    ours, theirs = socket.socketpair()
    tasks = link_pb2.Tasks(task_ids=[1], inputs=[b"x"])
    frames: list[Frame] = [
        (link_pb2.ENTER, shim_pb2.SessionContext(session_id="none").SerializeToString()),
        (link_pb2.TASKS, tasks.SerializeToString()),
    ]
    with ours, theirs:
        other = Wire(theirs)
        other.write(link_pb2.LEAVE)
        Sequential(Nothing(), Wire(ours)).serve(frames)
        other.read(wait=True)
    signal.signal(STRIKE, handler)
    for name, value in known.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


def quiet(wire: Wire) -> bool:
    """Whether nothing comes for a moment."""
    poll = select.poll()
    poll.register(wire.sock, select.POLLIN)
    return not poll.poll(_QUIET_MS)

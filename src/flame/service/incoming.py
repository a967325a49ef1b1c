"""What an instance is sent, in the form that its handlers and its queue want."""

from __future__ import annotations

from itertools import repeat

from flame.proto import link_pb2, shim_pb2
from flame.service.api import ApplicationContext, SessionContext

Queued = tuple[int, "bytes | None", int]  # task id, input, attempt


def queued(body: bytes) -> zip[Queued]:
    """The tasks of a wire Tasks."""
    tasks = link_pb2.Tasks.FromString(body)
    inputs: list[bytes | None] = list(tasks.inputs)
    for index in tasks.absent:
        inputs[index] = None
    return zip(tasks.task_ids, inputs, tasks.attempts or repeat(1), strict=False)


def session_context(wire: shim_pb2.SessionContext) -> SessionContext:
    """What on_session_enter gets."""
    sent = wire.application

    def text(field: str) -> str | None:
        return getattr(sent, field) if sent.HasField(field) else None  # pyright: ignore[reportArgumentType]

    application = ApplicationContext(
        name=sent.name,
        image=text("image"),
        command=text("command"),
        working_directory=text("working_directory"),
        url=text("url"),
        installer=text("installer"),
        shim=sent.shim,
    )
    return SessionContext(wire.common_data if wire.HasField("common_data") else None, wire.session_id, application)

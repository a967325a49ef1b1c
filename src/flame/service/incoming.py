"""What an instance is sent, in the form that its handlers and its queue want."""

from __future__ import annotations

import os
from itertools import repeat

from flame.proto import link_pb2, shim_pb2
from flame.service.api import ApplicationContext, GangContext, SessionContext

TYPE_CHECKING = False  # like typing's, without its import
if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable, MutableMapping

_CO_COROUTINE = 0x80  # of a code object; inspect.iscoroutinefunction would import half of the library for it

Queued = tuple[int, "bytes | None", int]  # task id, input, attempt


def is_coroutine(handler: object) -> bool:
    """Whether a call of the handler makes a coroutine: `async def`, also through a bound method."""
    code = getattr(handler, "__code__", None)
    return code is not None and bool(code.co_flags & _CO_COROUTINE)


def queued(body: bytes) -> zip[Queued]:
    """The tasks of a wire Tasks."""
    tasks = link_pb2.Tasks.FromString(body)
    inputs: list[bytes | None] = list(tasks.inputs)
    for index in tasks.absent:
        inputs[index] = None
    return zip(tasks.task_ids, inputs, tasks.attempts or repeat(1), strict=False)


def named_by(cancel: link_pb2.Cancel) -> Callable[[int], bool]:
    """Tells whether a Cancel names a task."""
    ranges = [(wanted.first, wanted.last) for wanted in cancel.task_ids]
    return lambda task_id: any(first <= task_id <= last for first, last in ranges)


def take_out(queue: deque[Queued], named: Callable[[int], bool]) -> list[Queued]:
    """Remove the tasks that are named; the others keep their order. Answers those removed."""
    tasks = list(queue)
    queue.clear()
    queue.extend(task for task in tasks if not named(task[0]))
    return [task for task in tasks if named(task[0])]


def begin_session(wire: shim_pb2.SessionContext, environ: MutableMapping[str, str] = os.environ) -> SessionContext:
    """What on_session_enter gets. The environment says whose instance this is from now on: one that was started ahead
    did not know."""
    environ["FLAME_SESSION_ID"] = wire.session_id
    if wire.executor_id:
        environ["FLAME_EXECUTOR_ID"] = wire.executor_id
    if wire.token:
        environ["FLAME_INSTANCE_TOKEN"] = wire.token
    gang = None
    if wire.HasField("gang"):
        gang = GangContext(wire.gang.rank, wire.gang.world_size, tuple(wire.gang.addresses))
    common_data = wire.common_data if wire.HasField("common_data") else None
    return SessionContext(common_data, wire.session_id, _application_context(wire.application), gang)


def _application_context(sent: shim_pb2.ApplicationContext) -> ApplicationContext:

    def text(field: str) -> str | None:
        return getattr(sent, field) if sent.HasField(field) else None  # pyright: ignore[reportArgumentType]

    return ApplicationContext(
        name=sent.name,
        image=text("image"),
        command=text("command"),
        working_directory=text("working_directory"),
        url=text("url"),
        installer=text("installer"),
        shim=sent.shim,
    )

"""The durable facts: what the `meta` of each kind of journal record holds, packed with msgpack.

A struct's fields may only be added at the end and with defaults, so that older journals stay readable.
"""

from __future__ import annotations

import msgspec

from flame.model.specs import NO_OPTIONS, ApplicationSpec, SessionSpec, TaskOptions
from flame.model.states import TaskState
from flame.model.tenants import TenantSpec


class Generation(msgspec.Struct, gc=False, array_like=True):
    generation: int


class ApplicationMeta(msgspec.Struct, gc=False, array_like=True):
    name: str
    spec: ApplicationSpec
    created: int
    version: int = 1


class NameMeta(msgspec.Struct, gc=False, array_like=True):
    name: str


class SessionMeta(msgspec.Struct, gc=False, array_like=True):
    spec: SessionSpec
    created: int


class TimeMeta(msgspec.Struct, gc=False, array_like=True):
    time: int


class SubmittedMeta(msgspec.Struct, gc=False, array_like=True):
    first: int  # task id
    count: int
    client: str
    first_seq: int
    time: int
    options: TaskOptions = NO_OPTIONS


class Finish(msgspec.Struct, gc=False, array_like=True):
    """A task that ended without an executor's word: cancelled, retries used up, session closed."""

    task_id: int
    state: TaskState
    code: int
    message: str
    retryable: bool = False


class FinishedMeta(msgspec.Struct, gc=False, array_like=True):
    """Tasks that ended: `spans` (closed ranges of ids) are in the Results body of this record, those of `unsuccessful`
    with the given state, the others succeeded; `finished` were ended by the engine."""

    time: int
    executor: str = ""
    spans: list[tuple[int, int]] = []
    unsuccessful: list[tuple[int, int]] = []  # (task id, state)
    finished: list[Finish] = []


class RetriedMeta(msgspec.Struct, gc=False, array_like=True):
    """Tasks that go back: (task id, next attempt, failures so far, instances it took down so far)."""

    tasks: list[tuple[int, int, int, int]]


class TenantMeta(msgspec.Struct, gc=False, array_like=True):
    name: str
    spec: TenantSpec
    created: int


class NodeMarkMeta(msgspec.Struct, gc=False, array_like=True):
    """`mark` is `cordon`, `drain` or `uncordon`."""

    name: str
    mark: str
    grace_ms: int
    time: int


class EventMeta(msgspec.Struct, gc=False, array_like=True):
    code: int
    message: str
    time: int


_encoder = msgspec.msgpack.Encoder()
pack = _encoder.encode


def spans_of(task_ids: list[int]) -> list[tuple[int, int]]:
    """Closed ranges covering ascending ids."""
    spans: list[tuple[int, int]] = []
    if not task_ids:
        return spans
    first = last = task_ids[0]
    for task_id in task_ids[1:]:
        if task_id != last + 1:
            spans.append((first, last))
            first = task_id
        last = task_id
    spans.append((first, last))
    return spans

"""The columns of a session: states of tasks as bytes, what was submitted together, what was answered together."""

from __future__ import annotations

import msgspec

from flame.model.specs import TaskOptions
from flame.model.states import TaskState

PENDING, RUNNING, SUCCEED = int(TaskState.PENDING), int(TaskState.RUNNING), int(TaskState.SUCCEED)


class Chunk(msgspec.Struct, gc=False):
    """Tasks that were submitted together."""

    seq: int  # key of the Submit body
    first: int  # task id
    count: int
    client: str
    first_seq: int
    options: TaskOptions  # with the session's defaults
    created: int
    remaining: int  # tasks not ended yet; 0 <= remaining <= count


class Batch(msgspec.Struct, gc=False):
    """Tasks whose results came together. seq 0: ended by the engine, see Session.finished."""

    seq: int
    time: int
    executor: str

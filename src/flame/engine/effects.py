"""What the engine wants done. A turn's answer says what must be durable before what may be said.

The shell executes `Turn.now` at once, makes `Turn.records` durable in order, and executes `Turn.after` in order once
they are (at once when there are no records and nothing earlier is waiting).
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Any

import msgspec

from flame.engine.records import Finish
from flame.model.errors import FlameError
from flame.model.specs import Gang, RecordedEvent
from flame.model.states import SessionState


class RecordKind(IntEnum):
    """Kinds of journal record. `meta` is the msgspec-msgpack form of the struct of that name in records.py."""

    GENERATION = 1
    APPLICATION = 2
    APPLICATION_GONE = 3
    SESSION = 4
    SESSION_CLOSED = 5
    SESSION_GONE = 6
    SUBMITTED = 7
    FINISHED = 8  # results from an executor, or tasks that the engine itself ended
    RETRIED = 9
    EVENT = 10
    TENANT = 11
    TENANT_GONE = 12
    NODE_MARK = 13
    NODE = 14  # one that was not known has joined
    NODE_GONE = 15


class Record(msgspec.Struct, gc=False):
    """One durable fact. `seq` grows by one for each record and is the key of its body; `session` is empty for facts
    that belong to none. Replaying all records in order of seq rebuilds the engine's durable state."""

    seq: int
    kind: int
    session: str
    meta: bytes
    body: bytes = b""


class Effect(msgspec.Struct, gc=False):
    """Base of everything the engine asks for."""


# --- to clients (after the records are durable) ----------------------------------------------------------------------


class Reply(Effect):
    """The answer to the event with this ticket: a value from engine/views.py, None, or an error."""

    ticket: int
    value: Any = None
    error: FlameError | None = None


class Accepted(Effect):
    """A submission is durable: tasks first_task_id .. first_task_id + count - 1. Answer to Submitted."""

    ticket: int
    first_seq: int
    count: int
    first_task_id: int
    error: FlameError | None = None


class Deliver(Effect):
    """Results for one client of a session. Either the whole body of record `seq` (task_ids None), or only these
    tasks of it, or (seq 0) tasks that the engine itself ended, in `finished`."""

    session_id: str
    client_id: str
    seq: int
    task_ids: Sequence[int] | None = None
    finished: Sequence[Finish] = ()


class TaskChanged(Effect):
    """Tasks that somebody watches changed."""

    session_id: str
    task_ids: Sequence[int]


class SessionChanged(Effect):
    """The session's state, counters or events changed; sent only while somebody watches it, and on each event and
    change of state to all attached clients (`events` are the new ones)."""

    session_id: str
    state: SessionState
    events: Sequence[RecordedEvent] = ()
    pending_reason: str = ""


# --- to nodes (at once) -----------------------------------------------------------------------------------------


class StartExecutor(Effect):
    """Start an instance for the session on the node. The shell builds the wire Start from the session's view."""

    node: str
    channel: int
    executor_id: str
    session_id: str
    gpus: Sequence[int] = ()
    gang: Gang | None = None


class StopExecutor(Effect):
    """Let the executor leave its session and end. grace_ms 0 = kill at once."""

    node: str
    channel: int
    grace_ms: int
    reason: str


class Part(msgspec.Struct, gc=False):
    """Tasks of one submission: columns [start, stop) of the Submit body with key `seq`, with ids from first_task_id."""

    seq: int
    start: int
    stop: int
    first_task_id: int
    attempt: int = 1


class Dispatch(Effect):
    node: str
    channel: int
    parts: Sequence[Part]
    timeout_ms: int = 0


class RetractTasks(Effect):
    """Ask for tasks sent ahead and not started, all but `keep`."""

    node: str
    channel: int
    keep: int = 0


class InterruptTasks(Effect):
    """Stop these running tasks; an instance that does not within the node's grace time is killed."""

    node: str
    channel: int
    task_ids: Sequence[int]
    reason: str


class Complain(Effect):
    """Something that administrators should read in the log."""

    text: str


# --- housekeeping ------------------------------------------------------------------------------------------------


class Forget(Effect):
    """The bodies with these keys are not needed in memory any more (they stay in the journal)."""

    seqs: Sequence[int]


class Purge(Effect):
    """The records of this session up to this seq may leave the journal; later ones are another session's."""

    session_id: str
    upto: int


class Turn(msgspec.Struct, gc=False):
    """The answer to one turn. `wake_at`: when the next Tick is needed, Unix milliseconds, 0 = no deadline pending."""

    records: list[Record]
    now: list[Effect]
    after: list[Effect]
    wake_at: int = 0

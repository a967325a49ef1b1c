"""What can happen to the engine. Each event says what happened, never what to do about it.

`ticket` numbers belong to the shell: the engine hands them back in `Reply` and `Accepted` so that the shell finds
whom to answer. Times are Unix milliseconds and come with the turn, not with the event. Bodies are the wire messages
as they arrived; the engine never opens them.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from flame.model.resources import Resources
from flame.model.specs import NO_OPTIONS, ApplicationSpec, Gang, SessionSpec, TaskOptions
from flame.model.states import ExecutorState, TaskState
from flame.model.tenants import TenantSpec


class Event(msgspec.Struct, gc=False):
    """Base of everything the engine is told."""


# --- applications and sessions -------------------------------------------------------------------------------------


class RegisterApplication(Event):
    ticket: int
    name: str
    spec: ApplicationSpec
    builtin: bool = False  # registering a built-in that exists with the same spec is no error


class UpdateApplication(Event):
    ticket: int
    name: str
    spec: ApplicationSpec


class UnregisterApplication(Event):
    ticket: int
    name: str


class CreateSession(Event):
    ticket: int
    session_id: str
    spec: SessionSpec


class OpenSession(Event):
    """Get the open session, or with a spec create it when it does not exist (and compare when it does)."""

    ticket: int
    session_id: str
    spec: SessionSpec | None = None


class CloseSession(Event):
    ticket: int
    session_id: str
    force: bool = False


class DeleteSession(Event):
    ticket: int
    session_id: str


# --- tenants and nodes, from administrators ----------------------------------------------------------------------


class SetTenant(Event):
    """Create the tenant, or with `create` False replace the spec of one that exists.

    `configured`: from the cluster's settings at start; no error when it exists, and its spec is the one that counts.
    """

    ticket: int
    name: str
    spec: TenantSpec
    create: bool = True
    configured: bool = False


class DeleteTenant(Event):
    ticket: int
    name: str


class MarkNode(Event):
    """`cordon`, `drain` or `uncordon`. `grace_ms`: how long running tasks may go on while the node drains."""

    ticket: int
    name: str
    mark: str
    grace_ms: int = 30_000


# --- tasks, from clients -------------------------------------------------------------------------------------------


class Attached(Event):
    """A client (again) follows a session. `unresolved` are closed ranges of task ids whose results it has not seen."""

    ticket: int
    session_id: str
    client_id: str
    next_seq: int = 1
    unresolved: Sequence[tuple[int, int]] = ()


class Detached(Event):
    session_id: str
    client_id: str


class Submitted(Event):
    """`count` tasks; (client_id, first_seq) makes a repeated submission harmless. `body` is a wire Submit.

    `first_seq` 0 = a submission without sequence (unary CreateTask): never recognised as repeated unless
    `options.idempotency_key` says so. `sizes` are the input lengths when known (for listings only).
    """

    ticket: int
    session_id: str
    client_id: str
    first_seq: int
    count: int
    body: bytes
    options: TaskOptions = NO_OPTIONS


class CancelTasks(Event):
    """Cancel by task id ranges, or by the client's own sequence numbers when it does not know the ids yet."""

    ticket: int
    session_id: str
    task_ids: Sequence[tuple[int, int]] = ()
    client_id: str = ""
    seqs: Sequence[tuple[int, int]] = ()
    reason: str = ""


class Watch(Event):
    """Report changes of one task (or with task_id 0 of the session) as TaskChanged effects until Unwatch."""

    session_id: str
    task_id: int = 0


class Unwatch(Event):
    session_id: str
    task_id: int = 0


# --- nodes and executors -------------------------------------------------------------------------------------------


class Held(msgspec.Struct, gc=False):
    """An executor that a node says it runs, when it joins."""

    executor_id: str
    channel: int
    session_id: str
    resreq: Resources
    state: ExecutorState
    concurrency: int
    task_ids: Sequence[int]
    attempts: Sequence[int] = ()  # empty = all 1
    pid: int = 0
    gpus: Sequence[int] = ()
    gang: Gang | None = None


class NodeJoined(Event):
    """A node's link is up. Executors of the same boot that it does not report are gone; a new boot_id loses all."""

    name: str
    boot_id: str
    hostname: str
    capacity: Resources
    arch: str = ""
    os: str = ""
    addresses: Sequence[tuple[str, str]] = ()
    held: Sequence[Held] = ()
    labels: dict[str, str] = {}
    taints: Sequence[str] = ()
    max_executors: int = 0  # 0 = as many as fit


class NodeHeartbeat(Event):
    name: str
    capacity: Resources | None = None


class NodeLeft(Event):
    """The node's link is down. Its executors are kept until the grace time is over (see Tick)."""

    name: str
    reason: str = ""


class ExecutorReported(Event):
    """The node says how far an executor is. `code` is a BindCode when binding failed.

    `cpu_ms`, `peak_memory` (bytes), `written` (bytes in its log), `sent` and `received` (bytes of its network, where
    that is a list) are what the instance of one that is gone used; 0 = nobody counted.
    """

    channel: int
    state: ExecutorState
    code: int = 0
    message: str = ""
    pid: int = 0
    concurrency: int = 1
    crashed: bool = False
    cpu_ms: int = 0
    peak_memory: int = 0
    written: int = 0
    sent: int = 0
    received: int = 0


class Failed(msgspec.Struct, gc=False):
    """One task of a result batch that did not succeed. `index` into the batch's columns."""

    index: int
    state: TaskState
    code: int
    message: str
    retryable: bool = False


class Completed(Event):
    """A wire Results from an executor: those not named in `failures` succeeded. `busy_us`: run time of all together."""

    channel: int
    task_ids: Sequence[int]
    body: bytes
    failures: Sequence[Failed] = ()
    attempts: Sequence[int] = ()  # empty = all 1
    busy_us: int = 0


class Retracted(Event):
    """Tasks that an executor gave back unstarted."""

    channel: int
    task_ids: Sequence[int]


class Tick(Event):
    """Time passes: deadlines, grace times, retention. Comes about once a second and at `Turn.wake_at`."""


class JournalFailed(Event):
    """The journal can't be written: refuse everything that would have to be durable until JournalRecovered."""

    reason: str


class JournalRecovered(Event):
    pass

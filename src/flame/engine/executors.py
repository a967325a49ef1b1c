"""Executors and nodes as the session manager sees them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flame.engine.lifecycles import EXECUTOR, NODE, step
from flame.model.resources import Resources
from flame.model.specs import Gang
from flame.model.states import ExecutorState, NodeState

if TYPE_CHECKING:
    from flame.engine.sessions import Session

AHEAD_US = 10_000  # work sent ahead to an executor: about ten milliseconds
AHEAD_TASKS = 256
LONG_US = 50_000  # tasks of this length and more are not sent ahead: waiting for the next one costs under 2 %


class Node:
    """One executor manager. `leaving` are executors on their way out that belong to no session any more, by channel.
    Invariant: allocated == sum of what its executors and those leaving hold, and fits into capacity unless that shrank.
    """

    __slots__ = (
        "addresses",
        "allocated",
        "arch",
        "boot_id",
        "capacity",
        "cordoned",
        "draining",
        "executors",
        "free_gpus",
        "heartbeat",
        "hostname",
        "labels",
        "leaving",
        "max_executors",
        "name",
        "os",
        "since",
        "state",
        "taints",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.hostname = name
        self.boot_id = ""
        self.state = NodeState.UNKNOWN
        self.since = 0
        self.capacity = Resources()
        self.allocated = Resources()
        self.free_gpus: list[int] = []
        self.arch = ""
        self.os = ""
        self.addresses: tuple[tuple[str, str], ...] = ()
        self.heartbeat = 0
        self.labels: dict[str, str] = {}
        self.taints: tuple[str, ...] = ()
        self.max_executors = 0  # 0 = as many as fit
        self.cordoned = False  # gets no new executors
        self.draining = False  # and those it has leave
        self.executors: dict[int, Executor] = {}
        self.leaving: dict[int, Resources] = {}

    def step(self, happened: str, now: int) -> None:
        self.state = step(NODE, self.state, happened)
        self.since = now

    def resize(self, capacity: Resources) -> None:
        """A new capacity; GPUs in use keep their index."""
        used = {gpu for executor in self.executors.values() for gpu in executor.gpus}
        self.free_gpus = [gpu for gpu in range(capacity.gpu) if gpu not in used]
        self.capacity = capacity


def gang_complete(session: Session) -> bool:
    """Whether all members of the session's gang are bound, so that tasks may be sent."""
    members = [executor for executor in session.executors.values() if executor.coming]
    return len(members) >= session.spec.min_instances and all(executor.bound for executor in members)


class Executor:
    """One executor: at most one session for life, `outstanding` maps the tasks it holds to their attempt, in the order
    in which it got them; an attempt of 0 marks a task that ended meanwhile and whose answer will be dropped."""

    __slots__ = (
        "channel",
        "completed",
        "concurrency",
        "draining",
        "gang",
        "gpus",
        "id",
        "idle_since",
        "leave_by",
        "leave_why",
        "node",
        "outstanding",
        "pid",
        "progress",
        "resreq",
        "retracting",
        "session",
        "since",
        "state",
    )

    def __init__(self, executor_id: str, channel: int, node: Node, session: Session, now: int) -> None:
        self.id = executor_id
        self.channel = channel
        self.node = node
        self.session = session
        self.resreq = session.resreq
        self.state = ExecutorState.VOID
        self.since = now
        self.pid = 0
        self.gpus: tuple[int, ...] = ()
        self.gang: Gang | None = None
        self.concurrency = 1
        self.outstanding: dict[int, int] = {}
        self.completed = 0
        self.progress = now  # when it last got or gave tasks
        self.idle_since = 0  # bound without a task since, 0 = not idle
        self.retracting = False
        self.draining = False  # gets no more tasks, leaves when it has none
        self.leave_by = 0  # while draining: when its tasks go back, Unix ms
        self.leave_why = ""

    def step(self, happened: str, now: int) -> None:
        state = step(EXECUTOR, self.state, happened)
        if state != self.state:
            self.state = state
            self.since = now

    @property
    def bound(self) -> bool:
        """Whether it is in its session and stays there."""
        return self.state is ExecutorState.BOUND and not self.draining

    @property
    def usable(self) -> bool:
        """Whether it may get tasks; members of a gang only when all of them are bound."""
        return self.bound and (self.gang is None or gang_complete(self.session))

    @property
    def coming(self) -> bool:
        """Whether it serves its session now or will soon."""
        return self.state in (ExecutorState.VOID, ExecutorState.BINDING, ExecutorState.BOUND) and not self.draining

    @property
    def running(self) -> int:
        """Tasks that it works on now; the others it holds were sent ahead."""
        return min(len(self.outstanding), self.concurrency)

    def credit(self, avg_us: float) -> int:
        """How many tasks it may hold, from the run time of one (-1 = unknown)."""
        if avg_us < 0 or avg_us >= LONG_US:
            return self.concurrency
        return self.concurrency + min(AHEAD_TASKS, max(1, int(AHEAD_US * self.concurrency / max(avg_us, 1.0))))

"""One session and its tasks, kept in columns: a pending million costs its payload and a few bytes each.

A submission is a *chunk*: task ids `first .. first + count - 1`, whose inputs are the columns of one Submit body,
stored under `seq`. The state of a task is one byte; where its result is, one index into the session's batches.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator
from heapq import heappush
from typing import TYPE_CHECKING

from flame.engine import lanes
from flame.engine.columns import PENDING, RUNNING, SUCCEED, Batch, Chunk
from flame.engine.lanes import Key, Lane
from flame.engine.records import Finish
from flame.model.resources import Resources
from flame.model.specs import RecordedEvent, SessionSpec
from flame.model.states import SessionState, TaskState

if TYPE_CHECKING:
    from flame.engine.executors import Executor
    from flame.engine.tenant_tree import Tenant

STORY_LENGTH = 200

__all__ = ["PENDING", "RUNNING", "SUCCEED", "Batch", "Chunk", "Session"]


class Session:
    """State of one session. Only the functions of `engine/` change it."""

    __slots__ = (
        "attached",
        "attempts",
        "avg_us",
        "barred",
        "batches",
        "began",
        "bind_failures",
        "cancelled",
        "chunk_firsts",
        "chunks",
        "client_chunks",
        "completed",
        "cpu_ms",
        "created",
        "deadlines",
        "done_in",
        "events",
        "executors",
        "failed",
        "failed_with",
        "failures",
        "finished",
        "hopeless_at",
        "id",
        "keyed",
        "keys",
        "kills",
        "lanes",
        "look_at",
        "look_ms",
        "mixed",
        "not_before",
        "paused",
        "peak_memory",
        "pending",
        "per_key",
        "priorities",
        "received",
        "replayed",
        "resreq",
        "resting",
        "running",
        "sent",
        "sole_client",
        "spec",
        "state",
        "states",
        "story",
        "succeed",
        "tenants",
        "unsettled",
        "waiting",
        "wakes",
        "watched",
        "written",
    )

    def __init__(self, session_id: str, spec: SessionSpec, resreq: Resources, created: int) -> None:
        self.id = session_id
        self.spec = spec
        self.resreq = resreq
        self.state = SessionState.OPEN
        self.created = created
        self.completed: int | None = None
        # Columns, index = task id - 1. Invariant: len(states) == len(done_in).
        self.states = bytearray()
        self.done_in = array("I")  # index into batches + 1; 0 = not ended
        self.batches: list[Batch] = []
        self.chunks: list[Chunk] = []
        self.chunk_firsts: list[int] = []
        self.client_chunks: dict[str, list[int]] = {}
        self.sole_client: str | None = None  # the only client that ever submitted, None = none or several
        # Sparse columns: tasks that are not as usual.
        self.finished: dict[int, Finish] = {}
        self.attempts: dict[int, int] = {}  # the attempt that runs or comes next, when it is not the first
        self.failures: dict[int, int] = {}  # failed attempts so far
        self.kills: dict[int, int] = {}  # instances that ended while it was on them
        self.failed_with: dict[int, str] = {}  # the text of the last of those, shortened
        self.began: dict[int, int] = {}  # of tasks with a deadline: when first sent to an executor, Unix ms
        self.keys: dict[str, int] = {}  # idempotency key -> index of its chunk
        self.deadlines: list[tuple[int, int]] = []  # a heap: (Unix ms, index of the chunk), also of chunks that ended
        self.replayed = 0  # tasks up to this id are from an earlier life of the session manager
        # Pending tasks, see lanes.py. Invariant: each is in a lane, held by its key, or resting.
        self.lanes: dict[int, Lane] = {}
        self.priorities: list[int] = []  # keys of lanes, highest last
        self.mixed = False  # tasks of different priorities were submitted
        self.keyed: dict[str, Key] = {}  # by key, those with pending or running tasks
        self.unsettled = False  # after a restart, while executors of it may still come back
        self.per_key = max(1, spec.max_running_per_key)
        self.resting: dict[int, int] = {}  # task id -> when it may run again, Unix ms
        self.wakes: list[tuple[int, int]] = []  # a heap: (Unix ms, task id), also of tasks that rest no more
        self.waiting = 0  # of the pending ones: those that rest, and those whose key has no place for them
        # Invariant: pending + running + succeed + failed + cancelled == len(states).
        self.pending = self.running = self.succeed = self.failed = self.cancelled = 0
        self.executors: dict[int, Executor] = {}
        # Of instances that ended, where somebody counted.
        self.cpu_ms = self.peak_memory = self.written = self.sent = self.received = 0
        self.avg_us = -1.0  # observed run time of one task, -1 = unknown
        self.bind_failures = 0  # in a row
        self.paused = ""  # why it gets no executors any more
        self.barred = ""  # why it gets none as long as the session manager has these settings
        self.not_before = 0  # no new executor before this time
        self.look_at = 0  # when its alarm rings that looks whether tasks wait for too long, 0 = none is set
        self.look_ms = 100  # pause before the next one
        self.hopeless_at = 0  # when its alarm rings that looks whether any node could run it, 0 = none is set
        self.tenants: tuple[Tenant, ...] = ()  # that count it while it is open: its own, and those above
        self.attached: set[str] = set()
        self.watched: dict[int, int] = {}  # task id (0 = the session) -> watchers
        self.events: list[RecordedEvent] = []
        self.story: deque[RecordedEvent] = deque(maxlen=STORY_LENGTH)

    # --- finding -----------------------------------------------------------------------------------------------

    def chunk_of(self, task_id: int) -> Chunk:
        """The chunk that holds this task id, which must exist."""
        return self.chunks[bisect_right(self.chunk_firsts, task_id) - 1]

    def client_of(self, task_id: int) -> str:
        """Who submitted the task."""
        return self.chunk_of(task_id).client if self.sole_client is None else self.sole_client

    def find_run(self, client: str, seq: int) -> int:
        """Index of the client's chunk that holds its sequence number, or -1."""
        for index in reversed(self.client_chunks.get(client, ())):
            chunk = self.chunks[index]
            if chunk.first_seq <= seq < chunk.first_seq + chunk.count:
                return index
            if chunk.first_seq and chunk.first_seq + chunk.count <= seq:
                break
        return -1

    def next_seq(self, client: str) -> int:
        """The sequence number that the client's next submission must begin with."""
        indexes = self.client_chunks.get(client)
        if not indexes:
            return 1
        last = self.chunks[indexes[-1]]
        return last.first_seq + last.count

    @property
    def total(self) -> int:
        return len(self.states)

    # --- submissions ---------------------------------------------------------------------------------------------

    def add_chunk(self, chunk: Chunk) -> None:
        """Take in a submission; its ids must continue the session's."""
        index = len(self.chunks)
        if not self.chunks:
            self.sole_client = chunk.client
        else:
            if self.sole_client != chunk.client:
                self.sole_client = None
            if self.chunks[-1].options.priority != chunk.options.priority:
                self.mixed = True
        self.chunks.append(chunk)
        self.chunk_firsts.append(chunk.first)
        self.client_chunks.setdefault(chunk.client, []).append(index)
        options = chunk.options
        if options.idempotency_key:
            self.keys[options.idempotency_key] = index
        if options.deadline_ms:
            heappush(self.deadlines, (chunk.created + options.deadline_ms, index))
        self.states.extend(bytes(chunk.count))
        self.done_in.frombytes(bytes(chunk.count * self.done_in.itemsize))
        self.pending += chunk.count
        for tenant in self.tenants:
            tenant.pending += chunk.count
        lanes.add(self, index, chunk)

    # --- endings -------------------------------------------------------------------------------------------------

    def end(self, task_id: int, state: int, batch: int) -> None:
        """Record the end of one task; `batch` is its index in batches."""
        index = task_id - 1
        if self.states[index] == PENDING:
            self.pending -= 1
            if self.waiting or self.keyed:
                lanes.withdraw(self, task_id)
        else:
            self.running -= 1
        for tenant in self.tenants:
            tenant.pending -= 1
        self.states[index] = state
        self.done_in[index] = batch + 1
        if state == SUCCEED:
            self.succeed += 1
        elif state == TaskState.FAILED:
            self.failed += 1
        else:
            self.cancelled += 1
        self.attempts.pop(task_id, None) if state == SUCCEED else None
        if self.kills or self.failures or self.began:
            self._forget_tries(task_id)

    def end_run(self, first: int, last: int, batch: int) -> None:
        """Record that the running tasks first .. last, all of them, succeeded."""
        count = last - first + 1
        self.states[first - 1 : last] = bytes((SUCCEED,)) * count
        self.done_in[first - 1 : last] = array("I", (batch + 1,)) * count
        self.running -= count
        self.succeed += count
        for tenant in self.tenants:
            tenant.pending -= count
        if self.kills or self.failures or self.began:
            for task_id in range(first, last + 1):
                self._forget_tries(task_id)

    def _forget_tries(self, task_id: int) -> None:
        self.failures.pop(task_id, None)
        self.failed_with.pop(task_id, None)
        self.kills.pop(task_id, None)
        self.began.pop(task_id, None)

    def settle(self, task_ids: Iterable[int]) -> list[int]:
        """Count down the chunks of ended tasks; answers the seqs of chunks that have no task left."""
        done: list[int] = []
        chunk: Chunk | None = None
        for task_id in task_ids:
            if chunk is None or not chunk.first <= task_id < chunk.first + chunk.count:
                chunk = self.chunk_of(task_id)
            chunk.remaining -= 1
            if chunk.remaining == 0:
                done.append(chunk.seq)
        return done

    def settle_run(self, first: int, last: int) -> list[int]:
        """As settle, for all ids from first to last."""
        done: list[int] = []
        index = bisect_right(self.chunk_firsts, first) - 1
        while first <= last:
            chunk = self.chunks[index]
            stop = min(last, chunk.first + chunk.count - 1)
            chunk.remaining -= stop - first + 1
            if chunk.remaining == 0:
                done.append(chunk.seq)
            first = stop + 1
            index += 1
        return done

    def pending_ids(self) -> Iterator[int]:
        """Ids of all pending tasks, ascending."""
        index = self.states.find(PENDING)
        while index >= 0:
            yield index + 1
            index = self.states.find(PENDING, index + 1)

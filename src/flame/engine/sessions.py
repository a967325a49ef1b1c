"""One session and its tasks, kept in columns: a pending million costs its payload and a few bytes each.

A submission is a *chunk*: task ids `first .. first + count - 1`, whose inputs are the columns of one Submit body,
stored under `seq`. The state of a task is one byte; where its result is, one index into the session's batches.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator
from heapq import heappop, heappush
from typing import TYPE_CHECKING

import msgspec

from flame.engine.effects import Part
from flame.engine.records import Finish
from flame.model.resources import Resources
from flame.model.specs import RecordedEvent, SessionSpec, TaskOptions
from flame.model.states import SessionState, TaskState

if TYPE_CHECKING:
    from flame.engine.executors import Executor

PENDING, RUNNING, SUCCEED = int(TaskState.PENDING), int(TaskState.RUNNING), int(TaskState.SUCCEED)
STORY_LENGTH = 200


class Chunk(msgspec.Struct, gc=False):
    """Tasks that were submitted together."""

    seq: int  # key of the Submit body
    first: int  # task id
    count: int
    client: str
    first_seq: int
    options: TaskOptions
    created: int
    remaining: int  # tasks not ended yet; 0 <= remaining <= count


class Batch(msgspec.Struct, gc=False):
    """Tasks whose results came together. seq 0: ended by the engine, see Session.finished."""

    seq: int
    time: int
    executor: str


class Lane:
    """Ready tasks of one priority: those given back (lowest id first), then chunks in order of submission."""

    __slots__ = ("fresh", "returned")

    def __init__(self) -> None:
        self.returned: list[int] = []
        self.fresh: deque[list[int]] = deque()  # [index of the chunk, next column]


class Session:
    """State of one session. Only the functions of `engine/` change it."""

    __slots__ = (
        "attached",
        "attempts",
        "avg_us",
        "batches",
        "bind_failures",
        "cancelled",
        "chunk_firsts",
        "chunks",
        "client_chunks",
        "completed",
        "created",
        "done_in",
        "events",
        "executors",
        "failed",
        "failures",
        "finished",
        "id",
        "keys",
        "kills",
        "lanes",
        "not_before",
        "paused",
        "pending",
        "priorities",
        "resreq",
        "running",
        "sole_client",
        "spec",
        "state",
        "states",
        "story",
        "succeed",
        "waiting",
        "watched",
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
        self.keys: dict[str, int] = {}  # idempotency key -> index of its chunk
        # Ready tasks. Invariant: pending == number of tasks in state PENDING, all of them in some lane.
        self.lanes: dict[int, Lane] = {}
        self.priorities: list[int] = []  # keys of lanes, highest first
        # Invariant: pending + running + succeed + failed + cancelled == len(states).
        self.pending = self.running = self.succeed = self.failed = self.cancelled = 0
        self.executors: dict[int, Executor] = {}
        self.avg_us = -1.0  # observed run time of one task, -1 = unknown
        self.bind_failures = 0  # in a row
        self.paused = ""  # why it gets no executors any more
        self.waiting = 0  # pending tasks that may not run yet
        self.not_before = 0  # no new executor before this time
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

    # --- ready tasks ---------------------------------------------------------------------------------------------

    def add_chunk(self, chunk: Chunk) -> None:
        """Take in a submission; its ids must continue the session's."""
        index = len(self.chunks)
        if not self.chunks:
            self.sole_client = chunk.client
        elif self.sole_client != chunk.client:
            self.sole_client = None
        self.chunks.append(chunk)
        self.chunk_firsts.append(chunk.first)
        self.client_chunks.setdefault(chunk.client, []).append(index)
        if chunk.options.idempotency_key:
            self.keys[chunk.options.idempotency_key] = index
        self.states.extend(bytes(chunk.count))
        self.done_in.frombytes(bytes(chunk.count * self.done_in.itemsize))
        self.pending += chunk.count
        self._lane(chunk.options.priority).fresh.append([index, 0])

    def give_back(self, task_id: int) -> None:
        """A task that ran or was sent ahead is ready again."""
        self.states[task_id - 1] = PENDING
        self.running -= 1
        self.pending += 1
        heappush(self._lane(self.chunk_of(task_id).options.priority).returned, task_id)

    def take_up(self, task_id: int) -> None:
        """A pending task runs already, as its executor says; it may stay in its lane, which skips it."""
        self.states[task_id - 1] = RUNNING
        self.pending -= 1
        self.running += 1

    def _lane(self, priority: int) -> Lane:
        lane = self.lanes.get(priority)
        if lane is None:
            lane = self.lanes[priority] = Lane()
            self.priorities = sorted(self.lanes, reverse=True)
        return lane

    def take(self, limit: int) -> tuple[list[Part], int]:
        """Up to `limit` ready tasks that share one timeout, as parts of chunks; marks them as running.

        A task that was on an instance when it died is taken alone, so that the next death names the culprit.
        Answers (parts, timeout in ms).
        """
        parts: list[Part] = []
        timeout = -1
        taken = 0
        for priority in self.priorities:
            lane = self.lanes[priority]
            while taken < limit and lane.returned:
                task_id = lane.returned[0]
                if self.states[task_id - 1] != PENDING:  # cancelled meanwhile
                    heappop(lane.returned)
                    continue
                chunk = self.chunk_of(task_id)
                suspect = task_id in self.kills
                if timeout not in (-1, chunk.options.timeout_ms) or (suspect and taken):
                    return parts, timeout
                heappop(lane.returned)
                timeout = chunk.options.timeout_ms
                self.states[task_id - 1] = RUNNING
                column = task_id - chunk.first
                attempt = self.attempts.get(task_id, 1)
                last = parts[-1] if parts else None
                if last is not None and last.stop == column and last.seq == chunk.seq and last.attempt == attempt:
                    last.stop += 1
                else:
                    parts.append(Part(chunk.seq, column, column + 1, task_id, attempt))
                taken += 1
                self.pending -= 1
                self.running += 1
                if suspect:
                    return parts, timeout
            while taken < limit and lane.fresh:
                cursor = lane.fresh[0]
                chunk = self.chunks[cursor[0]]
                if timeout not in (-1, chunk.options.timeout_ms):
                    return parts, timeout
                start = self.states.find(PENDING, chunk.first - 1 + cursor[1], chunk.first - 1 + chunk.count) + 1
                if start <= 0:
                    lane.fresh.popleft()
                    continue
                suspect = start in self.kills
                if suspect and taken:
                    return parts, timeout
                timeout = chunk.options.timeout_ms
                parts.append(self._next_part(chunk, cursor, start, 1 if suspect else limit - taken))
                taken += parts[-1].stop - parts[-1].start
                if suspect:
                    return parts, timeout
        return parts, max(timeout, 0)

    def _next_part(self, chunk: Chunk, cursor: list[int], start: int, limit: int) -> Part:
        """Up to `limit` neighbouring pending tasks of the chunk from task id `start` on, suspects left out; marks them
        as running. Tasks here may have been tried before, in an earlier life of the session manager."""
        stop = min(start + limit, chunk.first + chunk.count)
        run = self.states[start - 1 : stop - 1]
        length = len(run) - len(run.lstrip(b"\x00"))
        attempt = 1
        if self.attempts:
            attempt = self.attempts.get(start, 1)
            for task_id in range(start + 1, start + length):
                if task_id in self.kills or self.attempts.get(task_id, 1) != attempt:
                    length = task_id - start
                    break
        self.states[start - 1 : start - 1 + length] = bytes((RUNNING,)) * length
        self.pending -= length
        self.running += length
        column = start - chunk.first
        cursor[1] = column + length
        return Part(chunk.seq, column, column + length, start, attempt)

    # --- endings -------------------------------------------------------------------------------------------------

    def end(self, task_id: int, state: int, batch: int) -> None:
        """Record the end of one task; `batch` is its index in batches."""
        index = task_id - 1
        if self.states[index] == PENDING:
            self.pending -= 1
        else:
            self.running -= 1
        self.states[index] = state
        self.done_in[index] = batch + 1
        if state == SUCCEED:
            self.succeed += 1
        elif state == TaskState.FAILED:
            self.failed += 1
        else:
            self.cancelled += 1
        self.attempts.pop(task_id, None) if state == SUCCEED else None
        self.failures.pop(task_id, None)
        self.kills.pop(task_id, None)

    def end_run(self, first: int, last: int, batch: int) -> None:
        """Record that the running tasks first .. last, all of them, succeeded."""
        count = last - first + 1
        self.states[first - 1 : last] = bytes((SUCCEED,)) * count
        self.done_in[first - 1 : last] = array("I", (batch + 1,)) * count
        self.running -= count
        self.succeed += count
        if self.kills or self.failures:
            for task_id in range(first, last + 1):
                self.kills.pop(task_id, None)
                self.failures.pop(task_id, None)

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

"""What can be read from the engine about applications, sessions and tasks: snapshots for listings, for foreign clients
and for explaining."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import msgspec

from flame.engine import delays, obstacles
from flame.engine.delays import Reason
from flame.engine.records import Finish
from flame.engine.sessions import PENDING, Session
from flame.model.errors import NotFoundError
from flame.model.resources import Resources
from flame.model.specs import ApplicationSpec, RecordedEvent, SessionSpec
from flame.model.states import ApplicationState, SessionState, TaskState

if TYPE_CHECKING:
    from flame.engine.cluster import Cluster
    from flame.engine.executors import Executor


class ApplicationView(msgspec.Struct, gc=False):
    name: str
    spec: ApplicationSpec
    state: ApplicationState
    created: int
    version: int


class SessionView(msgspec.Struct, gc=False):
    id: str
    spec: SessionSpec
    resreq: Resources  # resolved
    state: SessionState
    created: int
    completed: int | None
    pending: int  # not on an instance, or sent ahead to one
    running: int
    succeed: int
    failed: int
    cancelled: int
    executors: int
    events: Sequence[RecordedEvent]
    pending_reason: str
    pending_since: int  # when it began to lack executors, Unix ms; 0 = it does not
    wanted: int  # executors that it could use now
    cpu_ms: int = 0  # of its instances that ended, where somebody counted
    peak_memory: int = 0  # bytes, of the largest of them
    written: int = 0  # bytes
    sent: int = 0  # bytes of their network, where that is a list
    received: int = 0


class TaskView(msgspec.Struct, gc=False):
    """One task. Its input is column `input_index` of the Submit body `input_seq`; its result, when it has one, is in
    the Results body `output_seq`; `finish` is set instead when the engine itself ended it."""

    session_id: str
    task_id: int
    state: TaskState
    created: int
    completed: int | None
    attempt: int  # the one that runs or was the last, 0 while it never ran
    executor_id: str
    input_seq: int
    input_index: int
    output_seq: int
    finish: Finish | None


class Totals(msgspec.Struct, gc=False):
    """All sessions taken together. Tasks that ended count also when their session was purged since the start."""

    open: int = 0
    closed: int = 0
    pending: int = 0  # not on an instance, or sent ahead to one
    running: int = 0
    succeed: int = 0
    failed: int = 0
    cancelled: int = 0


class ExplainView(msgspec.Struct, gc=False):
    summary: str
    reasons: Sequence[Reason]
    story: Sequence[RecordedEvent]


def _find(cluster: Cluster, session_id: str) -> Session:
    session = cluster.sessions.get(session_id)
    if session is None:
        raise NotFoundError(f"session <{session_id}> not found")
    return session


def application(cluster: Cluster, name: str) -> ApplicationView:
    found = cluster.applications.get(name)
    if found is None:
        raise NotFoundError(f"application <{name}> not found")
    return ApplicationView(found.name, found.spec, found.state, found.created, found.version)


def applications(cluster: Cluster) -> list[ApplicationView]:
    return [application(cluster, name) for name in sorted(cluster.applications)]


def _working(found: Session) -> int:
    """How many of its tasks are worked on now; others that an instance holds were sent ahead to it."""
    return min(sum(executor.running for executor in found.executors.values()), found.running)


def session_view(cluster: Cluster, found: Session) -> SessionView:
    working = _working(found)
    ask = cluster.scheduler.books.asks.get(found.id)
    return SessionView(
        found.id,
        found.spec,
        found.resreq,
        found.state,
        found.created,
        found.completed,
        found.pending + found.running - working,
        working,
        found.succeed,
        found.failed,
        found.cancelled,
        sum(executor.coming for executor in found.executors.values()),
        list(found.events),
        _pending_reason(cluster, found),
        cluster.scheduler.since(found.id),
        ask.want if ask is not None else 0,
        found.cpu_ms,
        found.peak_memory,
        found.written,
        found.sent,
        found.received,
    )


def session(cluster: Cluster, session_id: str) -> SessionView:
    return session_view(cluster, _find(cluster, session_id))


def sessions(cluster: Cluster) -> list[SessionView]:
    """All sessions, the open ones first, then by time of creation."""
    ordered = sorted(cluster.sessions.values(), key=lambda item: (item.state, item.created, item.id))
    return [session_view(cluster, found) for found in ordered]


def totals(cluster: Cluster) -> Totals:
    """One pass over all sessions."""
    whole = Totals()
    whole.succeed, whole.failed, whole.cancelled = cluster.purged
    for found in cluster.sessions.values():
        whole.succeed += found.succeed
        whole.failed += found.failed
        whole.cancelled += found.cancelled
        if found.state is SessionState.CLOSED:
            whole.closed += 1
            continue
        working = _working(found)
        whole.open += 1
        whole.running += working
        whole.pending += found.pending + found.running - working
    return whole


def _pending_reason(cluster: Cluster, found: Session) -> str:
    if found.state is not SessionState.OPEN or not found.pending:
        return ""
    if found.paused:
        return found.paused
    no = cluster.scheduler.why(found.id)
    if no is not None:
        return no.message
    return next((message for _, _, message, _, _ in obstacles.own(cluster, found)), "")


def task(cluster: Cluster, session_id: str, task_id: int) -> TaskView:
    found = _find(cluster, session_id)
    if not 1 <= task_id <= found.total:
        raise NotFoundError(f"task <{task_id}> not found")
    return _task_view(found, task_id)


def _task_view(found: Session, task_id: int) -> TaskView:
    chunk = found.chunk_of(task_id)
    state = TaskState(found.states[task_id - 1])
    completed: int | None = None
    executor_id = ""
    output_seq = 0
    attempt = found.attempts.get(task_id, 1)
    finish = found.finished.get(task_id)
    if state.terminal:
        batch = found.batches[found.done_in[task_id - 1] - 1]
        completed, executor_id = batch.time, batch.executor
        output_seq = 0 if finish is not None else batch.seq
    elif state is TaskState.RUNNING:
        holder = _holder(found, task_id)
        executor_id = holder.id if holder is not None else ""
        if holder is not None and task_id not in list(holder.outstanding)[: holder.concurrency]:
            state = TaskState.PENDING  # sent ahead, not started
            attempt -= 1
    else:
        attempt -= 1
    return TaskView(
        found.id,
        task_id,
        state,
        chunk.created,
        completed,
        attempt,
        executor_id,
        chunk.seq,
        task_id - chunk.first,
        output_seq,
        finish,
    )


def _holder(found: Session, task_id: int) -> Executor | None:
    return next((executor for executor in found.executors.values() if task_id in executor.outstanding), None)


def tasks(
    cluster: Cluster, session_id: str, states: Sequence[int] = (), after: int = 0, limit: int = 0
) -> Iterator[TaskView]:
    """Tasks of a session by ascending id; raises NotFoundError at once, not at the first step."""
    found = _find(cluster, session_id)
    wanted = frozenset(states)

    def walk() -> Iterator[TaskView]:
        given = 0
        for task_id in range(max(0, after) + 1, found.total + 1):
            if limit and given >= limit:
                return
            view = _task_view(found, task_id)
            if not wanted or view.state in wanted:
                given += 1
                yield view

    return walk()


def explain(cluster: Cluster, session_id: str, task_id: int = 0) -> ExplainView:
    """Why a session (or one of its tasks) is where it is: the rules that say no, in a user's words."""
    found = _find(cluster, session_id)
    if task_id:
        view = task(cluster, session_id, task_id)
        reasons = delays.reasons(found, task_id)
        if view.state is TaskState.PENDING and view.executor_id:
            reasons.append(obstacles.sent_ahead(found, task_id))
        elif view.state is TaskState.PENDING:
            reasons.extend(obstacles.of_session(cluster, found))
        summary = f"task {task_id} is {view.state.name.capitalize()}"
        if view.finish is not None:
            summary += f": {view.finish.message}"
        elif view.state is TaskState.RUNNING:
            summary += f" on executor {view.executor_id} since attempt {view.attempt}"
        elif view.state is TaskState.PENDING:
            ahead = found.states.count(PENDING, 0, task_id - 1)
            summary += f", {ahead} pending tasks were submitted before it"
    else:
        reasons = obstacles.of_session(cluster, found)
        whole = session_view(cluster, found)
        summary = (
            f"session {session_id} is {found.state.name.capitalize()}: {whole.pending} pending, "
            f"{whole.running} running, {whole.executors} executors"
        )
    if reasons:
        summary += f"; {reasons[0][2]}"
    elif found.state is SessionState.OPEN and found.pending > found.waiting and not found.executors:
        summary += "; its executors will be decided at the next pass"
    return ExplainView(summary, reasons, list(found.story))

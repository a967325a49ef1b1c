"""Alarms of what tasks may set for themselves: tasks that have rested, deadlines that are over, keys whose executors
did not come back."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heappop
from typing import TYPE_CHECKING

from flame.engine import delays, lanes, limits, tasks, views
from flame.engine.columns import PENDING, RUNNING, Chunk
from flame.engine.records import Finish
from flame.engine.sessions import Session
from flame.model.states import SessionState, TaskState

if TYPE_CHECKING:
    from flame.engine.cluster import Cluster
    from flame.engine.turn import Draft

DEADLINE_TASKS = 8192  # that fail in one turn; further ones in the next, so that no turn takes long


def recovered(cluster: Cluster, session: Session) -> None:
    """An open session is there again: make its alarms anew."""
    session.replayed = session.total
    limits.arm_deadline(cluster, session)
    if session.total:
        lanes.expect_executors(session)
        cluster.alarm(cluster.now + cluster.settings.drain_ms, "keys", session.id)


def on_alarm(cluster: Cluster, draft: Draft, kind: str, session_id: str) -> None:
    """One of the alarms of this page."""
    session = cluster.sessions.get(session_id)
    if session is None or session.state is not SessionState.OPEN:
        return
    if kind == "wake":
        _on_wake_alarm(cluster, session, draft.now_ms)
    elif kind == "deadline":
        _on_deadline_alarm(cluster, draft, session)
    else:
        _on_keys_alarm(cluster, session)


def _on_keys_alarm(cluster: Cluster, session: Session) -> None:
    """Executors that have not come back since the restart count as lost: their tasks hold no place any more."""
    if session.keyed:
        cluster.touch(session)
        cluster.changed(session)
    lanes.expect_no_more(session)


def _on_wake_alarm(cluster: Cluster, session: Session, now: int) -> None:
    """Tasks have rested."""
    if lanes.wake(session, now):
        cluster.touch(session)
        cluster.changed(session)
    limits.arm_wake(cluster, session)


def _on_deadline_alarm(cluster: Cluster, draft: Draft, session: Session) -> None:
    """Tasks whose deadline is over fail, a limited number in one turn."""
    finishes: list[Finish] = []
    reason = ""
    while session.deadlines and session.deadlines[0][0] <= draft.now_ms and len(finishes) < DEADLINE_TASKS:
        chunk = session.chunks[session.deadlines[0][1]]
        if chunk.remaining and not reason:
            reason = _why_not_run(cluster, session)
        over = list(_unfinished(session, chunk, DEADLINE_TASKS - len(finishes)))
        finishes.extend(
            Finish(task_id, TaskState.FAILED, -1, delays.past_deadline(session, chunk, task_id, draft.now_ms, reason))
            for task_id in over
        )
        if len(over) < chunk.remaining:
            break
        heappop(session.deadlines)
    if finishes:
        # What runs is stopped, what it still answers is dropped.
        tasks.interrupt(draft, session, {item.task_id for item in finishes}, "its deadline is over")
        tasks.finish(draft, session, finishes)
        cluster.touch(session)
        cluster.changed(session)
    if session.deadlines and session.deadlines[0][0] <= draft.now_ms:
        cluster.alarm(draft.now_ms + 1, "deadline", session.id)
    else:
        limits.arm_deadline(cluster, session)


def _unfinished(session: Session, chunk: Chunk, limit: int) -> Iterator[int]:
    """Up to `limit` tasks of the chunk that have not ended, the pending ones first."""
    for state in (PENDING, RUNNING):
        index = session.states.find(state, chunk.first - 1, chunk.first - 1 + chunk.count)
        while index >= 0 and limit > 0:
            limit -= 1
            yield index + 1
            index = session.states.find(state, index + 1, chunk.first - 1 + chunk.count)


def _why_not_run(cluster: Cluster, session: Session) -> str:
    if session.pending and session.pending == session.waiting:
        return "other tasks of its key were before it"
    return views.session_view(cluster, session).pending_reason or "the session's executors had other tasks to do"

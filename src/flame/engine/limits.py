"""What tasks may set for themselves: a deadline, pauses between attempts, a key of which only so many run at once.

All of them are looked at by alarms, one of a kind for each session, set for what comes first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from heapq import heappop
from typing import TYPE_CHECKING

from flame.engine import delays, lanes, tasks, views
from flame.engine.columns import PENDING, RUNNING, Chunk
from flame.engine.effects import Part
from flame.engine.records import Finish
from flame.engine.sessions import Session
from flame.model.states import SessionState, TaskState
from flame.model.task_options import retry_delay_ms

if TYPE_CHECKING:
    from flame.engine.engine import Engine
    from flame.engine.turn import Draft

DEADLINE_TASKS = 8192  # that fail in one turn; further ones in the next, so that no turn takes long
REASON_LENGTH = 500  # of the text that is kept of a failed attempt


# --- at a restart ----------------------------------------------------------------------------------------------------


def recovered(engine: Engine, session: Session) -> None:
    """An open session is there again: make its alarms anew."""
    session.replayed = session.total
    arm_deadline(engine, session)
    if session.total:
        lanes.expect_executors(session)
        engine.alarm(engine.now + engine.settings.drain_ms, "keys", session.id)


def on_alarm(engine: Engine, draft: Draft, kind: str, session_id: str) -> None:
    """One of the alarms of this page."""
    session = engine.sessions.get(session_id)
    if session is None or session.state is not SessionState.OPEN:
        return
    if kind == "wake":
        _on_wake_alarm(engine, session, draft.now_ms)
    elif kind == "deadline":
        _on_deadline_alarm(engine, draft, session)
    else:
        _on_keys_alarm(engine, session)


def _on_keys_alarm(engine: Engine, session: Session) -> None:
    """Executors that have not come back since the restart count as lost: their tasks hold no place any more."""
    if session.keyed:
        engine.touch(session)
        engine.changed(session)
    lanes.expect_no_more(session)


# --- pauses between attempts -------------------------------------------------------------------------------------


def retry_at(session: Session, task_id: int, now: int) -> int:
    """When a task that has just failed once more may run again, 0 = at once."""
    options = session.chunk_of(task_id).options
    pause = retry_delay_ms(options, session.failures.get(task_id, 1))
    return now + pause if pause else 0


def arm_wake(engine: Engine, session: Session) -> None:
    """Look again when the next task has rested."""
    if session.wakes:
        engine.alarm(session.wakes[0][0], "wake", session.id)


def _on_wake_alarm(engine: Engine, session: Session, now: int) -> None:
    """Tasks have rested."""
    if lanes.wake(session, now):
        engine.touch(session)
        engine.changed(session)
    arm_wake(engine, session)


# --- deadlines ---------------------------------------------------------------------------------------------------


def arm_deadline(engine: Engine, session: Session) -> None:
    """Look again when the first deadline of tasks that have not ended is over."""
    while session.deadlines and not session.chunks[session.deadlines[0][1]].remaining:
        heappop(session.deadlines)
    if session.deadlines:
        engine.alarm(session.deadlines[0][0], "deadline", session.id)


def note_start(session: Session, parts: Sequence[Part], now: int) -> None:
    """Tasks go to an executor: remember since when those with a deadline are worked on."""
    for part in parts:
        if session.chunk_of(part.first_task_id).options.deadline_ms:
            for task_id in range(part.first_task_id, part.first_task_id + part.stop - part.start):
                session.began.setdefault(task_id, now)


def _on_deadline_alarm(engine: Engine, draft: Draft, session: Session) -> None:
    """Tasks whose deadline is over fail, a limited number in one turn."""
    finishes: list[Finish] = []
    reason = ""
    while session.deadlines and session.deadlines[0][0] <= draft.now_ms and len(finishes) < DEADLINE_TASKS:
        chunk = session.chunks[session.deadlines[0][1]]
        if chunk.remaining and not reason:
            reason = _why_not_run(engine, session)
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
        engine.touch(session)
        engine.changed(session)
    if session.deadlines and session.deadlines[0][0] <= draft.now_ms:
        engine.alarm(draft.now_ms + 1, "deadline", session.id)
    else:
        arm_deadline(engine, session)


def _unfinished(session: Session, chunk: Chunk, limit: int) -> Iterator[int]:
    """Up to `limit` tasks of the chunk that have not ended, the pending ones first."""
    for state in (PENDING, RUNNING):
        index = session.states.find(state, chunk.first - 1, chunk.first - 1 + chunk.count)
        while index >= 0 and limit > 0:
            limit -= 1
            yield index + 1
            index = session.states.find(state, index + 1, chunk.first - 1 + chunk.count)


def _why_not_run(engine: Engine, session: Session) -> str:
    if session.pending and session.pending == session.waiting:
        return "other tasks of its key were before it"
    return views.session_view(engine, session).pending_reason or "the session's executors had other tasks to do"

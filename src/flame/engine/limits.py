"""What tasks may set for themselves: a deadline, pauses between attempts, a key of which only so many run at once.

All of them are looked at by alarms, one of a kind for each session, set for what comes first.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop
from typing import TYPE_CHECKING

from flame.engine.effects import Part
from flame.engine.sessions import Session
from flame.model.task_options import retry_delay_ms

if TYPE_CHECKING:
    from flame.engine.cluster import Cluster

REASON_LENGTH = 500  # of the text that is kept of a failed attempt


# --- at a restart ----------------------------------------------------------------------------------------------------


# --- pauses between attempts -------------------------------------------------------------------------------------


def retry_at(session: Session, task_id: int, now: int) -> int:
    """When a task that has just failed once more may run again, 0 = at once."""
    options = session.chunk_of(task_id).options
    pause = retry_delay_ms(options, session.failures.get(task_id, 1))
    return now + pause if pause else 0


def arm_wake(cluster: Cluster, session: Session) -> None:
    """Look again when the next task has rested."""
    if session.wakes:
        cluster.alarm(session.wakes[0][0], "wake", session.id)


# --- deadlines ---------------------------------------------------------------------------------------------------


def arm_deadline(cluster: Cluster, session: Session) -> None:
    """Look again when the first deadline of tasks that have not ended is over."""
    while session.deadlines and not session.chunks[session.deadlines[0][1]].remaining:
        heappop(session.deadlines)
    if session.deadlines:
        cluster.alarm(session.deadlines[0][0], "deadline", session.id)


def note_start(session: Session, parts: Sequence[Part], now: int) -> None:
    """Tasks go to an executor: remember since when those with a deadline are worked on."""
    for part in parts:
        if session.chunk_of(part.first_task_id).options.deadline_ms:
            for task_id in range(part.first_task_id, part.first_task_id + part.stop - part.start):
                session.began.setdefault(task_id, now)

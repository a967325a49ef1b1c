"""Results come from executors."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from operator import eq
from typing import TYPE_CHECKING

from flame.engine import dispatch, lanes, limits, tasks
from flame.engine.effects import RecordKind
from flame.engine.executors import Executor
from flame.engine.records import FinishedMeta, spans_of
from flame.engine.sessions import RUNNING, SUCCEED, Batch, Session
from flame.model.states import SessionState, TaskState

if TYPE_CHECKING:
    from flame.engine.cluster import Cluster
    from flame.engine.events import Completed, Failed
    from flame.engine.turn import Draft

KEEP_AVERAGE = 0.7


def on_completed(cluster: Cluster, draft: Draft, event: Completed) -> None:
    """Results from an executor. What it does not hold (a stale attempt, a repetition) is counted and dropped."""
    executor = cluster.executors.get(event.channel)
    ids = event.task_ids
    if executor is None:
        cluster.stale += len(ids)
        return
    session = executor.session
    executor.progress = draft.now_ms
    _learn(session, event)
    if not event.failures and _all_running(executor, ids, event.attempts):
        first, last = ids[0], ids[-1]
        outstanding = executor.outstanding
        for task_id in ids:
            del outstanding[task_id]
        meta = FinishedMeta(draft.now_ms, executor.id, [(first, last)])
        seq = draft.record(RecordKind.FINISHED, session.id, meta, event.body)
        session.batches.append(Batch(seq, draft.now_ms, executor.id))
        session.end_run(first, last, len(session.batches) - 1)
        lanes.vacate(session, ids)
        executor.completed += len(ids)
        tasks.forget(draft, session.settle_run(first, last))
        tasks.deliver(draft, session, seq, ids, whole=True)
    else:
        _complete_each(cluster, draft, executor, event)
    dispatch.after_progress(cluster, draft, executor)


def _learn(session: Session, event: Completed) -> None:
    count = len(event.task_ids)
    if not count:
        return
    mean = event.busy_us / count
    session.avg_us = mean if session.avg_us < 0 else KEEP_AVERAGE * session.avg_us + (1 - KEEP_AVERAGE) * mean


def _all_running(executor: Executor, ids: Sequence[int], attempts: Sequence[int]) -> bool:
    """Whether these are ascending neighbours that the executor holds in these attempts and nobody ended meanwhile."""
    if not ids:
        return False
    first, last = ids[0], ids[-1]
    count = len(ids)
    if last - first + 1 != count or first < 1 or last > executor.session.total:
        return False
    if count > 1 and list(ids) != list(range(first, last + 1)):
        return False
    if executor.session.states.count(RUNNING, first - 1, last) != count:
        return False
    held = executor.outstanding.get  # 0: given up here, and perhaps running elsewhere
    return all(map(eq, map(held, ids), attempts or repeat(1)))


def _complete_each(cluster: Cluster, draft: Draft, executor: Executor, event: Completed) -> None:
    session = executor.session
    failures: dict[int, Failed] = {failed.index: failed for failed in event.failures}
    ended: list[int] = []
    unsuccessful: list[tuple[int, int]] = []
    again: list[int] = []
    batch = len(session.batches)
    for index, task_id in enumerate(event.task_ids):
        attempt = executor.outstanding.get(task_id)
        if attempt is None or (attempt and (event.attempts[index] if event.attempts else 1) != attempt):
            cluster.stale += 1
            continue
        del executor.outstanding[task_id]
        if not attempt:  # ended meanwhile: cancelled, or its session closed
            cluster.stale += 1
            lanes.vacate(session, (task_id,))
            continue
        executor.completed += 1
        failed = failures.get(index)
        if failed is None:
            session.end(task_id, SUCCEED, batch)
        elif failed.state is not TaskState.CANCELLED and _may_retry(session, task_id):
            again.append(task_id)
            session.failures[task_id] = session.failures.get(task_id, 0) + 1
            session.failed_with[task_id] = failed.message[: limits.REASON_LENGTH]
            continue
        else:
            state = TaskState.CANCELLED if failed.state is TaskState.CANCELLED else TaskState.FAILED
            session.end(task_id, state, batch)
            unsuccessful.append((task_id, int(state)))
        ended.append(task_id)
    if ended:
        spans = spans_of(sorted(ended))
        meta = FinishedMeta(draft.now_ms, executor.id, spans, unsuccessful)
        seq = draft.record(RecordKind.FINISHED, session.id, meta, event.body)
        session.batches.append(Batch(seq, draft.now_ms, executor.id))
        tasks.forget(draft, session.settle(ended))
        lanes.vacate(session, ended)
        tasks.deliver(draft, session, seq, ended, whole=len(ended) == len(event.task_ids))
    tasks.send_back(draft, session, again, after_failure=True)
    if again:
        limits.arm_wake(cluster, session)


def _may_retry(session: Session, task_id: int) -> bool:
    limit = session.chunk_of(task_id).options.max_retries or 0
    return session.state is SessionState.OPEN and session.failures.get(task_id, 0) < limit

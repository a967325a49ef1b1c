"""The life of a task: submitted, sent to an executor, answered, retried, cancelled."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

from flame.engine import lanes, limits
from flame.engine.effects import (
    Deliver,
    Forget,
    InterruptTasks,
    RecordKind,
    TaskChanged,
)
from flame.engine.records import Finish, FinishedMeta, RetriedMeta, SubmittedMeta
from flame.engine.sessions import RUNNING, SUCCEED, Batch, Chunk, Session
from flame.model.states import TaskState
from flame.model.task_options import with_defaults

if TYPE_CHECKING:
    from flame.engine.cluster import Cluster
    from flame.engine.executors import Executor
    from flame.engine.turn import Draft


# --- submission ------------------------------------------------------------------------------------------------------


def apply_submitted(session: Session, seq: int, meta: SubmittedMeta) -> None:
    """Take a durable submission into the session; the same at run time and at replay."""
    options = with_defaults(meta.options, session.spec.task_defaults)
    session.add_chunk(Chunk(seq, meta.first, meta.count, meta.client, meta.first_seq, options, meta.time, meta.count))


# --- dispatch --------------------------------------------------------------------------------------------------------


# --- results ---------------------------------------------------------------------------------------------------------


def send_back(draft: Draft, session: Session, task_ids: Iterable[int], *, after_failure: bool = False) -> None:
    """Running tasks are ready again, with their attempt raised; after a failure some may have to rest before."""
    tasks: list[tuple[int, int, int, int]] = []
    for task_id in task_ids:
        attempt = session.attempts.get(task_id, 1) + 1
        tasks.append((task_id, attempt, session.failures.get(task_id, 0), session.kills.get(task_id, 0)))
        session.attempts[task_id] = attempt
        until = limits.retry_at(session, task_id, draft.now_ms) if after_failure else 0
        if until:
            lanes.rest(session, task_id, until)
        else:
            lanes.give_back(session, task_id)
    if tasks:
        draft.record(RecordKind.RETRIED, session.id, RetriedMeta(tasks))
        changed(draft, session, [task[0] for task in tasks])


def apply_retried(session: Session, meta: RetriedMeta) -> None:
    """At replay: the tasks are pending; remember what they went through."""
    for task_id, attempt, failures, kills in meta.tasks:
        session.attempts[task_id] = attempt
        if failures:
            session.failures[task_id] = failures
        if kills:
            session.kills[task_id] = kills


def apply_finished(session: Session, seq: int, meta: FinishedMeta) -> None:
    """At replay: the tasks ended. They are pending here, since no dispatch is durable."""
    batch = len(session.batches)
    session.batches.append(Batch(seq if meta.spans else 0, meta.time, meta.executor))
    states = dict(meta.unsuccessful)
    for first, last in meta.spans:
        for task_id in range(first, last + 1):
            session.end(task_id, states.get(task_id, SUCCEED), batch)
        session.settle_run(first, last)
    for finish in meta.finished:
        session.finished[finish.task_id] = finish
        session.end(finish.task_id, finish.state, batch)
        session.settle((finish.task_id,))


def deliver(draft: Draft, session: Session, seq: int, task_ids: Sequence[int], *, whole: bool) -> None:
    """Results of record `seq` go to those who submitted the tasks and listen."""
    changed(draft, session, task_ids)
    if session.sole_client is not None:
        if session.sole_client in session.attached:
            draft.after.append(Deliver(session.id, session.sole_client, seq, None if whole else list(task_ids)))
        return
    by_client: dict[str, list[int]] = {}
    for task_id in task_ids:
        by_client.setdefault(session.client_of(task_id), []).append(task_id)
    for client, ids in by_client.items():
        if client in session.attached:
            all_of_them = whole and len(ids) == len(task_ids)
            draft.after.append(Deliver(session.id, client, seq, None if all_of_them else ids))


def changed(draft: Draft, session: Session, task_ids: Sequence[int]) -> None:
    """Tell those who watch these tasks or the session."""
    if not session.watched or not task_ids:
        return
    if 0 in session.watched:
        draft.after.append(TaskChanged(session.id, list(task_ids)))
        return
    watched = [task_id for task_id in task_ids if task_id in session.watched]
    if watched:
        draft.after.append(TaskChanged(session.id, watched))


def forget(draft: Draft, seqs: list[int]) -> None:
    if seqs:
        draft.after.append(Forget(seqs))


# --- endings that the engine decides ---------------------------------------------------------------------------------


def finish(draft: Draft, session: Session, finished: list[Finish]) -> None:
    """End tasks without an executor's word. Those that run are given up: their answer will be dropped."""
    if not finished:
        return
    batch = len(session.batches)
    draft.record(RecordKind.FINISHED, session.id, FinishedMeta(draft.now_ms, finished=finished))
    session.batches.append(Batch(0, draft.now_ms, ""))
    running: set[int] = set()
    ids: list[int] = []
    for item in finished:
        if session.states[item.task_id - 1] == RUNNING:
            running.add(item.task_id)
        session.finished[item.task_id] = item
        session.end(item.task_id, item.state, batch)
        ids.append(item.task_id)
    if running:
        for executor in session.executors.values():
            for task_id in running & executor.outstanding.keys():
                executor.outstanding[task_id] = 0
    forget(draft, session.settle(ids))
    changed(draft, session, ids)
    by_client: dict[str, list[Finish]] = {}
    for item in finished:
        by_client.setdefault(session.client_of(item.task_id), []).append(item)
    for client, items in by_client.items():
        if client in session.attached:
            draft.after.append(Deliver(session.id, client, 0, [item.task_id for item in items], items))


def fail_pending(cluster: Cluster, draft: Draft, session: Session, why: str) -> None:
    """No executor will come: end all pending tasks with the reason, rather than let anybody wait for ever."""
    finish(draft, session, [Finish(task_id, TaskState.FAILED, -1, why) for task_id in session.pending_ids()])


def interrupt(draft: Draft, session: Session, task_ids: Collection[int], reason: str) -> None:
    """Stop those of the tasks that are on executors."""
    for executor in session.executors.values():
        held = [task_id for task_id, attempt in executor.outstanding.items() if attempt and task_id in task_ids]
        if held:
            draft.now.append(InterruptTasks(executor.node.name, executor.channel, held, reason))


def interrupt_ended(draft: Draft, executor: Executor) -> None:
    """Its node is back and may have missed that some of its tasks are given up."""
    held = [task_id for task_id, attempt in executor.outstanding.items() if not attempt]
    if held:
        draft.now.append(InterruptTasks(executor.node.name, executor.channel, held, "nobody waits for it any more"))

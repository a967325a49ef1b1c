"""Tasks go to executors, those that were sent ahead come back, and executors without work wait for their end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flame.engine import lanes, limits, placement, tasks
from flame.engine.effects import Dispatch, RetractTasks
from flame.engine.executors import Executor
from flame.engine.sessions import Session
from flame.model.states import ExecutorState

if TYPE_CHECKING:
    from flame.engine.cluster import Cluster
    from flame.engine.events import Retracted
    from flame.engine.turn import Draft

REBALANCE_MS = 5  # an executor that made no progress for so long gives back what it did not start


def feed(cluster: Cluster, draft: Draft, session: Session) -> None:
    """Send ready tasks to the session's executors, as far as their credits go, evenly when there are few."""
    ready = session.pending - session.waiting
    open_hands = [executor for executor in session.executors.values() if executor.usable]
    open_hands.sort(key=lambda executor: len(executor.outstanding))
    for position, executor in enumerate(open_hands):
        if not ready:
            break
        held = len(executor.outstanding)
        credit = executor.credit(session.avg_us)
        if held * 2 > credit and held >= executor.concurrency + 1:
            continue  # more than half full: wait until a larger batch is due
        if held and any(task_id in session.kills for task_id in executor.outstanding):
            continue  # a suspect runs alone
        fair = -(-ready // (len(open_hands) - position))
        _send(cluster, draft, executor, min(credit - held, fair))
        ready = session.pending - session.waiting
    if not ready:
        for executor in open_hands:
            if not executor.outstanding and not executor.idle_since:
                rest(cluster, draft, executor)


def _send(cluster: Cluster, draft: Draft, executor: Executor, limit: int) -> None:
    session = executor.session
    while limit > 0:
        parts, timeout = lanes.take(session, limit)
        if not parts:
            return
        first = parts[0].first_task_id
        if executor.outstanding and first in session.kills:
            for part in parts:  # a suspect needs an executor of its own: put it back
                lanes.give_back(session, part.first_task_id)
            return
        if session.deadlines:
            limits.note_start(session, parts, draft.now_ms)
        sent: list[int] = []
        for part in parts:
            ids = range(part.first_task_id, part.first_task_id + part.stop - part.start)
            executor.outstanding.update(dict.fromkeys(ids, part.attempt))
            limit -= len(ids)
            if session.watched:
                sent.extend(ids)
        executor.progress = draft.now_ms
        if executor.idle_since:
            executor.idle_since = 0
            cluster.scheduler.idle(executor.channel, 0)
        draft.now.append(Dispatch(executor.node.name, executor.channel, parts, timeout))
        tasks.changed(draft, session, sent)
        if first in session.kills:
            return


def rebalance(cluster: Cluster, draft: Draft, session: Session) -> None:
    """Take back what executors hold and did not start: when another one idles, or when a task of higher priority waits
    while they make no progress (what was sent ahead should have been ten milliseconds of work)."""
    ready = session.pending > session.waiting
    idle = not ready and any(e.usable and not e.outstanding for e in session.executors.values())
    if not idle and not (ready and session.mixed):
        return
    for executor in session.executors.values():
        extra = len(executor.outstanding) - executor.concurrency
        if extra <= 0 or executor.retracting or not executor.usable:
            continue
        if ready and not _holds_less_urgent(session, executor):
            continue
        waited = draft.now_ms - executor.progress
        if waited >= REBALANCE_MS or (idle and extra * session.avg_us > REBALANCE_MS * 1000):
            executor.retracting = True
            draft.now.append(RetractTasks(executor.node.name, executor.channel, executor.concurrency))
        else:
            cluster.alarm(executor.progress + REBALANCE_MS, "rebalance", session.id)


def _holds_less_urgent(session: Session, executor: Executor) -> bool:
    """Whether the last task that it holds is of lower priority than one that is ready."""
    last = next(reversed(executor.outstanding))
    return session.chunk_of(last).options.priority < lanes.top_priority(session)


def on_retracted(cluster: Cluster, draft: Draft, event: Retracted) -> None:
    """Tasks came back unstarted; their attempt stays as it was."""
    executor = cluster.executors.get(event.channel)
    if executor is None:
        cluster.stale += len(event.task_ids)
        return
    executor.retracting = False
    session = executor.session
    back: list[int] = []
    for task_id in event.task_ids:
        attempt = executor.outstanding.pop(task_id, None)
        if attempt:
            lanes.give_back(session, task_id)
            back.append(task_id)
            if attempt == 1:
                session.began.pop(task_id, None)
        elif attempt is not None:
            lanes.vacate(session, (task_id,))
    tasks.changed(draft, session, back)
    after_progress(cluster, draft, executor)


def after_progress(cluster: Cluster, draft: Draft, executor: Executor) -> None:
    """An executor has fewer tasks than before."""
    session = executor.session
    if session.pending:
        cluster.touch(session)
    if cluster.scheduler.lacks(session.id):
        cluster.changed(session)
    if executor.outstanding:
        return
    if executor.draining:
        placement.stop(cluster, draft, executor, executor.leave_why)
    elif not session.pending and executor.bound:
        rest(cluster, draft, executor)


# --- executors without work ------------------------------------------------------------------------------------------


def rest(cluster: Cluster, draft: Draft, executor: Executor) -> None:
    """A bound executor has nothing to do: take work from its siblings, else wait for delay_release."""
    session = executor.session
    if not executor.idle_since:
        executor.idle_since = draft.now_ms
        cluster.alarm(draft.now_ms + _delay_ms(cluster, session), "idle", str(executor.channel))
        cluster.scheduler.idle(executor.channel, draft.now_ms)
    if session.running:
        rebalance(cluster, draft, session)


def _delay_ms(cluster: Cluster, session: Session) -> int:
    application = cluster.applications.get(session.spec.application)
    return max(0, application.spec.delay_release if application is not None else 0) * 1000


def on_idle_alarm(cluster: Cluster, draft: Draft, channel: int) -> None:
    executor = cluster.executors.get(channel)
    if executor is None or not executor.idle_since or executor.state is not ExecutorState.BOUND:
        return
    due = executor.idle_since + _delay_ms(cluster, executor.session)
    if due > draft.now_ms:
        cluster.alarm(due, "idle", str(channel))
    elif sum(other.coming for other in executor.session.executors.values()) > executor.session.spec.min_instances:
        placement.stop(cluster, draft, executor, "idle for its delay_release")

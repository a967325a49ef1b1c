"""The life of a task: submitted, sent to an executor, answered, retried, cancelled."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import repeat
from operator import eq
from typing import TYPE_CHECKING

from flame.engine import admission, lanes, limits, placement
from flame.engine.effects import (
    Accepted,
    Deliver,
    Dispatch,
    Forget,
    InterruptTasks,
    RecordKind,
    RetractTasks,
    TaskChanged,
)
from flame.engine.records import Finish, FinishedMeta, RetriedMeta, SubmittedMeta, spans_of
from flame.engine.sessions import PENDING, RUNNING, SUCCEED, Batch, Chunk, Session
from flame.model.errors import (
    FlameError,
    InvalidArgumentError,
    InvalidStateError,
    NotFoundError,
    ProtocolError,
    ReadOnlyError,
)
from flame.model.specs import NO_OPTIONS
from flame.model.states import SessionState, TaskState
from flame.model.task_options import check_options, with_defaults

if TYPE_CHECKING:
    from flame.engine.engine import Engine
    from flame.engine.events import CancelTasks, Completed, Failed, Retracted, Submitted
    from flame.engine.executors import Executor
    from flame.engine.turn import Draft

REBALANCE_MS = 5  # an executor that made no progress for so long gives back what it did not start
KEEP_AVERAGE = 0.7


# --- submission ------------------------------------------------------------------------------------------------------


def on_submitted(engine: Engine, draft: Draft, event: Submitted) -> None:
    """New tasks, or a repetition of what is there already."""
    session = engine.sessions.get(event.session_id)
    problem = _refusal(engine, session, event)
    if problem is not None:
        draft.after.append(Accepted(event.ticket, event.first_seq, event.count, 0, problem))
        return
    assert session is not None
    options = event.options
    known = session.keys.get(options.idempotency_key, -1) if options.idempotency_key else -1
    if known < 0 and event.first_seq:
        expected = session.next_seq(event.client_id)
        if event.first_seq < expected:
            known = session.find_run(event.client_id, event.first_seq)
            if known < 0 or session.chunks[known].first_seq != event.first_seq:
                known = -2
        elif event.first_seq > expected:
            known = -2
    if known == -2 or (known >= 0 and session.chunks[known].count != event.count):
        text = f"submission {event.first_seq} of {event.count} tasks does not continue session <{session.id}>"
        draft.after.append(Accepted(event.ticket, event.first_seq, event.count, 0, ProtocolError(text)))
        return
    if known >= 0:
        chunk = session.chunks[known]
        draft.after.append(Accepted(event.ticket, event.first_seq, event.count, chunk.first))
        return
    full = admission.why_full(engine, session, event.count)  # of new tasks only: a repetition adds none
    if full is not None:
        draft.after.append(Accepted(event.ticket, event.first_seq, event.count, 0, full))
        return
    meta = SubmittedMeta(session.total + 1, event.count, event.client_id, event.first_seq, draft.now_ms, options)
    seq = draft.record(RecordKind.SUBMITTED, session.id, meta, event.body)
    apply_submitted(session, seq, meta)
    draft.after.append(Accepted(event.ticket, event.first_seq, event.count, meta.first))
    if session.paused:
        fail_pending(engine, draft, session, session.paused)
        return
    engine.hungry[session.id] = session
    engine.touch(session)
    if session.deadlines:
        limits.arm_deadline(engine, session)
    if session.mixed:
        engine.alarm(draft.now_ms + REBALANCE_MS, "rebalance", session.id)


def _refusal(engine: Engine, session: Session | None, event: Submitted) -> FlameError | None:
    if engine.read_only:
        return ReadOnlyError(
            f"the journal can't be written: {engine.read_only}", remedy="free the disk; sent again, it is accepted then"
        )
    if session is None:
        return NotFoundError(f"session <{event.session_id}> not found")
    if session.state is not SessionState.OPEN:
        return InvalidStateError(f"session <{session.id}> is not open", remedy="create a new session")
    if event.count < 1:
        return InvalidArgumentError("a submission holds at least one task")
    if event.options is not NO_OPTIONS:
        try:
            check_options(event.options)
            check_options(with_defaults(event.options, session.spec.task_defaults))
        except FlameError as error:
            return error
    return None


def apply_submitted(session: Session, seq: int, meta: SubmittedMeta) -> None:
    """Take a durable submission into the session; the same at run time and at replay."""
    options = with_defaults(meta.options, session.spec.task_defaults)
    session.add_chunk(Chunk(seq, meta.first, meta.count, meta.client, meta.first_seq, options, meta.time, meta.count))


# --- dispatch --------------------------------------------------------------------------------------------------------


def feed(engine: Engine, draft: Draft, session: Session) -> None:
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
        _send(engine, draft, executor, min(credit - held, fair))
        ready = session.pending - session.waiting
    if not ready:
        for executor in open_hands:
            if not executor.outstanding and not executor.idle_since:
                placement.rest(engine, draft, executor)


def _send(engine: Engine, draft: Draft, executor: Executor, limit: int) -> None:
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
            engine.scheduler.idle(executor.channel, 0)
        draft.now.append(Dispatch(executor.node.name, executor.channel, parts, timeout))
        changed(draft, session, sent)
        if first in session.kills:
            return


def rebalance(engine: Engine, draft: Draft, session: Session) -> None:
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
            engine.alarm(executor.progress + REBALANCE_MS, "rebalance", session.id)


def _holds_less_urgent(session: Session, executor: Executor) -> bool:
    """Whether the last task that it holds is of lower priority than one that is ready."""
    last = next(reversed(executor.outstanding))
    return session.chunk_of(last).options.priority < lanes.top_priority(session)


def on_retracted(engine: Engine, draft: Draft, event: Retracted) -> None:
    """Tasks came back unstarted; their attempt stays as it was."""
    executor = engine.executors.get(event.channel)
    if executor is None:
        engine.stale += len(event.task_ids)
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
    changed(draft, session, back)
    engine.after_progress(draft, executor)


# --- results ---------------------------------------------------------------------------------------------------------


def on_completed(engine: Engine, draft: Draft, event: Completed) -> None:
    """Results from an executor. What it does not hold (a stale attempt, a repetition) is counted and dropped."""
    executor = engine.executors.get(event.channel)
    ids = event.task_ids
    if executor is None:
        engine.stale += len(ids)
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
        _forget(draft, session.settle_run(first, last))
        deliver(draft, session, seq, ids, whole=True)
    else:
        _complete_each(engine, draft, executor, event)
    engine.after_progress(draft, executor)


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


def _complete_each(engine: Engine, draft: Draft, executor: Executor, event: Completed) -> None:
    session = executor.session
    failures: dict[int, Failed] = {failed.index: failed for failed in event.failures}
    ended: list[int] = []
    unsuccessful: list[tuple[int, int]] = []
    again: list[int] = []
    batch = len(session.batches)
    for index, task_id in enumerate(event.task_ids):
        attempt = executor.outstanding.get(task_id)
        if attempt is None or (attempt and (event.attempts[index] if event.attempts else 1) != attempt):
            engine.stale += 1
            continue
        del executor.outstanding[task_id]
        if not attempt:  # ended meanwhile: cancelled, or its session closed
            engine.stale += 1
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
        _forget(draft, session.settle(ended))
        lanes.vacate(session, ended)
        deliver(draft, session, seq, ended, whole=len(ended) == len(event.task_ids))
    send_back(draft, session, again, after_failure=True)
    if again:
        limits.arm_wake(engine, session)


def _may_retry(session: Session, task_id: int) -> bool:
    limit = session.chunk_of(task_id).options.max_retries or 0
    return session.state is SessionState.OPEN and session.failures.get(task_id, 0) < limit


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


def _forget(draft: Draft, seqs: list[int]) -> None:
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
    _forget(draft, session.settle(ids))
    changed(draft, session, ids)
    by_client: dict[str, list[Finish]] = {}
    for item in finished:
        by_client.setdefault(session.client_of(item.task_id), []).append(item)
    for client, items in by_client.items():
        if client in session.attached:
            draft.after.append(Deliver(session.id, client, 0, [item.task_id for item in items], items))


def fail_pending(engine: Engine, draft: Draft, session: Session, why: str) -> None:
    """No executor will come: end all pending tasks with the reason, rather than let anybody wait for ever."""
    finish(draft, session, [Finish(task_id, TaskState.FAILED, -1, why) for task_id in session.pending_ids()])


def on_cancel(engine: Engine, draft: Draft, event: CancelTasks) -> None:
    """Cancel tasks; those that run are interrupted. Answers the ids of those that had not ended yet."""
    session = engine.sessions.get(event.session_id)
    if session is None:
        draft.refuse(event.ticket, NotFoundError(f"session <{event.session_id}> not found"))
        return
    if engine.read_only:
        draft.refuse(event.ticket, ReadOnlyError(f"the journal can't be written: {engine.read_only}"))
        return
    wanted: list[int] = []
    for first, last in (*event.task_ids, *_ids_of_seqs(session, event)):
        wanted.extend(range(max(1, first), min(last, session.total) + 1))
    reason = event.reason or "cancelled by the client"
    ended = [task_id for task_id in wanted if session.states[task_id - 1] in (PENDING, RUNNING)]
    ended = list(dict.fromkeys(ended))
    interrupt(draft, session, set(ended), reason)
    finish(draft, session, [Finish(task_id, TaskState.CANCELLED, 0, reason) for task_id in ended])
    draft.reply(event.ticket, ended)
    engine.touch(session)
    engine.changed(session)


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


def _ids_of_seqs(session: Session, event: CancelTasks) -> Iterable[tuple[int, int]]:
    for first, last in event.seqs:
        for index in session.client_chunks.get(event.client_id, ()):
            chunk = session.chunks[index]
            low, high = max(first, chunk.first_seq), min(last, chunk.first_seq + chunk.count - 1)
            if low <= high:
                shift = chunk.first - chunk.first_seq
                yield low + shift, high + shift

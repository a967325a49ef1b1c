"""What clients ask for: new tasks, and the end of some."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from flame.engine import admission, limits, tasks
from flame.engine.dispatch import REBALANCE_MS
from flame.engine.effects import Accepted, RecordKind
from flame.engine.records import Finish, SubmittedMeta
from flame.engine.sessions import PENDING, RUNNING, Session
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
    from flame.engine.cluster import Cluster
    from flame.engine.events import CancelTasks, Submitted
    from flame.engine.turn import Draft


def on_submitted(cluster: Cluster, draft: Draft, event: Submitted) -> None:
    """New tasks, or a repetition of what is there already."""
    session = cluster.sessions.get(event.session_id)
    problem = _refusal(cluster, session, event)
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
    full = admission.why_full(cluster, session, event.count)  # of new tasks only: a repetition adds none
    if full is not None:
        draft.after.append(Accepted(event.ticket, event.first_seq, event.count, 0, full))
        return
    meta = SubmittedMeta(session.total + 1, event.count, event.client_id, event.first_seq, draft.now_ms, options)
    seq = draft.record(RecordKind.SUBMITTED, session.id, meta, event.body)
    tasks.apply_submitted(session, seq, meta)
    draft.after.append(Accepted(event.ticket, event.first_seq, event.count, meta.first))
    if session.paused:
        tasks.fail_pending(cluster, draft, session, session.paused)
        return
    cluster.changed(session)
    cluster.touch(session)
    if session.deadlines:
        limits.arm_deadline(cluster, session)
    if session.mixed:
        cluster.alarm(draft.now_ms + REBALANCE_MS, "rebalance", session.id)


def _refusal(cluster: Cluster, session: Session | None, event: Submitted) -> FlameError | None:
    if cluster.read_only:
        return ReadOnlyError(
            f"the journal can't be written: {cluster.read_only}",
            remedy="free the disk; sent again, it is accepted then",
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


def on_cancel(cluster: Cluster, draft: Draft, event: CancelTasks) -> None:
    """Cancel tasks; those that run are interrupted. Answers the ids of those that had not ended yet."""
    session = cluster.sessions.get(event.session_id)
    if session is None:
        draft.refuse(event.ticket, NotFoundError(f"session <{event.session_id}> not found"))
        return
    if cluster.read_only:
        draft.refuse(event.ticket, ReadOnlyError(f"the journal can't be written: {cluster.read_only}"))
        return
    wanted: list[int] = []
    for first, last in (*event.task_ids, *_ids_of_seqs(session, event)):
        wanted.extend(range(max(1, first), min(last, session.total) + 1))
    reason = event.reason or "cancelled by the client"
    ended = [task_id for task_id in wanted if session.states[task_id - 1] in (PENDING, RUNNING)]
    ended = list(dict.fromkeys(ended))
    tasks.interrupt(draft, session, set(ended), reason)
    tasks.finish(draft, session, [Finish(task_id, TaskState.CANCELLED, 0, reason) for task_id in ended])
    draft.reply(event.ticket, ended)
    cluster.touch(session)
    cluster.changed(session)


def _ids_of_seqs(session: Session, event: CancelTasks) -> Iterable[tuple[int, int]]:
    for first, last in event.seqs:
        for index in session.client_chunks.get(event.client_id, ()):
            chunk = session.chunks[index]
            low, high = max(first, chunk.first_seq), min(last, chunk.first_seq + chunk.count - 1)
            if low <= high:
                shift = chunk.first - chunk.first_seq
                yield low + shift, high + shift

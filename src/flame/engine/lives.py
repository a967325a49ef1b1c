"""The life of a session: created, opened, followed, closed, kept for a while, forgotten."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flame.engine import idleness, placement, scheduling, tasks
from flame.engine.admission import check_session
from flame.engine.effects import Accepted, Deliver, RecordKind, SessionChanged
from flame.engine.lifecycles import SESSION, step
from flame.engine.records import EventMeta, Finish, SessionMeta, TimeMeta
from flame.engine.sessions import RUNNING, SUCCEED, Session
from flame.engine.views import session_view
from flame.model.errors import (
    AlreadyExistsError,
    FlameError,
    InternalError,
    InvalidArgumentError,
    InvalidStateError,
    NotFoundError,
    ReadOnlyError,
)
from flame.model.specs import RecordedEvent, SessionSpec
from flame.model.states import SessionState, TaskState
from flame.model.tenants import DEFAULT_TENANT

if TYPE_CHECKING:
    from flame.engine.engine import Engine
    from flame.engine.events import (
        Attached,
        CloseSession,
        CreateSession,
        DeleteSession,
        Detached,
        OpenSession,
        Unwatch,
        Watch,
    )
    from flame.engine.turn import Draft

MAX_ID = 512
MAX_EVENTS = 1000


def on_create(engine: Engine, draft: Draft, event: CreateSession) -> None:
    try:
        if event.session_id in engine.sessions:
            raise AlreadyExistsError(
                f"Session '{event.session_id}' already exists", remedy="choose another id, or open it"
            )
        session = _create(engine, draft, event.session_id, event.spec)
    except FlameError as error:
        draft.refuse(event.ticket, error)
        return
    draft.reply(event.ticket, session_view(engine, session))


def on_open(engine: Engine, draft: Draft, event: OpenSession) -> None:
    """Get the open session; with a spec, create it when it is missing and compare when it is there."""
    session = engine.sessions.get(event.session_id)
    try:
        if session is None:
            if event.spec is None:
                raise NotFoundError(f"session <{event.session_id}> not found")
            session = _create(engine, draft, event.session_id, event.spec)
        elif session.state is not SessionState.OPEN:
            raise InvalidStateError(f"session <{event.session_id}> is not open")
        elif event.spec is not None:
            _compare(engine, session, event.spec)
    except FlameError as error:
        draft.refuse(event.ticket, error)
        return
    draft.reply(event.ticket, session_view(engine, session))


def _create(engine: Engine, draft: Draft, session_id: str, spec: SessionSpec) -> Session:
    if engine.read_only:
        raise ReadOnlyError(f"the journal can't be written: {engine.read_only}", remedy="free the disk and try again")
    if not session_id or len(session_id) > MAX_ID or "\0" in session_id:
        raise InvalidArgumentError(f"session id {session_id[:40]!r} is empty, over {MAX_ID} characters, or holds a NUL")
    resreq = check_session(engine, spec)
    session = Session(session_id, spec, resreq, draft.now_ms)
    engine.sessions[session_id] = session
    draft.record(RecordKind.SESSION, session_id, SessionMeta(spec, draft.now_ms))
    tell(draft, session, "created")
    scheduling.opened(engine, session)
    idleness.arm(engine, session)
    return session


def _compare(engine: Engine, session: Session, spec: SessionSpec) -> None:
    pairs = (
        ("application", session.spec.application, spec.application),
        ("resreq", session.resreq, spec.resreq if spec.resreq is not None else engine.settings.resreq),
        ("min_instances", session.spec.min_instances, spec.min_instances),
        ("max_instances", session.spec.max_instances, spec.max_instances),
        ("priority", session.spec.priority, spec.priority),
        # Those that other SDKs do not know count only where they are given.
        ("tenant", session.spec.tenant or DEFAULT_TENANT, spec.tenant or session.spec.tenant or DEFAULT_TENANT),
        ("gang", session.spec.gang, spec.gang or session.spec.gang),
        ("isolation", session.spec.isolation, spec.isolation or session.spec.isolation),
        ("idle_timeout_s", session.spec.idle_timeout_s, spec.idle_timeout_s or session.spec.idle_timeout_s),
        ("selector", session.spec.selector, spec.selector or session.spec.selector),
        ("max_running_per_key", session.per_key, spec.max_running_per_key or session.per_key),
    )
    for field, expected, got in pairs:
        if expected != got:
            raise InvalidArgumentError(
                f"session <{session.id}> spec mismatch: {field} differs (expected {expected}, got {got})"
            )


def on_close(engine: Engine, draft: Draft, event: CloseSession) -> None:
    """Pending tasks are cancelled. Running ones forbid it unless `force`, which cancels them too."""
    session = engine.sessions.get(event.session_id)
    if session is None:
        draft.refuse(event.ticket, NotFoundError(f"session <{event.session_id}> not found"))
        return
    if session.state is SessionState.CLOSED:
        draft.reply(event.ticket, session_view(engine, session))
        return
    if engine.read_only:
        draft.refuse(event.ticket, ReadOnlyError(f"the journal can't be written: {engine.read_only}"))
        return
    if session.running and not event.force:
        draft.refuse(
            event.ticket,
            InternalError(
                "Cannot close session with running tasks", remedy="wait for them, or force it", retryable=True
            ),
        )
        return
    close(engine, draft, session, "the session was closed")
    draft.reply(event.ticket, session_view(engine, session))
    _trim(engine, draft)


def close(engine: Engine, draft: Draft, session: Session, why: str) -> None:
    """Close an open session; what has not ended of its tasks is cancelled."""
    left = list(session.pending_ids())
    left += [index + 1 for index, state in enumerate(session.states) if state == RUNNING] if session.running else []
    tasks.finish(draft, session, [Finish(task_id, TaskState.CANCELLED, 0, why) for task_id in left])
    session.state = step(SESSION, session.state, "close")
    session.completed = draft.now_ms
    draft.record(RecordKind.SESSION_CLOSED, session.id, TimeMeta(draft.now_ms))
    tell(draft, session, "closed")
    for executor in list(session.executors.values()):
        placement.stop(engine, draft, executor, why)
    scheduling.closed(engine, session)
    draft.after.append(SessionChanged(session.id, session.state))
    keep_until_retention(engine, session)


def on_delete(engine: Engine, draft: Draft, event: DeleteSession) -> None:
    session = engine.sessions.get(event.session_id)
    if session is None:
        draft.refuse(event.ticket, NotFoundError(f"session <{event.session_id}> not found"))
    elif session.state is SessionState.OPEN:
        draft.refuse(event.ticket, InternalError("Cannot delete open session", remedy="close it first"))
    elif engine.read_only:
        draft.refuse(event.ticket, ReadOnlyError(f"the journal can't be written: {engine.read_only}"))
    else:
        view = session_view(engine, session)
        engine.purge(draft, session)
        draft.reply(event.ticket, view)


def keep_until_retention(engine: Engine, session: Session) -> None:
    """Set the alarm at which a closed session is forgotten."""
    engine.alarm(_retention_end(engine, session), "retention", session.id)


def _retention_end(engine: Engine, session: Session) -> int:
    seconds = session.spec.retention_s if session.spec.retention_s is not None else engine.settings.retention_s
    return (session.completed or 0) + seconds * 1000


def on_retention_over(engine: Engine, draft: Draft, session_id: str) -> None:
    session = engine.sessions.get(session_id)
    if session is None or session.state is not SessionState.CLOSED:
        return
    if _retention_end(engine, session) <= draft.now_ms:  # else: an alarm of an earlier session of this id
        engine.purge(draft, session)


def _trim(engine: Engine, draft: Draft) -> None:
    limit = engine.settings.max_sessions
    if limit is None or len(engine.sessions) <= limit:
        return
    closed = [s for s in engine.sessions.values() if s.state is SessionState.CLOSED]
    closed.sort(key=lambda session: session.completed or 0)
    for session in closed[: len(engine.sessions) - limit]:
        engine.purge(draft, session)


def tell(draft: Draft, session: Session, text: str) -> None:
    """Add a line to the session's story (not durable)."""
    session.story.append(RecordedEvent(0, text, draft.now_ms))


def record_event(draft: Draft, session: Session, code: int, message: str) -> None:
    """A durable event of the session; everybody who follows it is told."""
    made = RecordedEvent(code, message, draft.now_ms)
    session.events.append(made)
    del session.events[:-MAX_EVENTS]
    session.story.append(made)
    draft.record(RecordKind.EVENT, session.id, EventMeta(code, message, draft.now_ms))
    draft.after.append(SessionChanged(session.id, session.state, [made]))


# --- clients that follow a session -----------------------------------------------------------------------------------


def on_attached(engine: Engine, draft: Draft, event: Attached) -> None:
    """Answers which submissions from next_seq on are known, then delivers results that the client has not seen."""
    session = engine.sessions.get(event.session_id)
    if session is None:
        draft.refuse(event.ticket, NotFoundError(f"session <{event.session_id}> not found"))
        return
    session.attached.add(event.client_id)
    known: list[Accepted] = []
    ranges = list(event.unresolved)
    for index in session.client_chunks.get(event.client_id, ()):
        chunk = session.chunks[index]
        if chunk.first_seq + chunk.count > event.next_seq and chunk.first_seq:
            known.append(Accepted(0, chunk.first_seq, chunk.count, chunk.first))
            ranges.append((chunk.first, chunk.first + chunk.count - 1))
    draft.reply(event.ticket, known)
    by_batch: dict[int, list[int]] = {}
    finished: list[Finish] = []
    seen: set[int] = set()
    for first, last in ranges:
        for task_id in range(max(1, first), min(last, session.total) + 1):
            if session.states[task_id - 1] < SUCCEED or task_id in seen:
                continue
            seen.add(task_id)
            if task_id in session.finished:
                finished.append(session.finished[task_id])
            else:
                by_batch.setdefault(session.done_in[task_id - 1] - 1, []).append(task_id)
    for batch, ids in sorted(by_batch.items()):
        draft.after.append(Deliver(session.id, event.client_id, session.batches[batch].seq, ids))
    if finished:
        ids = [item.task_id for item in finished]
        draft.after.append(Deliver(session.id, event.client_id, 0, ids, finished))


def on_detached(engine: Engine, draft: Draft, event: Detached) -> None:
    del draft
    session = engine.sessions.get(event.session_id)
    if session is not None:
        session.attached.discard(event.client_id)


def on_watch(engine: Engine, draft: Draft, event: Watch) -> None:
    del draft
    session = engine.sessions.get(event.session_id)
    if session is not None:
        session.watched[event.task_id] = session.watched.get(event.task_id, 0) + 1


def on_unwatch(engine: Engine, draft: Draft, event: Unwatch) -> None:
    del draft
    session = engine.sessions.get(event.session_id)
    if session is not None and event.task_id in session.watched:
        session.watched[event.task_id] -= 1
        if session.watched[event.task_id] <= 0:
            del session.watched[event.task_id]

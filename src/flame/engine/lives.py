"""The life of a session: created, opened, followed, closed, kept for a while, forgotten."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flame.engine import placement, scheduling, story, tasks
from flame.engine.admission import check_session
from flame.engine.effects import Purge, RecordKind, SessionChanged
from flame.engine.lifecycles import SESSION, step
from flame.engine.records import Finish, NameMeta, SessionMeta, TimeMeta
from flame.engine.sessions import RUNNING, Session
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
from flame.model.specs import SessionSpec
from flame.model.states import SessionState, TaskState
from flame.model.tenants import DEFAULT_TENANT

if TYPE_CHECKING:
    from flame.engine.cluster import Cluster
    from flame.engine.events import (
        CloseSession,
        CreateSession,
        DeleteSession,
        OpenSession,
    )
    from flame.engine.turn import Draft

MAX_ID = 512


def on_create(cluster: Cluster, draft: Draft, event: CreateSession) -> None:
    try:
        if event.session_id in cluster.sessions:
            raise AlreadyExistsError(
                f"Session '{event.session_id}' already exists", remedy="choose another id, or open it"
            )
        session = _create(cluster, draft, event.session_id, event.spec)
    except FlameError as error:
        draft.refuse(event.ticket, error)
        return
    draft.reply(event.ticket, session_view(cluster, session))


def on_open(cluster: Cluster, draft: Draft, event: OpenSession) -> None:
    """Get the open session; with a spec, create it when it is missing and compare when it is there."""
    session = cluster.sessions.get(event.session_id)
    try:
        if session is None:
            if event.spec is None:
                raise NotFoundError(f"session <{event.session_id}> not found")
            session = _create(cluster, draft, event.session_id, event.spec)
        elif session.state is not SessionState.OPEN:
            raise InvalidStateError(f"session <{event.session_id}> is not open")
        elif event.spec is not None:
            _compare(cluster, session, event.spec)
    except FlameError as error:
        draft.refuse(event.ticket, error)
        return
    draft.reply(event.ticket, session_view(cluster, session))


def _create(cluster: Cluster, draft: Draft, session_id: str, spec: SessionSpec) -> Session:
    if cluster.read_only:
        raise ReadOnlyError(f"the journal can't be written: {cluster.read_only}", remedy="free the disk and try again")
    if not session_id or len(session_id) > MAX_ID or "\0" in session_id:
        raise InvalidArgumentError(f"session id {session_id[:40]!r} is empty, over {MAX_ID} characters, or holds a NUL")
    resreq = check_session(cluster, spec)
    session = Session(session_id, spec, resreq, draft.now_ms)
    cluster.sessions[session_id] = session
    draft.record(RecordKind.SESSION, session_id, SessionMeta(spec, draft.now_ms))
    story.tell(draft, session, "created")
    scheduling.opened(cluster, session)
    return session


def _compare(cluster: Cluster, session: Session, spec: SessionSpec) -> None:
    pairs = (
        ("application", session.spec.application, spec.application),
        ("resreq", session.resreq, spec.resreq if spec.resreq is not None else cluster.settings.resreq),
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


def on_close(cluster: Cluster, draft: Draft, event: CloseSession) -> None:
    """Pending tasks are cancelled. Running ones forbid it unless `force`, which cancels them too."""
    session = cluster.sessions.get(event.session_id)
    if session is None:
        draft.refuse(event.ticket, NotFoundError(f"session <{event.session_id}> not found"))
        return
    if session.state is SessionState.CLOSED:
        draft.reply(event.ticket, session_view(cluster, session))
        return
    if cluster.read_only:
        draft.refuse(event.ticket, ReadOnlyError(f"the journal can't be written: {cluster.read_only}"))
        return
    if session.running and not event.force:
        draft.refuse(
            event.ticket,
            InternalError(
                "Cannot close session with running tasks", remedy="wait for them, or force it", retryable=True
            ),
        )
        return
    close(cluster, draft, session, "the session was closed")
    draft.reply(event.ticket, session_view(cluster, session))
    _trim(cluster, draft)


def close(cluster: Cluster, draft: Draft, session: Session, why: str) -> None:
    """Close an open session; what has not ended of its tasks is cancelled."""
    left = list(session.pending_ids())
    left += [index + 1 for index, state in enumerate(session.states) if state == RUNNING] if session.running else []
    tasks.finish(draft, session, [Finish(task_id, TaskState.CANCELLED, 0, why) for task_id in left])
    session.state = step(SESSION, session.state, "close")
    session.completed = draft.now_ms
    draft.record(RecordKind.SESSION_CLOSED, session.id, TimeMeta(draft.now_ms))
    story.tell(draft, session, "closed")
    for executor in list(session.executors.values()):
        placement.stop(cluster, draft, executor, why)
    scheduling.closed(cluster, session)
    draft.after.append(SessionChanged(session.id, session.state))
    keep_until_retention(cluster, session)


def on_delete(cluster: Cluster, draft: Draft, event: DeleteSession) -> None:
    session = cluster.sessions.get(event.session_id)
    if session is None:
        draft.refuse(event.ticket, NotFoundError(f"session <{event.session_id}> not found"))
    elif session.state is SessionState.OPEN:
        draft.refuse(event.ticket, InternalError("Cannot delete open session", remedy="close it first"))
    elif cluster.read_only:
        draft.refuse(event.ticket, ReadOnlyError(f"the journal can't be written: {cluster.read_only}"))
    else:
        view = session_view(cluster, session)
        purge(cluster, draft, session)
        draft.reply(event.ticket, view)


def purge(cluster: Cluster, draft: Draft, session: Session) -> None:
    """Forget a closed session and everything in it."""
    for executor in list(session.executors.values()):
        placement.remove(cluster, draft, executor)
    del cluster.sessions[session.id]
    for index, count in enumerate((session.succeed, session.failed, session.cancelled)):
        cluster.purged[index] += count
    cluster.hungry.pop(session.id, None)
    cluster.touched.pop(session.id, None)
    last = draft.record(RecordKind.SESSION_GONE, session.id, NameMeta(session.id))
    draft.after.append(Purge(session.id, last))


def keep_until_retention(cluster: Cluster, session: Session) -> None:
    """Set the alarm at which a closed session is forgotten."""
    cluster.alarm(_retention_end(cluster, session), "retention", session.id)


def _retention_end(cluster: Cluster, session: Session) -> int:
    seconds = session.spec.retention_s if session.spec.retention_s is not None else cluster.settings.retention_s
    return (session.completed or 0) + seconds * 1000


def on_retention_over(cluster: Cluster, draft: Draft, session_id: str) -> None:
    session = cluster.sessions.get(session_id)
    if session is None or session.state is not SessionState.CLOSED:
        return
    if _retention_end(cluster, session) <= draft.now_ms:  # else: an alarm of an earlier session of this id
        purge(cluster, draft, session)


def _trim(cluster: Cluster, draft: Draft) -> None:
    limit = cluster.settings.max_sessions
    if limit is None or len(cluster.sessions) <= limit:
        return
    closed = [s for s in cluster.sessions.values() if s.state is SessionState.CLOSED]
    closed.sort(key=lambda session: session.completed or 0)
    for session in closed[: len(cluster.sessions) - limit]:
        purge(cluster, draft, session)


# --- clients that follow a session -----------------------------------------------------------------------------------

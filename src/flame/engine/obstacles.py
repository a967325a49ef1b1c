"""What keeps an open session from getting on, in a user's words: what the engine itself knows, and the scheduler's
rules, with what the engine knows of their nodes.

A reason is (rule, object, message, remedy, since in Unix ms); `since` 0 = it has no beginning.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from flame.engine import settling
from flame.engine.delays import Reason, clock
from flame.engine.executors import gang_complete
from flame.engine.sessions import Session
from flame.model.isolation import is_ability
from flame.model.states import EventCode, NodeState, SessionState
from flame.scheduler.reasons import INSTALL
from flame.scheduler.rooms import Shape, unlike

if TYPE_CHECKING:
    from flame.engine.cluster import Cluster
    from flame.engine.executors import Executor
    from flame.scheduler.reasons import No


def of_session(cluster: Cluster, session: Session) -> list[Reason]:
    """Every reason, the one that weighs most first."""
    if session.state is not SessionState.OPEN:
        return []
    found = [*_barred(cluster, session), *_binding(cluster, session), *_settling(cluster, session)]
    found.extend(_of_node(cluster, session, no) for no in cluster.scheduler.explain(session.id))
    found.extend(_limits(cluster, session))
    found.extend(_starting(session))
    if cluster.read_only:
        text = f"the journal can't be written: {cluster.read_only}"
        found.append(("journal", "cluster", text, "free the disk", cluster.read_only_since))
    return found


def own(cluster: Cluster, session: Session) -> Iterator[Reason]:
    """Why a session has no executor at work although the scheduler has nothing against it; cheap enough for lists."""
    yield from _barred(cluster, session)
    yield from _binding(cluster, session)
    yield from _settling(cluster, session)
    yield from _starting(session)


def sent_ahead(session: Session, task_id: int) -> Reason:
    """Of a task that an executor holds and has not begun."""
    executor = next(one for one in session.executors.values() if task_id in one.outstanding)
    before = list(executor.outstanding).index(task_id)
    text = f"it was sent ahead to executor {executor.id} on node {executor.node.name}, after {before} others"
    remedy = "nothing: another executor gets it when that one makes no progress"
    return ("order", f"task {task_id}", text, remedy, executor.progress)


def _barred(cluster: Cluster, session: Session) -> Iterator[Reason]:
    if session.barred:
        remedy = (
            "start the session manager as it was when the session was opened: with certificates (cluster.tls), at a"
            " unix socket only, or with cluster.insecure; or open a session that lists what it shall reach"
        )
        yield ("network", session.id, session.barred, remedy, cluster.settling.began)


def _binding(cluster: Cluster, session: Session) -> Iterator[Reason]:
    if session.paused:
        since = _last(session, EventCode.RETRY_LIMIT)[1]
        yield ("bind", session.id, session.paused, "mend the application, then open a new session", since)
    elif session.bind_failures:
        count = session.bind_failures
        message, since = _last(session, EventCode.BIND_FAILED)
        text = f"{'1 executor' if count == 1 else f'{count} executors in a row'} could not be bound; {message}"
        if session.not_before > cluster.now:
            text += f"; the next one starts at {clock(session.not_before)}"
        yield ("bind", session.id, text, f"look at flmctl logs -s {session.id}", since)


def _settling(cluster: Cluster, session: Session) -> Iterator[Reason]:
    if session.pending and settling.waits(cluster, session):
        names = sorted(cluster.settling.absent)
        text = "the session manager was restarted; executors may come back with " + ", ".join(names[:5])
        remedy = f"nothing: it goes on without them at {clock(cluster.settling.until)}"
        yield ("restart", names[0], text, remedy, cluster.settling.began)


def _last(session: Session, code: EventCode) -> tuple[str, int]:
    """Text and time of the session's last event of this kind."""
    event = next((event for event in reversed(session.events) if event.code == code), None)
    return (event.message, event.time) if event is not None else ("", 0)


def _starting(session: Session) -> Iterator[Reason]:
    coming = [executor for executor in session.executors.values() if executor.coming]
    if not coming or not session.pending:
        return
    since = min(executor.since for executor in coming)
    bound = sum(executor.bound for executor in coming)
    remedy = f"wait; if it takes long, look at flmctl logs -s {session.id}"
    if session.spec.gang and not gang_complete(session):
        text = f"{bound} of {session.spec.min_instances} members of the gang are bound; tasks are sent when all are"
        yield ("gang", session.id, text, remedy, since)
    elif not bound:
        yield ("starting", session.id, "its executors are starting", remedy, since)


def _limits(cluster: Cluster, session: Session) -> Iterator[Reason]:
    """Why it does not want more executors than it has, although tasks wait."""
    coming = [executor for executor in session.executors.values() if executor.coming]
    waiting = session.pending - session.waiting
    if session.spec.gang or waiting <= 0 or not coming or session.paused or cluster.scheduler.lacks(session.id):
        return
    have = len(coming)
    since = max(executor.since for executor in coming)
    name = session.spec.application
    application = cluster.applications.get(name)
    mine = session.spec.max_instances
    most = application.spec.max_instances if application is not None else have
    if mine is not None and mine <= min(most, have):
        text = f"the session has {_executors(coming)}, its max_instances; {waiting} tasks wait for them"
        yield ("max_instances", session.id, text, "open a session with more max_instances", since)
    elif most <= have:
        text = f"application {name} has {_executors(coming)} in this session, its max_instances is {most}"
        yield ("application", name, text, "raise its max_instances", since)
    elif session.avg_us >= 0 and waiting + session.running > have:
        text = f"{_executors(coming)} will be through with {waiting} waiting tasks before another could start"
        yield ("order", session.id, text, "nothing: it is a matter of moments", since)


def _executors(coming: list[Executor]) -> str:
    return "1 executor" if len(coming) == 1 else f"{len(coming)} executors"


def _of_node(cluster: Cluster, session: Session, no: No) -> Reason:
    """A rule of the scheduler; of a node that is marked or away the engine knows since when, and what helps."""
    reason = (no.rule, no.object, no.message, no.remedy, no.since)
    ask = cluster.scheduler.books.asks.get(session.id)
    place = cluster.scheduler.books.places.get(no.object)
    node = cluster.nodes.get(no.object)
    if no.rule != "node" or ask is None or place is None or node is None:
        return reason
    mark = cluster.marks.get(no.object)
    if isinstance(ask.shape, Shape) and cluster.scheduler.rooms.why_not(ask.shape, place):
        able = not is_ability(unlike(ask, place))
        remedy = "change selector or tolerations, or the node's labels and taints" if able else INSTALL
        return (*reason[:3], no.remedy or remedy, no.since)
    if node.state is not NodeState.READY:
        return (*reason[:3], no.remedy or "start its executor manager, or look at its log", node.since)
    if mark is not None:
        return (*reason[:3], no.remedy or f"flmctl node uncordon {no.object}", mark.time)
    if not session.resreq.fits(place.capacity):
        return (*reason[:3], no.remedy or "ask for less in resreq", no.since)
    return (*reason[:3], no.remedy or "wait for what runs there, or ask for less in resreq", no.since)

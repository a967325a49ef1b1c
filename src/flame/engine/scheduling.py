"""Between the engine and the scheduler: what sessions want, passes, and carrying out what was decided."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flame.engine import gangs, placement, story, tasks, tenants, wants
from flame.engine.effects import Complain
from flame.engine.sessions import Session
from flame.model.isolation import placed
from flame.model.specs import DEFAULT_MAX_INSTANCES
from flame.model.states import EventCode, SessionState

if TYPE_CHECKING:
    from flame.engine.cluster import Cluster
    from flame.engine.turn import Draft
    from flame.scheduler.scheduler import Plan, Start


def opened(cluster: Cluster, session: Session) -> None:
    """The session is open: its tenant and the scheduler have to know it."""
    tenants.count_in(cluster, session)
    application = cluster.applications.get(session.spec.application)
    most = application.spec.max_instances if application is not None else DEFAULT_MAX_INSTANCES
    spec = placed(application.spec, session.spec) if application is not None else session.spec
    cluster.scheduler.open_session(session.id, spec, session.resreq, session.created, most)
    if session.spec.idle_timeout_s:
        cluster.alarm(cluster.now + session.spec.idle_timeout_s * 1000, "unused", session.id)
    cluster.changed(session)


def schedule(cluster: Cluster, draft: Draft) -> None:
    """Tell the scheduler what changed, and let it decide if that could lead to another answer than the last one."""
    scheduler = cluster.scheduler
    for session in cluster.hungry.values():
        scheduler.wants(session.id, wants.want(cluster, session), draft.now_ms)
    if scheduler.dirty:
        plan = scheduler.decide(draft.now_ms, cluster.load, cluster.new_channel)
        _carry_out(cluster, draft, plan)
        for name, text in scheduler.policies.news():
            draft.now.append(Complain(f"policy {name} failed and was skipped: {text}"))
        if scheduler.dirty or plan.again:
            cluster.alarm(draft.now_ms + 1 if scheduler.dirty else plan.again, "pass", "")
    for session in cluster.hungry.values():
        if not session.hopeless_at and scheduler.lacks(session.id):
            _look_again(cluster, session, draft.now_ms)
    cluster.hungry.clear()


def closed(cluster: Cluster, session: Session) -> None:
    """The session is closed: it wants nothing any more, and counts no longer."""
    cluster.scheduler.close_session(session.id)
    cluster.hungry.pop(session.id, None)
    tenants.count_out(session)


def _carry_out(cluster: Cluster, draft: Draft, plan: Plan) -> None:
    together: dict[str, list[Start]] = {}
    for start in plan.starts:
        if start.world > 1 or cluster.sessions[start.session].spec.gang:
            together.setdefault(start.session, []).append(start)
        else:
            placement.start(cluster, draft, cluster.sessions[start.session], cluster.nodes[start.node], start.channel)
    for session_id, starts in together.items():
        gangs.start(cluster, draft, cluster.sessions[session_id], starts)
    for stop in plan.stops:
        executor = cluster.executors.get(stop.channel)
        if executor is not None:
            grace = cluster.settings.preemption_grace_ms
            placement.drain(cluster, draft, executor, grace, "another session waits for its place")


def _look_again(cluster: Cluster, session: Session, since: int) -> None:
    """When it has lacked executors for long enough since then, look whether any node could run it."""
    session.hopeless_at = since + cluster.settings.unsatisfiable_ms
    cluster.alarm(session.hopeless_at, "hopeless", session.id)


def on_hopeless_alarm(cluster: Cluster, draft: Draft, session_id: str) -> None:
    """The session has lacked executors for a while: if no node could ever run it, its tasks fail with the reason.

    While no node is known at all nothing fails: they may be about to join.
    """
    session = cluster.sessions.get(session_id)
    if session is None or session.hopeless_at > draft.now_ms:  # else: an alarm of an earlier session of this id
        return
    session.hopeless_at = 0
    since = cluster.scheduler.since(session_id)
    if session.state is not SessionState.OPEN or not since:
        return
    if draft.now_ms < since + cluster.settings.unsatisfiable_ms:
        _look_again(cluster, session, since)
        return
    no = cluster.scheduler.impossible(session_id)
    if no is not None and session.pending and not session.executors:
        text = f"session <{session_id}> can't run here: {no.message}; {no.remedy}"
        story.record_event(draft, session, EventCode.UNSATISFIABLE, text)
        tasks.fail_pending(cluster, draft, session, text)
        cluster.changed(session)
    _look_again(cluster, session, draft.now_ms)

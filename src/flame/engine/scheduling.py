"""Between the engine and the scheduler: what sessions want, passes, and carrying out what was decided."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flame.engine import gangs, lives, placement, tasks, tenants, wants
from flame.engine.effects import Complain
from flame.engine.sessions import Session
from flame.model.isolation import placed
from flame.model.specs import DEFAULT_MAX_INSTANCES
from flame.model.states import EventCode, SessionState

if TYPE_CHECKING:
    from flame.engine.engine import Engine
    from flame.engine.turn import Draft
    from flame.scheduler.scheduler import Plan, Start


def opened(engine: Engine, session: Session) -> None:
    """The session is open: its tenant and the scheduler have to know it."""
    tenants.count_in(engine, session)
    application = engine.applications.get(session.spec.application)
    most = application.spec.max_instances if application is not None else DEFAULT_MAX_INSTANCES
    spec = placed(application.spec, session.spec) if application is not None else session.spec
    engine.scheduler.open_session(session.id, spec, session.resreq, session.created, most)
    engine.changed(session)


def schedule(engine: Engine, draft: Draft) -> None:
    """Tell the scheduler what changed, and let it decide if that could lead to another answer than the last one."""
    scheduler = engine.scheduler
    for session in engine.hungry.values():
        scheduler.wants(session.id, wants.want(engine, session), draft.now_ms)
    if scheduler.dirty:
        plan = scheduler.decide(draft.now_ms, engine.load, engine.new_channel)
        _carry_out(engine, draft, plan)
        for name, text in scheduler.policies.news():
            draft.now.append(Complain(f"policy {name} failed and was skipped: {text}"))
        if scheduler.dirty or plan.again:
            engine.alarm(draft.now_ms + 1 if scheduler.dirty else plan.again, "pass", "")
    for session in engine.hungry.values():
        if not session.hopeless_at and scheduler.lacks(session.id):
            _look_again(engine, session, draft.now_ms)
    engine.hungry.clear()


def closed(engine: Engine, session: Session) -> None:
    """The session is closed: it wants nothing any more, and counts no longer."""
    engine.scheduler.close_session(session.id)
    engine.hungry.pop(session.id, None)
    tenants.count_out(session)


def _carry_out(engine: Engine, draft: Draft, plan: Plan) -> None:
    together: dict[str, list[Start]] = {}
    for start in plan.starts:
        if start.world > 1 or engine.sessions[start.session].spec.gang:
            together.setdefault(start.session, []).append(start)
        else:
            placement.start(engine, draft, engine.sessions[start.session], engine.nodes[start.node], start.channel)
    for session_id, starts in together.items():
        gangs.start(engine, draft, engine.sessions[session_id], starts)
    for stop in plan.stops:
        executor = engine.executors.get(stop.channel)
        if executor is not None:
            grace = engine.settings.preemption_grace_ms
            placement.drain(engine, draft, executor, grace, "another session waits for its place")


def _look_again(engine: Engine, session: Session, since: int) -> None:
    """When it has lacked executors for long enough since then, look whether any node could run it."""
    session.hopeless_at = since + engine.settings.unsatisfiable_ms
    engine.alarm(session.hopeless_at, "hopeless", session.id)


def on_hopeless_alarm(engine: Engine, draft: Draft, session_id: str) -> None:
    """The session has lacked executors for a while: if no node could ever run it, its tasks fail with the reason.

    While no node is known at all nothing fails: they may be about to join.
    """
    session = engine.sessions.get(session_id)
    if session is None or session.hopeless_at > draft.now_ms:  # else: an alarm of an earlier session of this id
        return
    session.hopeless_at = 0
    since = engine.scheduler.since(session_id)
    if session.state is not SessionState.OPEN or not since:
        return
    if draft.now_ms < since + engine.settings.unsatisfiable_ms:
        _look_again(engine, session, since)
        return
    no = engine.scheduler.impossible(session_id)
    if no is not None and session.pending and not session.executors:
        text = f"session <{session_id}> can't run here: {no.message}; {no.remedy}"
        lives.record_event(draft, session, EventCode.UNSATISFIABLE, text)
        tasks.fail_pending(engine, draft, session, text)
        engine.changed(session)
    _look_again(engine, session, draft.now_ms)

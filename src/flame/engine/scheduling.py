"""Between the engine and the scheduler: what sessions want, passes, and carrying out what was decided."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flame.engine import gangs, lives, placement, tasks
from flame.engine.effects import Complain
from flame.engine.sessions import Session
from flame.model.specs import DEFAULT_MAX_INSTANCES
from flame.model.states import EventCode, SessionState

if TYPE_CHECKING:
    from flame.engine.engine import Engine
    from flame.engine.turn import Draft
    from flame.scheduler.scheduler import Plan, Start

# Starting an instance costs about a tenth of a second: do not start one for work that those there end sooner.
WORTH_US = 100_000


def opened(engine: Engine, session: Session) -> None:
    """The session is open: the scheduler has to know it."""
    application = engine.applications.get(session.spec.application)
    most = application.spec.max_instances if application is not None else DEFAULT_MAX_INSTANCES
    engine.scheduler.open_session(session.id, session.spec, session.resreq, session.created, most)
    engine.changed(session)


def want(engine: Engine, session: Session) -> int:
    """How many executors the session can use now, within its limits."""
    if session.state is not SessionState.OPEN:
        return 0
    coming = sum(executor.coming for executor in session.executors.values())
    if session.paused or session.not_before > engine.now:
        return coming
    spec = session.spec
    if spec.gang:
        return spec.min_instances
    pending = session.pending - session.waiting
    wanted = pending + session.running
    if session.avg_us >= 0 and coming:
        # `coming` executors will be through with what is pending in pending * avg / coming.
        wanted = min(wanted, coming + int(pending * session.avg_us / coming / WORTH_US))
    application = engine.applications.get(spec.application)
    most = application.spec.max_instances if application is not None else 0
    if spec.max_instances is not None:
        most = min(most, spec.max_instances)
    return min(max(wanted, spec.min_instances), most)


def schedule(engine: Engine, draft: Draft) -> None:
    """Tell the scheduler what changed, and let it decide if that could lead to another answer than the last one."""
    scheduler = engine.scheduler
    for session in engine.hungry.values():
        scheduler.wants(session.id, want(engine, session), draft.now_ms)
    if scheduler.dirty:
        plan = scheduler.decide(draft.now_ms, engine.load, engine.new_channel)
        _carry_out(engine, draft, plan)
        for name, text in scheduler.policies.news():
            draft.now.append(Complain(f"policy {name} failed and was skipped: {text}"))
        if scheduler.dirty or plan.again:
            engine.alarm(draft.now_ms + 1 if scheduler.dirty else plan.again, "pass", "")
    for session in list(engine.hungry.values()):
        if scheduler.lacks(session.id):
            engine.alarm(draft.now_ms + engine.settings.unsatisfiable_ms, "hopeless", session.id)
    engine.hungry.clear()


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


def on_hopeless_alarm(engine: Engine, draft: Draft, session_id: str) -> None:
    """The session has lacked executors for a while: if no node could ever run it, its tasks fail with the reason."""
    session = engine.sessions.get(session_id)
    since = engine.scheduler.since(session_id)
    if session is None or session.state is not SessionState.OPEN or not since:
        return
    wait = engine.settings.unsatisfiable_ms
    no = engine.scheduler.impossible(session_id)
    if no is None or draft.now_ms < since + wait or session.executors:
        engine.alarm(max(draft.now_ms, since) + wait, "hopeless", session_id)
        return
    if session.pending:
        text = f"no node can run session <{session_id}>: {no.message}; {no.remedy}"
        lives.record_event(draft, session, EventCode.UNSATISFIABLE, text)
        tasks.fail_pending(engine, draft, session, text)
        engine.changed(session)
    engine.alarm(draft.now_ms + wait, "hopeless", session_id)

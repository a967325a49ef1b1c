"""How many executors a session can use.

Starting an instance costs about a tenth of a second: none is started for work that those there end sooner, by the run
time that was observed. What was observed may be wrong for what comes next: while tasks wait behind an executor that
makes no progress, its silence counts as the run time, and a session with tasks that wait is looked at now and then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flame.engine import settling
from flame.engine.sessions import Session
from flame.model.states import SessionState

if TYPE_CHECKING:
    from flame.engine.cluster import Cluster

WORTH_MS = 100  # what starting an instance costs
LOOK_MS = 1_000  # the longest pause between two looks


def want(cluster: Cluster, session: Session) -> int:
    """How many executors the session can use now, within its limits."""
    if session.state is not SessionState.OPEN or session.barred:
        return 0
    coming = sum(executor.coming for executor in session.executors.values())
    if session.paused or session.not_before > cluster.now or settling.waits(cluster, session):
        return coming
    if session.spec.gang:
        return session.spec.min_instances
    most = _most(cluster, session)
    wanted = min(session.pending - session.waiting + session.running, most)
    if session.avg_us >= 0 and coming:
        worth = coming
        backlog = _backlog(session)
        if backlog:
            # `coming` executors will be through with it in backlog * run time / coming.
            run_ms = max(session.avg_us / 1000, _silence_ms(cluster, session))
            worth += int(backlog * run_ms / coming / WORTH_MS)
            if worth < wanted and not session.look_at:
                _look_again(cluster, session)
        wanted = min(wanted, worth)
    return min(max(wanted, session.spec.min_instances), most)


def _look_again(cluster: Cluster, session: Session) -> None:
    """Tasks wait for executors that should be through with them soon: see whether they are."""
    session.look_at = cluster.now + session.look_ms
    cluster.alarm(session.look_at, "look", session.id)


def on_look_alarm(cluster: Cluster, session: Session) -> None:
    """The longer all goes as expected, the longer the pauses."""
    if session.look_at > cluster.now:
        return  # an alarm of an earlier session of this name
    session.look_at = 0
    slow = _silence_ms(cluster, session) >= WORTH_MS
    session.look_ms = WORTH_MS if slow or not _backlog(session) else min(2 * session.look_ms, LOOK_MS)
    cluster.changed(session)


def _most(cluster: Cluster, session: Session) -> int:
    application = cluster.applications.get(session.spec.application)
    most = application.spec.max_instances if application is not None else 0
    return most if session.spec.max_instances is None else min(most, session.spec.max_instances)


def _backlog(session: Session) -> int:
    """Tasks that nobody works on: those that wait here, and those that were sent ahead."""
    at_work = sum(executor.running for executor in session.executors.values())
    return session.pending - session.waiting + session.running - at_work


def _silence_ms(cluster: Cluster, session: Session) -> int:
    """For how long the executor that holds tasks and makes no progress has made none."""
    return max(
        (cluster.now - executor.progress for executor in session.executors.values() if executor.outstanding), default=0
    )

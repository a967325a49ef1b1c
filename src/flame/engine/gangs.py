"""Gangs: members start together, know each other's addresses, and are of no use one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from flame.engine import placement, story, tasks
from flame.engine.executors import Executor, Node
from flame.engine.records import Finish
from flame.engine.sessions import RUNNING, Session
from flame.model.specs import Gang
from flame.model.states import EventCode, SessionState, TaskState

if TYPE_CHECKING:
    from flame.engine.cluster import Cluster
    from flame.engine.turn import Draft
    from flame.scheduler.scheduler import Start


def start(cluster: Cluster, draft: Draft, session: Session, starts: Sequence[Start]) -> None:
    """Start all members; their addresses are known before the first of them runs."""
    ordered = sorted(starts, key=lambda item: item.rank)
    taken: dict[str, set[int]] = {}
    addresses: list[str] = []
    for item in ordered:
        node = cluster.nodes[item.node]
        ports = taken.setdefault(node.name, _ports_in_use(node))
        port = _free_port(cluster, ports)
        ports.add(port)
        host = _host(node)
        addresses.append(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    for item in ordered:
        gang = Gang(item.rank, len(ordered), tuple(addresses))
        placement.start(cluster, draft, session, cluster.nodes[item.node], item.channel, gang)


def _host(node: Node) -> str:
    """Where the other members reach the node."""
    by_kind = dict(reversed(node.addresses))
    return by_kind.get("InternalIP") or by_kind.get("IP") or next((a for _, a in node.addresses), "") or node.hostname


def _ports_in_use(node: Node) -> set[int]:
    gangs = [executor.gang for executor in node.executors.values() if executor.gang is not None]
    return {int(gang.addresses[gang.rank].rsplit(":", 1)[1]) for gang in gangs if gang.rank < len(gang.addresses)}


def _free_port(cluster: Cluster, used: set[int]) -> int:
    """The next port in turn that no member on the node has, so that one just left has time to be free; 0 = none."""
    first, last = cluster.settings.gang_ports
    count = last - first + 1
    for _ in range(count):
        cluster.next_gang_port = (cluster.next_gang_port + 1) % count
        port = first + cluster.next_gang_port
        if port not in used:
            return port
    return 0


def member_lost(cluster: Cluster, draft: Draft, lost: Executor, why: str) -> None:
    """A member is gone that should be there: the others leave; the gang starts again, or its tasks fail."""
    session = lost.session
    if session.state is not SessionState.OPEN:
        return
    rank = lost.gang.rank if lost.gang is not None else -1
    text = f"member {rank} of the gang was lost on node {lost.node.name}: {why}"
    _break_up(cluster, draft, session, text)


def on_gang_alarm(cluster: Cluster, draft: Draft, session_id: str) -> None:
    """Some members were found again after a restart of the session manager: are all of them there?"""
    session = cluster.sessions.get(session_id)
    if session is None or session.state is not SessionState.OPEN:
        return
    members = sum(executor.coming for executor in session.executors.values())
    if 0 < members < session.spec.min_instances:
        _break_up(cluster, draft, session, f"only {members} of {session.spec.min_instances} members came back")


def _break_up(cluster: Cluster, draft: Draft, session: Session, text: str) -> None:
    others = [executor for executor in session.executors.values() if executor.coming]
    fails = session.spec.on_member_loss == "fail"
    outcome = "its tasks fail" if fails else "the gang starts again"
    story.record_event(draft, session, EventCode.GANG_LOST, f"{text}; {outcome}")
    if fails:
        running = [index + 1 for index, state in enumerate(session.states) if state == RUNNING]
        finishes = [Finish(task_id, TaskState.FAILED, -1, text) for task_id in running]
        tasks.finish(draft, session, finishes)
        tasks.fail_pending(cluster, draft, session, text)
    for executor in others:
        placement.stop(cluster, draft, executor, text)

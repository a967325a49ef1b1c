"""Nodes: they join, are away for a while, come back or are lost; administrators cordon and drain them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flame.engine import dispatch, lanes, placement, reports, settling, story, tasks
from flame.engine.cluster_views import node_view
from flame.engine.effects import InterruptTasks, RecordKind, StopExecutor
from flame.engine.events import Held
from flame.engine.executors import Executor, Node
from flame.engine.records import NodeMarkMeta
from flame.engine.sessions import PENDING
from flame.model.errors import InvalidArgumentError, NotFoundError, ReadOnlyError
from flame.model.states import ExecutorState, NodeState, SessionState

if TYPE_CHECKING:
    from flame.engine.cluster import Cluster
    from flame.engine.events import MarkNode, NodeHeartbeat, NodeJoined, NodeLeft
    from flame.engine.turn import Draft

MARKS = ("cordon", "drain", "uncordon")


def on_node_joined(cluster: Cluster, draft: Draft, event: NodeJoined) -> None:
    """A node is (again) there. What it holds and what we remember of it are brought together."""
    node = cluster.nodes.get(event.name)
    if node is None:
        node = cluster.nodes[event.name] = Node(event.name)
    reborn = node.boot_id not in ("", event.boot_id)
    node.step("joined", draft.now_ms)
    node.boot_id = event.boot_id
    node.hostname = event.hostname
    node.arch, node.os, node.addresses = event.arch, event.os, tuple(event.addresses)
    node.heartbeat = draft.now_ms
    node.labels, node.taints = dict(event.labels), tuple(event.taints)
    node.max_executors = event.max_executors
    node.resize(event.capacity)
    node.cordoned = event.name in cluster.marks
    publish(cluster, node)
    held = {item.channel: item for item in event.held}
    for executor in list(node.executors.values()):
        item = held.pop(executor.channel, None)
        if item is None or item.executor_id != executor.id or reborn:
            reports.lose(cluster, draft, executor, f"node {node.name} came back without it")
        else:
            _reconcile(cluster, draft, executor, item)
    for channel in node.leaving.keys() - held.keys():
        placement.left(cluster, node, channel)
    for item in held.values():
        if item.channel not in node.leaving:
            if _adopt(cluster, draft, node, item):
                continue
            placement.leaves(cluster, node, item.channel, item.resreq)
        draft.now.append(StopExecutor(node.name, item.channel, 0, "nobody waits for it any more"))
    _mark(cluster, draft, node)
    settling.joined(cluster, draft, event.name)


def _reconcile(cluster: Cluster, draft: Draft, executor: Executor, item: Held) -> None:
    """The link was away for a while: tasks or answers that were on their way may be lost."""
    there = set(item.task_ids)
    lost = [task_id for task_id in executor.outstanding if task_id not in there]
    executor.retracting = False
    placement.return_tasks(draft, executor, lost)
    tasks.interrupt_ended(draft, executor)
    if executor.state in (ExecutorState.UNBINDING, ExecutorState.RELEASING):
        draft.now.append(StopExecutor(executor.node.name, executor.channel, cluster.settings.stop_grace_ms, "stop"))
    elif item.state is ExecutorState.BOUND:
        reports.bound(cluster, draft, executor, item.concurrency)
    dispatch.after_progress(cluster, draft, executor)


def _adopt(cluster: Cluster, draft: Draft, node: Node, item: Held) -> bool:
    """An executor that went on while we knew nothing of it: after a restart of the session manager, or when its node
    was thought lost. False = it is not wanted."""
    session = cluster.sessions.get(item.session_id)
    if session is None or session.state is not SessionState.OPEN or session.barred or item.channel in cluster.executors:
        return False
    if item.state not in (ExecutorState.BINDING, ExecutorState.BOUND):
        return False
    if not item.resreq.fits(node.capacity - node.allocated) or not set(item.gpus) <= set(node.free_gpus):
        return False  # its place was given to another meanwhile
    cluster.scheduler.took(item.channel, session.id, node.name, item.resreq)
    executor = placement.add(cluster, draft, node, session, item)
    executor.step("started", draft.now_ms)
    attempts = item.attempts or [1] * len(item.task_ids)
    durable = cluster.last_seq_of(item.channel)
    for task_id, attempt in dict(zip(item.task_ids, attempts, strict=True)).items():
        known = 1 <= task_id <= session.total and session.states[task_id - 1] == PENDING
        if task_id > session.total or (known and session.chunk_of(task_id).seq > durable):
            # It was sent before it was durable, and lost: its number is given to another task. Results tell by attempt.
            session.attempts[task_id] = max(attempt + 1, session.attempts.get(task_id, 1))
            draft.now.append(InterruptTasks(node.name, item.channel, [task_id], "it was lost with a session manager"))
        elif known and lanes.take_up(session, task_id):
            executor.outstanding[task_id] = attempt
            if attempt > session.attempts.get(task_id, 1):
                session.attempts[task_id] = attempt
        else:
            executor.outstanding[task_id] = 0
    tasks.interrupt_ended(draft, executor)
    if item.state is ExecutorState.BOUND:
        reports.bound(cluster, draft, executor, item.concurrency)
    if executor.gang is not None:  # are the others there as well?
        cluster.alarm(draft.now_ms + cluster.settings.drain_ms, "gang", session.id)
    story.tell(draft, session, f"executor {executor.id} on node {node.name} found again")
    return True


def on_node_heartbeat(cluster: Cluster, draft: Draft, event: NodeHeartbeat) -> None:
    node = cluster.nodes.get(event.name)
    if node is None:
        return
    node.heartbeat = draft.now_ms
    if event.capacity is not None and event.capacity != node.capacity:
        node.resize(event.capacity)
        publish(cluster, node)


def on_node_left(cluster: Cluster, draft: Draft, event: NodeLeft) -> None:
    """Its link is down: nothing new goes there; what it does is waited for until the grace time is over."""
    node = cluster.nodes.get(event.name)
    if node is None or node.state is not NodeState.READY:
        return
    node.step("left", draft.now_ms)
    for session in {executor.session.id: executor.session for executor in node.executors.values()}.values():
        story.tell(draft, session, f"node {node.name} is away: {event.reason or 'link lost'}")
    cluster.alarm(draft.now_ms + cluster.settings.drain_ms, "grace", node.name)
    publish(cluster, node)


def on_grace_over(cluster: Cluster, draft: Draft, name: str) -> None:
    node = cluster.nodes.get(name)
    if node is None or node.state is not NodeState.UNKNOWN:
        return
    if draft.now_ms < node.since + cluster.settings.drain_ms:  # it came and left again meanwhile
        cluster.alarm(node.since + cluster.settings.drain_ms, "grace", name)
        return
    node.step("lost", draft.now_ms)
    for executor in list(node.executors.values()):
        reports.lose(cluster, draft, executor, f"node {name} is lost")
    for channel in list(node.leaving):
        placement.left(cluster, node, channel)
    del cluster.nodes[name]
    cluster.scheduler.drop_node(name)
    settling.lost(cluster, draft, name)


# --- cordon and drain ------------------------------------------------------------------------------------------------


def publish(cluster: Cluster, node: Node) -> None:
    """Tell the scheduler what the node has and whether it takes executors."""
    cluster.scheduler.put_node(
        node.name,
        node.capacity,
        ready=node.state is NodeState.READY,
        takes=not node.cordoned,
        labels=node.labels,
        taints=node.taints,
        limit=node.max_executors,
        also=[node.hostname, *(address for _, address in node.addresses)],
    )


def on_mark_node(cluster: Cluster, draft: Draft, event: MarkNode) -> None:
    """Cordon, drain or uncordon a node; durable, also for one that is away."""
    node = cluster.nodes.get(event.name)
    if event.mark not in MARKS:
        text = f"unknown mark {event.mark!r} of node {event.name}"
        draft.refuse(event.ticket, InvalidArgumentError(text, remedy=f"write one of {', '.join(MARKS)}"))
    elif event.grace_ms < 0:
        draft.refuse(event.ticket, InvalidArgumentError(f"grace time {event.grace_ms} ms is negative"))
    elif node is None and event.name not in cluster.marks:
        names = ", ".join(sorted(cluster.nodes)[:5]) or "none"
        error = NotFoundError(f"node <{event.name}> not found", remedy=f"flmctl list -n shows them: {names}")
        draft.refuse(event.ticket, error)
    elif cluster.read_only:
        draft.refuse(event.ticket, ReadOnlyError(f"the journal can't be written: {cluster.read_only}"))
    else:
        meta = NodeMarkMeta(event.name, event.mark, event.grace_ms, draft.now_ms)
        draft.record(RecordKind.NODE_MARK, "", meta)
        apply_mark(cluster, meta)
        if node is not None:
            _mark(cluster, draft, node)
        draft.reply(event.ticket, node_view(cluster, event.name))


def apply_mark(cluster: Cluster, meta: NodeMarkMeta) -> None:
    """Remember the mark; the same at run time and at replay."""
    if meta.mark == "uncordon":
        cluster.marks.pop(meta.name, None)
    else:
        cluster.marks[meta.name] = meta


def _mark(cluster: Cluster, draft: Draft, node: Node) -> None:
    """Make the node what its mark says."""
    meta = cluster.marks.get(node.name)
    node.cordoned = meta is not None
    node.draining = meta is not None and meta.mark == "drain"
    publish(cluster, node)
    if meta is not None and node.draining:
        for executor in list(node.executors.values()):
            # A gang moves as a whole: its other members are of no use without this one.
            unit = [executor] if executor.gang is None else list(executor.session.executors.values())
            for member in unit:
                placement.drain(cluster, draft, member, meta.grace_ms, f"node {node.name} is being drained")

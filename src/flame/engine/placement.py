"""Executors: started where the scheduler says, told to leave, forgotten."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flame.engine import lanes, story, tasks
from flame.engine.effects import RetractTasks, StartExecutor, StopExecutor
from flame.engine.events import Held
from flame.engine.executors import Executor, Node
from flame.engine.sessions import Session
from flame.model.resources import Resources
from flame.model.specs import Gang
from flame.model.states import ExecutorState

if TYPE_CHECKING:
    from flame.engine.cluster import Cluster
    from flame.engine.turn import Draft


def leaves(cluster: Cluster, node: Node, channel: int, resreq: Resources) -> None:
    """An executor that belongs to no session any more keeps its place until the node says that it is gone."""
    node.leaving[channel] = resreq
    node.allocated += resreq
    cluster.scheduler.took(channel, "", node.name, resreq)


def left(cluster: Cluster, node: Node, channel: int) -> None:
    """It is gone."""
    node.allocated -= node.leaving.pop(channel)
    cluster.scheduler.freed(channel)


def add(cluster: Cluster, draft: Draft, node: Node, session: Session, item: Held) -> Executor:
    channel = item.channel
    executor = Executor(item.executor_id, channel, node, session, draft.now_ms)
    executor.resreq = item.resreq
    executor.pid = item.pid
    executor.gpus = tuple(item.gpus)
    executor.gang = item.gang
    node.free_gpus = [gpu for gpu in node.free_gpus if gpu not in executor.gpus]
    cluster.executors[channel] = executor
    session.executors[channel] = executor
    node.executors[channel] = executor
    node.allocated += executor.resreq
    return executor


def start(cluster: Cluster, draft: Draft, session: Session, node: Node, channel: int, gang: Gang | None = None) -> None:
    """Start an executor as the scheduler decided; it has its room in the scheduler's books already."""
    gpus = node.free_gpus[: session.resreq.gpu]
    item = Held(cluster.make_id(), channel, session.id, session.resreq, ExecutorState.VOID, 1, (), gpus=gpus, gang=gang)
    executor = add(cluster, draft, node, session, item)
    story.tell(draft, session, f"executor {executor.id} starts on node {node.name}")
    draft.now.append(StartExecutor(node.name, channel, executor.id, session.id, executor.gpus, gang))


def stop(cluster: Cluster, draft: Draft, executor: Executor, reason: str) -> None:
    """Ask the executor to leave its session and end. Its capacity is free when it reports that it is gone."""
    if executor.state in (ExecutorState.UNBINDING, ExecutorState.RELEASING):
        return
    executor.step("stop", draft.now_ms)
    cluster.scheduler.leaving(executor.channel)
    cluster.changed(executor.session)
    grace = cluster.settings.stop_grace_ms if not executor.outstanding else 0  # nobody waits for what it still does
    story.tell(draft, executor.session, f"executor {executor.id} stops: {reason}")
    draft.now.append(StopExecutor(executor.node.name, executor.channel, grace, reason))


def remove(cluster: Cluster, draft: Draft, executor: Executor) -> None:
    """Forget an executor; it is stopped, and keeps its place on the node until it is gone."""
    stop(cluster, draft, executor, "its session is gone")
    executor.node.leaving[executor.channel] = executor.resreq
    executor.node.allocated += executor.resreq
    _forget(cluster, executor)


def drain(cluster: Cluster, draft: Draft, executor: Executor, grace_ms: int, why: str) -> None:
    """Take no more tasks, give back what was sent ahead, end what runs within `grace_ms`, then leave."""
    if not executor.coming:
        return
    executor.draining = True
    executor.leave_by = draft.now_ms + grace_ms
    executor.leave_why = why
    cluster.scheduler.leaving(executor.channel)
    cluster.changed(executor.session)
    if not executor.outstanding:
        stop(cluster, draft, executor, why)
        return
    story.tell(draft, executor.session, f"executor {executor.id} leaves after its running tasks: {why}")
    cluster.alarm(executor.leave_by, "leave", str(executor.channel))
    if len(executor.outstanding) > executor.concurrency and not executor.retracting:
        executor.retracting = True
        draft.now.append(RetractTasks(executor.node.name, executor.channel, executor.concurrency))


def on_leave_alarm(cluster: Cluster, draft: Draft, channel: int) -> None:
    """The grace time of a draining executor is over: what it still runs goes back to the queue."""
    executor = cluster.executors.get(channel)
    if executor is not None and executor.draining and draft.now_ms >= executor.leave_by:
        stop(cluster, draft, executor, f"{executor.leave_why}; its grace time is over")


def detach(cluster: Cluster, executor: Executor) -> None:
    """It is gone, and its room is free."""
    _forget(cluster, executor)
    cluster.scheduler.freed(executor.channel)


def _forget(cluster: Cluster, executor: Executor) -> None:
    cluster.executors.pop(executor.channel, None)
    executor.session.executors.pop(executor.channel, None)
    node = executor.node
    if node.executors.pop(executor.channel, None) is not None:
        node.allocated -= executor.resreq
        node.free_gpus = sorted({*node.free_gpus, *executor.gpus})
    cluster.changed(executor.session)


def return_tasks(draft: Draft, executor: Executor, task_ids: list[int]) -> None:
    attempts = {task_id: executor.outstanding.pop(task_id, 0) for task_id in task_ids}
    lanes.vacate(executor.session, attempts)
    tasks.send_back(draft, executor.session, [task_id for task_id, attempt in attempts.items() if attempt])


# --- executors without work ------------------------------------------------------------------------------------------

"""What becomes of executors, as their nodes report it: bound, gone, never bound; and what happens to the tasks that
they held."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flame.engine import dispatch, gangs, placement, story, tasks
from flame.engine.executors import Executor
from flame.engine.lifecycles import REPORTS
from flame.engine.records import Finish
from flame.model.states import EventCode, ExecutorState, SessionState, TaskState

if TYPE_CHECKING:
    from flame.engine.cluster import Cluster
    from flame.engine.events import ExecutorReported
    from flame.engine.turn import Draft

BACKOFF_MS = 100  # after the first bind failure, doubled with each further one
BACKOFF_MAX_MS = 30_000


def on_executor_reported(cluster: Cluster, draft: Draft, event: ExecutorReported) -> None:
    executor = cluster.executors.get(event.channel)
    if executor is None or event.state not in REPORTS:
        cluster.stale += 1
        if event.state is ExecutorState.RELEASED:
            for node in cluster.nodes.values():
                if event.channel in node.leaving:
                    placement.left(cluster, node, event.channel)
        return
    session = executor.session
    if event.pid:
        executor.pid = event.pid
    if event.state is ExecutorState.BOUND:
        bound(cluster, draft, executor, event.concurrency)
    elif event.state is ExecutorState.RELEASED:
        _released(cluster, draft, executor, event)
    elif executor.state is not ExecutorState.BOUND:
        executor.step(REPORTS[event.state], draft.now_ms)
    if session.pending:
        cluster.touch(session)


def bound(cluster: Cluster, draft: Draft, executor: Executor, concurrency: int) -> None:
    session = executor.session
    fresh = executor.state is not ExecutorState.BOUND
    executor.step("bound", draft.now_ms)
    executor.concurrency = max(1, concurrency)
    if executor.state is not ExecutorState.BOUND:
        return
    if fresh:
        session.bind_failures = 0
        executor.progress = draft.now_ms
        story.tell(draft, session, f"executor {executor.id} on node {executor.node.name} is bound")
    if session.pending:
        cluster.touch(session)
    elif not executor.outstanding:
        dispatch.rest(cluster, draft, executor)


def _released(cluster: Cluster, draft: Draft, executor: Executor, event: ExecutorReported) -> None:
    session = executor.session
    was = executor.state
    wanted = executor.coming
    executor.step("gone", draft.now_ms)
    held = [task_id for task_id, attempt in executor.outstanding.items() if attempt]
    if event.crashed and session.state is SessionState.OPEN:
        text = f"Executor {executor.id} on node {executor.node.name} lost its instance: {event.message or 'it ended'}"
        story.record_event(draft, session, EventCode.INSTANCE_LOST, text)
        _count_kills(cluster, draft, executor, held, event.message)
    else:
        story.tell(draft, session, f"executor {executor.id} is gone: {event.message or 'released'}")
    if event.peak_memory or event.sent or event.received:
        session.cpu_ms += event.cpu_ms
        session.peak_memory = max(session.peak_memory, event.peak_memory)
        session.written += event.written
        session.sent += event.sent
        session.received += event.received
        memory = f"{event.peak_memory >> 20} MiB of memory at most"
        used = f"{event.cpu_ms / 1000:.1f} s of processor time and {memory}, and wrote {event.written} bytes"
        carried = f"; {event.sent} bytes went out and {event.received} came in" if event.sent or event.received else ""
        story.tell(draft, session, f"executor {executor.id} used {used}{carried}")
    placement.return_tasks(draft, executor, list(executor.outstanding))
    placement.detach(cluster, executor)
    if wanted and executor.gang is not None:
        gangs.member_lost(cluster, draft, executor, event.message or "its instance ended")
    never_bound = was in (ExecutorState.VOID, ExecutorState.BINDING)
    if event.code or (event.crashed and (never_bound or not (executor.completed or held))):
        _bind_failed(cluster, draft, executor, event)
    if session.paused and session.pending and not any(other.coming for other in session.executors.values()):
        tasks.fail_pending(cluster, draft, session, session.paused)


def _count_kills(cluster: Cluster, draft: Draft, executor: Executor, held: list[int], message: str) -> None:
    """Every task that the dead instance held is a suspect and will run alone next; one that was alone is the culprit
    once more. Too often, and it fails."""
    session = executor.session
    poison: list[Finish] = []
    for task_id in held:
        kills = session.kills.get(task_id, 0) + 1
        session.kills[task_id] = kills
        if kills >= cluster.settings.max_kills:
            why = f"the instance ended {kills} times while it ran this task: {message or 'it ended'}"
            poison.append(Finish(task_id, TaskState.FAILED, -1, why))
    tasks.finish(draft, session, poison)


def _bind_failed(cluster: Cluster, draft: Draft, executor: Executor, event: ExecutorReported) -> None:
    session = executor.session
    if session.state is not SessionState.OPEN:
        return
    session.bind_failures += 1
    code = event.code or 19
    text = (
        f"Executor <{executor.id}> on node <{executor.node.name}> failed to bind session "
        f"with return_code <{code}>: <{event.message}>"
    )
    story.record_event(draft, session, EventCode.BIND_FAILED, text)
    limit = cluster.settings.retry_limits
    if session.paused:  # an executor that was under way when the limit was reached
        return
    if session.bind_failures >= limit:
        session.paused = (
            f"Session retry limit reached after {session.bind_failures}/{limit} failed attempts; "
            f"the last one: {event.message or f'return code {code}'}"
        )
        story.record_event(draft, session, EventCode.RETRY_LIMIT, session.paused)
        return
    wait = min(BACKOFF_MAX_MS, BACKOFF_MS * 2 ** (session.bind_failures - 1))
    session.not_before = draft.now_ms + wait
    cluster.alarm(session.not_before, "backoff", session.id)


def lose(cluster: Cluster, draft: Draft, executor: Executor, why: str) -> None:
    """The executor is gone without a word: its tasks go back."""
    wanted = executor.coming
    executor.step("gone", draft.now_ms)
    story.tell(draft, executor.session, f"executor {executor.id} lost: {why}")
    placement.return_tasks(draft, executor, list(executor.outstanding))
    placement.detach(cluster, executor)
    cluster.touch(executor.session)
    if wanted and executor.gang is not None:
        gangs.member_lost(cluster, draft, executor, why)

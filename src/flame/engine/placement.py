"""Executors: started where the scheduler says, bound, without work, told to leave, gone; and what happens to the tasks
they held."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flame.engine import gangs, lanes, lives, tasks
from flame.engine.effects import RetractTasks, StartExecutor, StopExecutor
from flame.engine.events import Held
from flame.engine.executors import Executor, Node
from flame.engine.lifecycles import REPORTS
from flame.engine.records import Finish
from flame.engine.sessions import Session
from flame.model.resources import Resources
from flame.model.specs import Gang
from flame.model.states import EventCode, ExecutorState, SessionState, TaskState

if TYPE_CHECKING:
    from flame.engine.engine import Engine
    from flame.engine.events import ExecutorReported
    from flame.engine.turn import Draft

BACKOFF_MS = 100  # after the first bind failure, doubled with each further one
BACKOFF_MAX_MS = 30_000


def leaves(engine: Engine, node: Node, channel: int, resreq: Resources) -> None:
    """An executor that belongs to no session any more keeps its place until the node says that it is gone."""
    node.leaving[channel] = resreq
    node.allocated += resreq
    engine.scheduler.took(channel, "", node.name, resreq)


def left(engine: Engine, node: Node, channel: int) -> None:
    """It is gone."""
    node.allocated -= node.leaving.pop(channel)
    engine.scheduler.freed(channel)


def add(engine: Engine, draft: Draft, node: Node, session: Session, item: Held) -> Executor:
    channel = item.channel
    executor = Executor(item.executor_id, channel, node, session, draft.now_ms)
    executor.resreq = item.resreq
    executor.pid = item.pid
    executor.gpus = tuple(item.gpus)
    executor.gang = item.gang
    node.free_gpus = [gpu for gpu in node.free_gpus if gpu not in executor.gpus]
    engine.executors[channel] = executor
    session.executors[channel] = executor
    node.executors[channel] = executor
    node.allocated += executor.resreq
    return executor


def start(engine: Engine, draft: Draft, session: Session, node: Node, channel: int, gang: Gang | None = None) -> None:
    """Start an executor as the scheduler decided; it has its room in the scheduler's books already."""
    gpus = node.free_gpus[: session.resreq.gpu]
    item = Held(engine.make_id(), channel, session.id, session.resreq, ExecutorState.VOID, 1, (), gpus=gpus, gang=gang)
    executor = add(engine, draft, node, session, item)
    lives.tell(draft, session, f"executor {executor.id} starts on node {node.name}")
    draft.now.append(StartExecutor(node.name, channel, executor.id, session.id, executor.gpus, gang))


def stop(engine: Engine, draft: Draft, executor: Executor, reason: str) -> None:
    """Ask the executor to leave its session and end. Its capacity is free when it reports that it is gone."""
    if executor.state in (ExecutorState.UNBINDING, ExecutorState.RELEASING):
        return
    executor.step("stop", draft.now_ms)
    engine.scheduler.leaving(executor.channel)
    engine.changed(executor.session)
    grace = engine.settings.stop_grace_ms if not executor.outstanding else 0  # nobody waits for what it still does
    lives.tell(draft, executor.session, f"executor {executor.id} stops: {reason}")
    draft.now.append(StopExecutor(executor.node.name, executor.channel, grace, reason))


def remove(engine: Engine, draft: Draft, executor: Executor) -> None:
    """Forget an executor; it is stopped, and keeps its place on the node until it is gone."""
    stop(engine, draft, executor, "its session is gone")
    executor.node.leaving[executor.channel] = executor.resreq
    executor.node.allocated += executor.resreq
    _forget(engine, executor)


def drain(engine: Engine, draft: Draft, executor: Executor, grace_ms: int, why: str) -> None:
    """Take no more tasks, give back what was sent ahead, end what runs within `grace_ms`, then leave."""
    if not executor.coming:
        return
    executor.draining = True
    executor.leave_by = draft.now_ms + grace_ms
    executor.leave_why = why
    engine.scheduler.leaving(executor.channel)
    engine.changed(executor.session)
    if not executor.outstanding:
        stop(engine, draft, executor, why)
        return
    lives.tell(draft, executor.session, f"executor {executor.id} leaves after its running tasks: {why}")
    engine.alarm(executor.leave_by, "leave", str(executor.channel))
    if len(executor.outstanding) > executor.concurrency and not executor.retracting:
        executor.retracting = True
        draft.now.append(RetractTasks(executor.node.name, executor.channel, executor.concurrency))


def on_leave_alarm(engine: Engine, draft: Draft, channel: int) -> None:
    """The grace time of a draining executor is over: what it still runs goes back to the queue."""
    executor = engine.executors.get(channel)
    if executor is not None and executor.draining and draft.now_ms >= executor.leave_by:
        stop(engine, draft, executor, f"{executor.leave_why}; its grace time is over")


def _detach(engine: Engine, executor: Executor) -> None:
    """It is gone, and its room is free."""
    _forget(engine, executor)
    engine.scheduler.freed(executor.channel)


def _forget(engine: Engine, executor: Executor) -> None:
    engine.executors.pop(executor.channel, None)
    executor.session.executors.pop(executor.channel, None)
    node = executor.node
    if node.executors.pop(executor.channel, None) is not None:
        node.allocated -= executor.resreq
        node.free_gpus = sorted({*node.free_gpus, *executor.gpus})
    engine.changed(executor.session)


def lose(engine: Engine, draft: Draft, executor: Executor, why: str) -> None:
    """The executor is gone without a word: its tasks go back."""
    wanted = executor.coming
    executor.step("gone", draft.now_ms)
    lives.tell(draft, executor.session, f"executor {executor.id} lost: {why}")
    return_tasks(draft, executor, list(executor.outstanding))
    _detach(engine, executor)
    engine.touch(executor.session)
    if wanted and executor.gang is not None:
        gangs.member_lost(engine, draft, executor, why)


def return_tasks(draft: Draft, executor: Executor, task_ids: list[int]) -> None:
    attempts = {task_id: executor.outstanding.pop(task_id, 0) for task_id in task_ids}
    lanes.vacate(executor.session, attempts)
    tasks.send_back(draft, executor.session, [task_id for task_id, attempt in attempts.items() if attempt])


def on_executor_reported(engine: Engine, draft: Draft, event: ExecutorReported) -> None:
    executor = engine.executors.get(event.channel)
    if executor is None or event.state not in REPORTS:
        engine.stale += 1
        if event.state is ExecutorState.RELEASED:
            for node in engine.nodes.values():
                if event.channel in node.leaving:
                    left(engine, node, event.channel)
        return
    session = executor.session
    if event.pid:
        executor.pid = event.pid
    if event.state is ExecutorState.BOUND:
        bound(engine, draft, executor, event.concurrency)
    elif event.state is ExecutorState.RELEASED:
        _released(engine, draft, executor, event)
    elif executor.state is not ExecutorState.BOUND:
        executor.step(REPORTS[event.state], draft.now_ms)
    if session.pending:
        engine.touch(session)


def bound(engine: Engine, draft: Draft, executor: Executor, concurrency: int) -> None:
    session = executor.session
    fresh = executor.state is not ExecutorState.BOUND
    executor.step("bound", draft.now_ms)
    executor.concurrency = max(1, concurrency)
    if executor.state is not ExecutorState.BOUND:
        return
    if fresh:
        session.bind_failures = 0
        executor.progress = draft.now_ms
        lives.tell(draft, session, f"executor {executor.id} on node {executor.node.name} is bound")
    if session.pending:
        engine.touch(session)
    elif not executor.outstanding:
        rest(engine, draft, executor)


def _released(engine: Engine, draft: Draft, executor: Executor, event: ExecutorReported) -> None:
    session = executor.session
    was = executor.state
    wanted = executor.coming
    executor.step("gone", draft.now_ms)
    held = [task_id for task_id, attempt in executor.outstanding.items() if attempt]
    if event.crashed and session.state is SessionState.OPEN:
        text = f"Executor {executor.id} on node {executor.node.name} lost its instance: {event.message or 'it ended'}"
        lives.record_event(draft, session, EventCode.INSTANCE_LOST, text)
        _count_kills(engine, draft, executor, held, event.message)
    else:
        lives.tell(draft, session, f"executor {executor.id} is gone: {event.message or 'released'}")
    if event.peak_memory or event.sent or event.received:
        session.cpu_ms += event.cpu_ms
        session.peak_memory = max(session.peak_memory, event.peak_memory)
        session.written += event.written
        session.sent += event.sent
        session.received += event.received
        memory = f"{event.peak_memory >> 20} MiB of memory at most"
        used = f"{event.cpu_ms / 1000:.1f} s of processor time and {memory}, and wrote {event.written} bytes"
        carried = f"; {event.sent} bytes went out and {event.received} came in" if event.sent or event.received else ""
        lives.tell(draft, session, f"executor {executor.id} used {used}{carried}")
    return_tasks(draft, executor, list(executor.outstanding))
    _detach(engine, executor)
    if wanted and executor.gang is not None:
        gangs.member_lost(engine, draft, executor, event.message or "its instance ended")
    never_bound = was in (ExecutorState.VOID, ExecutorState.BINDING)
    if event.code or (event.crashed and (never_bound or not (executor.completed or held))):
        _bind_failed(engine, draft, executor, event)
    if session.paused and session.pending and not any(other.coming for other in session.executors.values()):
        tasks.fail_pending(engine, draft, session, session.paused)


def _count_kills(engine: Engine, draft: Draft, executor: Executor, held: list[int], message: str) -> None:
    """Every task that the dead instance held is a suspect and will run alone next; one that was alone is the culprit
    once more. Too often, and it fails."""
    session = executor.session
    poison: list[Finish] = []
    for task_id in held:
        kills = session.kills.get(task_id, 0) + 1
        session.kills[task_id] = kills
        if kills >= engine.settings.max_kills:
            why = f"the instance ended {kills} times while it ran this task: {message or 'it ended'}"
            poison.append(Finish(task_id, TaskState.FAILED, -1, why))
    tasks.finish(draft, session, poison)


def _bind_failed(engine: Engine, draft: Draft, executor: Executor, event: ExecutorReported) -> None:
    session = executor.session
    if session.state is not SessionState.OPEN:
        return
    session.bind_failures += 1
    code = event.code or 19
    text = (
        f"Executor <{executor.id}> on node <{executor.node.name}> failed to bind session "
        f"with return_code <{code}>: <{event.message}>"
    )
    lives.record_event(draft, session, EventCode.BIND_FAILED, text)
    limit = engine.settings.retry_limits
    if session.paused:  # an executor that was under way when the limit was reached
        return
    if session.bind_failures >= limit:
        session.paused = (
            f"Session retry limit reached after {session.bind_failures}/{limit} failed attempts; "
            f"the last one: {event.message or f'return code {code}'}"
        )
        lives.record_event(draft, session, EventCode.RETRY_LIMIT, session.paused)
        return
    wait = min(BACKOFF_MAX_MS, BACKOFF_MS * 2 ** (session.bind_failures - 1))
    session.not_before = draft.now_ms + wait
    engine.alarm(session.not_before, "backoff", session.id)


# --- executors without work ------------------------------------------------------------------------------------------


def rest(engine: Engine, draft: Draft, executor: Executor) -> None:
    """A bound executor has nothing to do: take work from its siblings, else wait for delay_release."""
    session = executor.session
    if not executor.idle_since:
        executor.idle_since = draft.now_ms
        engine.alarm(draft.now_ms + _delay_ms(engine, session), "idle", str(executor.channel))
        engine.scheduler.idle(executor.channel, draft.now_ms)
    if session.running:
        tasks.rebalance(engine, draft, session)


def _delay_ms(engine: Engine, session: Session) -> int:
    application = engine.applications.get(session.spec.application)
    return max(0, application.spec.delay_release if application is not None else 0) * 1000


def on_idle_alarm(engine: Engine, draft: Draft, channel: int) -> None:
    executor = engine.executors.get(channel)
    if executor is None or not executor.idle_since or executor.state is not ExecutorState.BOUND:
        return
    due = executor.idle_since + _delay_ms(engine, executor.session)
    if due > draft.now_ms:
        engine.alarm(due, "idle", str(channel))
    elif sum(other.coming for other in executor.session.executors.values()) > executor.session.spec.min_instances:
        stop(engine, draft, executor, "idle for its delay_release")

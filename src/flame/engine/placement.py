"""Nodes and executors: who is there, who is started where, who leaves, and what happens to the tasks they held."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flame.engine import lives, tasks
from flame.engine.effects import RetractTasks, StartExecutor, StopExecutor
from flame.engine.events import Held
from flame.engine.executors import Executor, Node
from flame.engine.lifecycles import REPORTS
from flame.engine.records import Finish
from flame.engine.sessions import PENDING, Blocked, Session
from flame.model.resources import Resources
from flame.model.states import EventCode, ExecutorState, NodeState, SessionState, TaskState
from flame.scheduler.plan import Demand, Plan, Room, plan

if TYPE_CHECKING:
    from flame.engine.engine import Engine
    from flame.engine.events import ExecutorReported, NodeHeartbeat, NodeJoined, NodeLeft
    from flame.engine.turn import Draft

BACKOFF_MS = 100  # after the first bind failure, doubled with each further one
BACKOFF_MAX_MS = 30_000
# Starting an instance costs about a tenth of a second: do not start one for work that those there end sooner.
WORTH_US = 100_000


# --- nodes -----------------------------------------------------------------------------------------------------------


def on_node_joined(engine: Engine, draft: Draft, event: NodeJoined) -> None:
    """A node is (again) there. What it holds and what we remember of it are brought together."""
    node = engine.nodes.get(event.name)
    if node is None:
        node = engine.nodes[event.name] = Node(event.name)
    reborn = node.boot_id not in ("", event.boot_id)
    node.step("joined", draft.now_ms)
    node.boot_id = event.boot_id
    node.hostname = event.hostname
    node.arch, node.os, node.addresses = event.arch, event.os, tuple(event.addresses)
    node.heartbeat = draft.now_ms
    node.resize(event.capacity)
    held = {item.channel: item for item in event.held}
    for executor in list(node.executors.values()):
        item = held.pop(executor.channel, None)
        if item is None or item.executor_id != executor.id or reborn:
            lose(engine, draft, executor, f"node {node.name} came back without it")
        else:
            _reconcile(engine, draft, executor, item)
    for channel in node.leaving.keys() - held.keys():
        _left(engine, node, channel)
    for item in held.values():
        if item.channel not in node.leaving:
            if _adopt(engine, draft, node, item):
                continue
            _leaves(node, item.channel, item.resreq)
        draft.now.append(StopExecutor(node.name, item.channel, 0, "nobody waits for it any more"))
    engine.capacity_changed()


def _reconcile(engine: Engine, draft: Draft, executor: Executor, item: Held) -> None:
    """The link was away for a while: tasks or answers that were on their way may be lost."""
    there = set(item.task_ids)
    lost = [task_id for task_id in executor.outstanding if task_id not in there]
    executor.retracting = False
    _return_tasks(draft, executor, lost)
    if executor.state in (ExecutorState.UNBINDING, ExecutorState.RELEASING):
        draft.now.append(StopExecutor(executor.node.name, executor.channel, engine.settings.stop_grace_ms, "stop"))
    elif item.state is ExecutorState.BOUND:
        _bound(engine, draft, executor, item.concurrency)
    engine.after_progress(draft, executor)


def _adopt(engine: Engine, draft: Draft, node: Node, item: Held) -> bool:
    """An executor that went on while we knew nothing of it: after a restart of the session manager, or when its node
    was thought lost. False = it is not wanted."""
    session = engine.sessions.get(item.session_id)
    if session is None or session.state is not SessionState.OPEN or item.channel in engine.executors:
        return False
    if item.state not in (ExecutorState.BINDING, ExecutorState.BOUND):
        return False
    if not item.resreq.fits(node.capacity - node.allocated) or not set(item.gpus) <= set(node.free_gpus):
        return False  # its place was given to another meanwhile
    executor = _add(engine, draft, node, session, item)
    executor.step("started", draft.now_ms)
    attempts = item.attempts or [1] * len(item.task_ids)
    for task_id, attempt in dict(zip(item.task_ids, attempts, strict=True)).items():
        if 1 <= task_id <= session.total and session.states[task_id - 1] == PENDING:
            session.take_up(task_id)
            executor.outstanding[task_id] = attempt
            if attempt > session.attempts.get(task_id, 1):
                session.attempts[task_id] = attempt
        else:
            executor.outstanding[task_id] = 0
    if item.state is ExecutorState.BOUND:
        _bound(engine, draft, executor, item.concurrency)
    lives.tell(draft, session, f"executor {executor.id} on node {node.name} found again")
    return True


def _leaves(node: Node, channel: int, resreq: Resources) -> None:
    """An executor that belongs to no session any more keeps its place until the node says that it is gone."""
    node.leaving[channel] = resreq
    node.allocated += resreq


def _left(engine: Engine, node: Node, channel: int) -> None:
    node.allocated -= node.leaving.pop(channel)
    engine.capacity_changed()


def on_node_heartbeat(engine: Engine, draft: Draft, event: NodeHeartbeat) -> None:
    node = engine.nodes.get(event.name)
    if node is None:
        return
    node.heartbeat = draft.now_ms
    if event.capacity is not None and event.capacity != node.capacity:
        node.resize(event.capacity)
        engine.capacity_changed()


def on_node_left(engine: Engine, draft: Draft, event: NodeLeft) -> None:
    """Its link is down: nothing new goes there; what it does is waited for until the grace time is over."""
    node = engine.nodes.get(event.name)
    if node is None or node.state is not NodeState.READY:
        return
    node.step("left", draft.now_ms)
    for session in {executor.session.id: executor.session for executor in node.executors.values()}.values():
        lives.tell(draft, session, f"node {node.name} is away: {event.reason or 'link lost'}")
    engine.alarm(draft.now_ms + engine.settings.drain_ms, "grace", node.name)
    engine.capacity_changed()


def on_grace_over(engine: Engine, draft: Draft, name: str) -> None:
    node = engine.nodes.get(name)
    if node is None or node.state is not NodeState.UNKNOWN:
        return
    if draft.now_ms < node.since + engine.settings.drain_ms:  # it came and left again meanwhile
        engine.alarm(node.since + engine.settings.drain_ms, "grace", name)
        return
    node.step("lost", draft.now_ms)
    for executor in list(node.executors.values()):
        lose(engine, draft, executor, f"node {name} is lost")
    del engine.nodes[name]


# --- executors -------------------------------------------------------------------------------------------------------


def _add(engine: Engine, draft: Draft, node: Node, session: Session, item: Held) -> Executor:
    channel = item.channel
    executor = Executor(item.executor_id, channel, node, session, draft.now_ms)
    executor.resreq = item.resreq
    executor.pid = item.pid
    executor.gpus = tuple(item.gpus)
    node.free_gpus = [gpu for gpu in node.free_gpus if gpu not in executor.gpus]
    engine.executors[channel] = executor
    session.executors[channel] = executor
    node.executors[channel] = executor
    node.allocated += executor.resreq
    return executor


def _start(engine: Engine, draft: Draft, session: Session, node: Node) -> None:
    while engine.next_channel in engine.executors or engine.next_channel == 0:
        engine.next_channel = (engine.next_channel + 1) % (1 << 32)
    channel = engine.next_channel
    engine.next_channel = (channel + 1) % (1 << 32)
    gpus = node.free_gpus[: session.resreq.gpu]
    item = Held(engine.make_id(), channel, session.id, session.resreq, ExecutorState.VOID, 1, (), gpus=gpus)
    executor = _add(engine, draft, node, session, item)
    lives.tell(draft, session, f"executor {executor.id} starts on node {node.name}")
    draft.now.append(StartExecutor(node.name, channel, executor.id, session.id, executor.gpus))


def stop(engine: Engine, draft: Draft, executor: Executor, reason: str) -> None:
    """Ask the executor to leave its session and end. Its capacity is free when it reports that it is gone."""
    if executor.state in (ExecutorState.UNBINDING, ExecutorState.RELEASING):
        return
    executor.step("stop", draft.now_ms)
    grace = engine.settings.stop_grace_ms if not executor.outstanding else 0  # nobody waits for what it still does
    lives.tell(draft, executor.session, f"executor {executor.id} stops: {reason}")
    draft.now.append(StopExecutor(executor.node.name, executor.channel, grace, reason))


def remove(engine: Engine, draft: Draft, executor: Executor) -> None:
    """Forget an executor; it is stopped, and keeps its place on the node until it is gone."""
    stop(engine, draft, executor, "its session is gone")
    _leaves(executor.node, executor.channel, executor.resreq)
    _detach(engine, executor)


def _detach(engine: Engine, executor: Executor) -> None:
    engine.executors.pop(executor.channel, None)
    executor.session.executors.pop(executor.channel, None)
    node = executor.node
    if node.executors.pop(executor.channel, None) is not None:
        node.allocated -= executor.resreq
        node.free_gpus = sorted({*node.free_gpus, *executor.gpus})
    engine.capacity_changed()


def lose(engine: Engine, draft: Draft, executor: Executor, why: str) -> None:
    """The executor is gone without a word: its tasks go back."""
    executor.step("gone", draft.now_ms)
    lives.tell(draft, executor.session, f"executor {executor.id} lost: {why}")
    _return_tasks(draft, executor, list(executor.outstanding))
    _detach(engine, executor)
    engine.touch(executor.session)


def _return_tasks(draft: Draft, executor: Executor, task_ids: list[int]) -> None:
    back = [task_id for task_id in task_ids if executor.outstanding.pop(task_id, 0)]
    tasks.send_back(draft, executor.session, back)


def on_executor_reported(engine: Engine, draft: Draft, event: ExecutorReported) -> None:
    executor = engine.executors.get(event.channel)
    if executor is None or event.state not in REPORTS:
        engine.stale += 1
        if event.state is ExecutorState.RELEASED:
            for node in engine.nodes.values():
                if event.channel in node.leaving:
                    _left(engine, node, event.channel)
        return
    session = executor.session
    if event.pid:
        executor.pid = event.pid
    if event.state is ExecutorState.BOUND:
        _bound(engine, draft, executor, event.concurrency)
    elif event.state is ExecutorState.RELEASED:
        _released(engine, draft, executor, event)
    elif executor.state is not ExecutorState.BOUND:
        executor.step(REPORTS[event.state], draft.now_ms)
    if session.pending:
        engine.touch(session)


def _bound(engine: Engine, draft: Draft, executor: Executor, concurrency: int) -> None:
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
    executor.step("gone", draft.now_ms)
    held = [task_id for task_id, attempt in executor.outstanding.items() if attempt]
    if event.crashed and session.state is SessionState.OPEN:
        text = f"Executor {executor.id} on node {executor.node.name} lost its instance: {event.message or 'it ended'}"
        lives.record_event(draft, session, EventCode.INSTANCE_LOST, text)
        _count_kills(engine, draft, executor, held, event.message)
    else:
        lives.tell(draft, session, f"executor {executor.id} is gone: {event.message or 'released'}")
    _return_tasks(draft, executor, list(executor.outstanding))
    _detach(engine, executor)
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
    if session.running:
        tasks.rebalance(engine, draft, session)
    if any(other.blocked is not None for other in engine.sessions.values() if other is not session):
        engine.dirty = True  # somebody waits for room


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


# --- the scheduler ---------------------------------------------------------------------------------------------------


def want(engine: Engine, session: Session, coming: int) -> int:
    """How many executors the session can use now, within its limits."""
    spec = session.spec
    open_tasks = session.pending + session.running
    wanted = open_tasks
    if session.avg_us >= 0 and coming:
        # `coming` executors will be through with what is pending in pending * avg / coming.
        wanted = min(wanted, coming + int(session.pending * session.avg_us / coming / WORTH_US))
    application = engine.applications.get(spec.application)
    most = application.spec.max_instances if application is not None else 0
    if spec.max_instances is not None:
        most = min(most, spec.max_instances)
    return min(max(wanted, spec.min_instances), most)


def schedule(engine: Engine, draft: Draft) -> None:
    """One pass, if anything changed that could lead to another answer than the last one's."""
    if not engine.dirty and not any(_may_grow(engine, session) for session in engine.hungry.values()):
        engine.hungry.clear()
        return
    engine.dirty = False
    engine.hungry.clear()
    demands: list[Demand] = []
    for session in engine.sessions.values():
        demand = _demand(engine, draft, session)
        if demand is not None:
            demands.append(demand)
    if demands:
        _carry_out(engine, draft, plan(demands, _rooms(engine)))


def _may_grow(engine: Engine, session: Session) -> bool:
    if session.state is not SessionState.OPEN or session.paused:
        return False
    if session.blocked is not None and session.blocked_version == engine.capacity_version:
        return False
    coming = sum(executor.coming for executor in session.executors.values())
    return want(engine, session, coming) > coming


def _demand(engine: Engine, draft: Draft, session: Session) -> Demand | None:
    if session.state is not SessionState.OPEN:
        return None
    serving = [executor for executor in session.executors.values() if executor.coming]
    wanted = want(engine, session, len(serving))
    if session.paused or session.not_before > draft.now_ms:
        wanted = min(wanted, len(serving))
    if not wanted and not serving:
        session.blocked = None
        return None
    idle = sorted((executor for executor in serving if executor.idle_since), key=lambda executor: executor.idle_since)
    busy = sorted((e for e in serving if not e.idle_since), key=lambda executor: len(executor.outstanding))
    return Demand(
        session.id,
        session.spec.priority,
        session.created,
        session.resreq,
        len(serving),
        wanted,
        session.spec.min_instances,
        [executor.channel for executor in idle],
        [executor.channel for executor in busy],
    )


def _rooms(engine: Engine) -> list[Room]:
    rooms: list[Room] = []
    for node in engine.nodes.values():
        if node.state is not NodeState.READY:
            continue
        leaving = sum(node.leaving.values(), Resources())
        for executor in node.executors.values():
            if not executor.coming:
                leaving += executor.resreq
        rooms.append(Room(node.name, node.capacity, node.capacity - node.allocated, leaving))
    return rooms


def _carry_out(engine: Engine, draft: Draft, decided: Plan) -> None:
    for session_id, node in decided.starts:
        _start(engine, draft, engine.sessions[session_id], engine.nodes[node])
    for channel in decided.releases:
        stop(engine, draft, engine.executors[channel], "another session waits for its place")
    for channel in decided.drains:
        _drain(engine, draft, engine.executors[channel])
    for session in engine.sessions.values():
        no = decided.noes.get(session.id)
        if no is None:
            session.blocked = None
            continue
        since = (
            session.blocked.since if session.blocked is not None and session.blocked.rule == no.rule else draft.now_ms
        )
        session.blocked = Blocked(no.rule, no.object, no.message, no.remedy, since)
        session.blocked_version = engine.capacity_version


def _drain(engine: Engine, draft: Draft, executor: Executor) -> None:
    """Let it end what runs; the rest goes back, then it leaves."""
    executor.draining = True
    if not executor.outstanding:
        stop(engine, draft, executor, "its place is needed")
    elif len(executor.outstanding) > executor.concurrency and not executor.retracting:
        executor.retracting = True
        draft.now.append(RetractTasks(executor.node.name, executor.channel, executor.concurrency))

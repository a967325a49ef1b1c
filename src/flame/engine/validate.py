"""Every invariant of the engine's state; tests and the simulator check them after each turn."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flame.engine.sessions import PENDING, RUNNING, Session
from flame.model.resources import Resources
from flame.model.states import SessionState, TaskState

if TYPE_CHECKING:
    from flame.engine.cluster import Cluster


def validate(cluster: Cluster) -> None:
    """Raise AssertionError with the first broken invariant."""
    for session in cluster.sessions.values():
        _session(session)
    for channel, executor in cluster.executors.items():
        _true(executor.channel == channel, f"executor {executor.id} under channel {channel}")
        _true(cluster.sessions.get(executor.session.id) is executor.session, f"executor {executor.id} of no session")
        _true(executor.session.executors.get(channel) is executor, f"session does not know executor {executor.id}")
        _true(executor.node.executors.get(channel) is executor, f"node does not know executor {executor.id}")
    for node in cluster.nodes.values():
        used = sum(node.leaving.values(), Resources())
        gpus: list[int] = []
        for executor in node.executors.values():
            used += executor.resreq
            gpus.extend(executor.gpus)
        place = cluster.scheduler.books.places[node.name]
        _true(place.used == used, f"the scheduler counts {place.used} on node {node.name}, its executors hold {used}")
        _true(used == node.allocated, f"node {node.name} counts {node.allocated}, its executors hold {used}")
        _true(len(set(gpus)) == len(gpus), f"node {node.name} gave a GPU twice: {gpus}")
        _true(not set(gpus) & set(node.free_gpus), f"node {node.name} has GPUs both free and in use")

    _tenants(cluster)
    cluster.scheduler.validate()
    for executor in cluster.executors.values():
        holding = cluster.scheduler.books.holdings.get(executor.channel)
        _true(holding is not None, f"the scheduler does not know executor {executor.id}")
        if holding is not None and holding.ask is not None:
            _true(
                holding.leaving == (not executor.coming), f"executor {executor.id} is {executor.state.name} and leaving"
            )


def _tenants(cluster: Cluster) -> None:
    """Each counts what is open and unfinished below it; sessions of an engine that only replays are not counted yet."""
    sessions = dict.fromkeys(cluster.tenants, 0)
    pending = dict.fromkeys(cluster.tenants, 0)
    for session in cluster.sessions.values():
        for tenant in session.tenants:
            _true(cluster.tenants.get(tenant.name) is tenant, f"tenant {tenant.name} of {session.id} is gone")
            sessions[tenant.name] += 1
            pending[tenant.name] += session.pending + session.running
        if session.tenants:
            _true(session.state is SessionState.OPEN, f"closed session {session.id} is counted")
            _true(session.tenants == session.tenants[0].path, f"session {session.id} is counted by another branch")
            _true(not session.tenants[0].children, f"tenant {session.tenants[0].name} of {session.id} is no leaf")
    for name, tenant in cluster.tenants.items():
        above = cluster.tenants[tenant.spec.parent].path if tenant.spec.parent else ()
        _true(tenant.path == (tenant, *above), f"tenant {name} does not know who is above it")
        children = {other for other, its in cluster.tenants.items() if its.spec.parent == name}
        _true(tenant.children == children, f"tenant {name} has {tenant.children} below it, not {children}")
        counted, kept = (tenant.sessions, tenant.pending), (sessions[name], pending[name])
        _true(counted == kept, f"tenant {name} counts {counted} sessions and tasks, has {kept}")
    _true(cluster.tenants.keys() == cluster.scheduler.tree.groups.keys(), "the scheduler knows other tenants")


def over_committed(cluster: Cluster) -> list[str]:
    """Nodes whose executors hold more than the node has (legal only after its capacity shrank or by adoption)."""
    return [node.name for node in cluster.nodes.values() if not node.allocated.fits(node.capacity)]


def _session(session: Session) -> None:
    states = session.states
    name = session.id
    counted = [states.count(int(state)) for state in TaskState]
    kept = [session.pending, session.running, session.succeed, session.failed, session.cancelled]
    _true(counted == kept, f"session {name} counts {kept}, its tasks are {counted}")
    _true(len(states) == len(session.done_in) == sum(c.count for c in session.chunks), f"columns of {name} differ")
    held: dict[int, int] = {}
    for executor in session.executors.values():
        for task_id, attempt in executor.outstanding.items():
            if attempt:
                _true(task_id not in held, f"task {task_id} of {name} is on two executors")
                held[task_id] = executor.channel
                _true(states[task_id - 1] == RUNNING, f"task {task_id} of {name} is held but not running")
    _true(len(held) == session.running, f"session {name} runs {session.running}, its executors hold {len(held)}")
    ready = _ready(session)
    _true(ready | session.resting.keys() == set(session.pending_ids()), f"pending tasks of {name} are in no lane")
    _limits(session)
    for chunk in session.chunks:
        left = sum(states[chunk.first - 1 : chunk.first - 1 + chunk.count].count(s) for s in (PENDING, RUNNING))
        _true(left == chunk.remaining, f"chunk {chunk.seq} of {name} counts {chunk.remaining}, has {left}")
    for index, state in enumerate(states):
        ended = state not in (PENDING, RUNNING)
        _true(
            ended == bool(session.done_in[index]), f"task {index + 1} of {name} ended without a batch, or the reverse"
        )
    if session.state is SessionState.CLOSED:
        _true(session.pending == session.running == 0, f"closed session {name} has unfinished tasks")


def _ready(session: Session) -> set[int]:
    """Pending tasks in lanes, or held by their key."""
    found: set[int] = set()
    chunks = [(index, column) for lane in session.lanes.values() for index, column in lane.fresh]
    for lane in session.lanes.values():
        found.update(lane.returned)
    for key in session.keyed.values():
        for _, task_id, index in key.held:
            if index < 0:
                found.add(task_id)
            else:
                chunks.append((index, task_id - session.chunks[index].first))
    for index, column in chunks:
        chunk = session.chunks[index]
        found.update(range(chunk.first + column, chunk.first + chunk.count))
    return {task_id for task_id in found if session.states[task_id - 1] == PENDING}


def _limits(session: Session) -> None:
    """Resting tasks are pending; keys count their tasks and never give more places than they have."""
    name = session.id
    _true(all(session.states[t - 1] == PENDING for t in session.resting), f"a task of {name} rests but is not pending")
    pending: dict[str, int] = {}
    running: dict[str, set[int]] = {}
    for chunk in session.chunks:
        label = chunk.options.key
        for task_id in range(chunk.first, chunk.first + chunk.count) if label and chunk.remaining else ():
            if session.states[task_id - 1] == RUNNING or task_id in session.resting:
                running.setdefault(label, set()).add(task_id)
            elif session.states[task_id - 1] == PENDING:
                pending[label] = pending.get(label, 0) + 1
    waiting = len(session.resting)
    for label, key in session.keyed.items():
        _true(key.pending == pending.pop(label, 0), f"key {label!r} of {name} counts its pending tasks wrongly")
        _true(running.pop(label, set()) <= key.places, f"a task of key {label!r} of {name} runs without a place")
        _true(len(key.places) <= session.per_key, f"too many tasks of key {label!r} of {name} run: {key.places}")
        waiting += max(0, key.pending - max(0, session.per_key - len(key.places) - key.unknown))
        released = len(key.places) + key.unknown < session.per_key and key.pending
        _true(not released or _in_lane(session, label), f"key {label!r} of {name} has a place and no task in a lane")
    _true(not pending and not running, f"keys of {name} are forgotten: {pending} {running}")
    _true(session.waiting == waiting, f"session {name} counts {session.waiting} waiting tasks, has {waiting}")


def _in_lane(session: Session, key: str) -> bool:
    lanes = session.lanes.values()
    chunks = (session.chunks[index] for lane in lanes for index, _ in lane.fresh)
    returned = (session.chunk_of(task_id) for lane in lanes for task_id in lane.returned)
    return any(chunk.options.key == key for chunk in (*chunks, *returned))


def _true(holds: bool, otherwise: str) -> None:
    if not holds:
        raise AssertionError(otherwise)

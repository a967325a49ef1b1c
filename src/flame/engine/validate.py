"""Every invariant of the engine's state; tests and the simulator check them after each turn."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flame.engine.sessions import PENDING, RUNNING, Session
from flame.model.resources import Resources
from flame.model.states import SessionState, TaskState

if TYPE_CHECKING:
    from flame.engine.engine import Engine


def validate(engine: Engine) -> None:
    """Raise AssertionError with the first broken invariant."""
    for session in engine.sessions.values():
        _session(session)
    for channel, executor in engine.executors.items():
        _true(executor.channel == channel, f"executor {executor.id} under channel {channel}")
        _true(engine.sessions.get(executor.session.id) is executor.session, f"executor {executor.id} of no session")
        _true(executor.session.executors.get(channel) is executor, f"session does not know executor {executor.id}")
        _true(executor.node.executors.get(channel) is executor, f"node does not know executor {executor.id}")
    for node in engine.nodes.values():
        used = sum(node.leaving.values(), Resources())
        gpus: list[int] = []
        for executor in node.executors.values():
            used += executor.resreq
            gpus.extend(executor.gpus)
        place = engine.scheduler.books.places[node.name]
        _true(place.used == used, f"the scheduler counts {place.used} on node {node.name}, its executors hold {used}")
        _true(used == node.allocated, f"node {node.name} counts {node.allocated}, its executors hold {used}")
        _true(len(set(gpus)) == len(gpus), f"node {node.name} gave a GPU twice: {gpus}")
        _true(not set(gpus) & set(node.free_gpus), f"node {node.name} has GPUs both free and in use")

    engine.scheduler.validate()
    for executor in engine.executors.values():
        holding = engine.scheduler.books.holdings.get(executor.channel)
        _true(holding is not None, f"the scheduler does not know executor {executor.id}")
        if holding is not None and holding.ask is not None:
            _true(
                holding.leaving == (not executor.coming), f"executor {executor.id} is {executor.state.name} and leaving"
            )


def over_committed(engine: Engine) -> list[str]:
    """Nodes whose executors hold more than the node has (legal only after its capacity shrank or by adoption)."""
    return [node.name for node in engine.nodes.values() if not node.allocated.fits(node.capacity)]


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
    _true(len(ready) == len(set(ready)), f"a task of {name} is ready twice")
    _true(sorted(ready) == list(session.pending_ids()), f"pending tasks of {name} are not those that are ready")
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


def _ready(session: Session) -> list[int]:
    ready: list[int] = []
    for lane in session.lanes.values():
        ready.extend(task_id for task_id in set(lane.returned) if session.states[task_id - 1] == PENDING)
        returned = set(lane.returned)
        for index, column in lane.fresh:
            chunk = session.chunks[index]
            ids = range(chunk.first + column, chunk.first + chunk.count)
            ready.extend(t for t in ids if session.states[t - 1] == PENDING and t not in returned)
    return ready


def _true(holds: bool, otherwise: str) -> None:
    if not holds:
        raise AssertionError(otherwise)

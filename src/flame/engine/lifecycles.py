"""Every lifecycle as one literal table: (state, what happened) -> new state.

Two rules: everything that decides whether a change of state is legal lives here, and an illegal pair raises an error
that names both. The diagrams in docs/lifecycles.md are drawn from these tables by `tools/draw_lifecycles.py`.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TypeVar

from flame.model.errors import InternalError
from flame.model.states import ExecutorState, NodeState, SessionState, TaskState

S = TypeVar("S", bound=IntEnum)
Table = dict[tuple[S, str], S]

SESSION: Table[SessionState] = {
    (SessionState.OPEN, "close"): SessionState.CLOSED,
    (SessionState.CLOSED, "close"): SessionState.CLOSED,
}

TASK: Table[TaskState] = {
    (TaskState.PENDING, "dispatch"): TaskState.RUNNING,
    (TaskState.PENDING, "cancel"): TaskState.CANCELLED,
    (TaskState.PENDING, "fail"): TaskState.FAILED,  # retries used up, or no executor can be bound
    (TaskState.RUNNING, "succeed"): TaskState.SUCCEED,
    (TaskState.RUNNING, "fail"): TaskState.FAILED,
    (TaskState.RUNNING, "cancel"): TaskState.CANCELLED,
    (TaskState.RUNNING, "return"): TaskState.PENDING,  # retracted, retried, or its executor is lost
}

EXECUTOR: Table[ExecutorState] = {
    (ExecutorState.VOID, "started"): ExecutorState.BINDING,
    (ExecutorState.VOID, "bound"): ExecutorState.BOUND,
    (ExecutorState.VOID, "stop"): ExecutorState.UNBINDING,
    (ExecutorState.VOID, "gone"): ExecutorState.RELEASED,
    (ExecutorState.BINDING, "started"): ExecutorState.BINDING,
    (ExecutorState.BINDING, "bound"): ExecutorState.BOUND,
    (ExecutorState.BINDING, "stop"): ExecutorState.UNBINDING,
    (ExecutorState.BINDING, "gone"): ExecutorState.RELEASED,
    (ExecutorState.BOUND, "bound"): ExecutorState.BOUND,
    (ExecutorState.BOUND, "stop"): ExecutorState.UNBINDING,
    (ExecutorState.BOUND, "gone"): ExecutorState.RELEASED,
    (ExecutorState.UNBINDING, "started"): ExecutorState.UNBINDING,  # the report crossed our stop
    (ExecutorState.UNBINDING, "bound"): ExecutorState.UNBINDING,
    (ExecutorState.UNBINDING, "leaving"): ExecutorState.UNBINDING,
    (ExecutorState.UNBINDING, "stop"): ExecutorState.UNBINDING,
    (ExecutorState.UNBINDING, "stopping"): ExecutorState.RELEASING,
    (ExecutorState.UNBINDING, "gone"): ExecutorState.RELEASED,
    (ExecutorState.RELEASING, "stopping"): ExecutorState.RELEASING,
    (ExecutorState.RELEASING, "stop"): ExecutorState.RELEASING,
    (ExecutorState.RELEASING, "gone"): ExecutorState.RELEASED,
}

NODE: Table[NodeState] = {
    (NodeState.UNKNOWN, "joined"): NodeState.READY,
    (NodeState.READY, "joined"): NodeState.READY,
    (NodeState.NOT_READY, "joined"): NodeState.READY,
    (NodeState.READY, "left"): NodeState.UNKNOWN,
    (NodeState.UNKNOWN, "lost"): NodeState.NOT_READY,
}

# What an executor manager reports, as the word that the table uses.
REPORTS: dict[ExecutorState, str] = {
    ExecutorState.BINDING: "started",
    ExecutorState.BOUND: "bound",
    ExecutorState.UNBINDING: "leaving",
    ExecutorState.RELEASING: "stopping",
    ExecutorState.RELEASED: "gone",
}


def step(table: Table[S], state: S, happened: str) -> S:
    """The state after `happened`; an illegal pair raises InternalError naming both."""
    try:
        return table[state, happened]
    except KeyError:
        raise InternalError(f"{type(state).__name__} {state.name} cannot take {happened!r}") from None

"""Names of states, as the wire has them, and the words that filters accept."""

from __future__ import annotations

from typing import cast

from flame.proto import types_pb2 as ty

SESSION_STATES = {name.lower(): cast("ty.SessionState", number) for name, number in ty.SessionState.items()}
TASK_STATES = {name.lower(): cast("ty.TaskState", number) for name, number in ty.TaskState.items()}
TERMINAL = (ty.TaskState.Succeed, ty.TaskState.Failed, ty.TaskState.Cancelled)
UNFINISHED = (ty.TaskState.Pending, ty.TaskState.Running)


def session_state(message: ty.Session) -> str:
    return ty.SessionState.Name(message.status.state)


def task_state(state: ty.TaskState) -> str:
    return ty.TaskState.Name(state)


def executor_state(message: ty.Executor) -> str:
    return ty.ExecutorState.Name(message.status.state).removeprefix("Executor")


def application_state(message: ty.Application) -> str:
    return ty.ApplicationState.Name(message.status.state)


def node_state(message: ty.Node) -> str:
    return ty.NodeState.Name(message.status.state)


def node_status(message: ty.Node) -> str:
    """The state and, when it takes no new executors, why: `Ready,cordoned`, `Ready,draining`, `Ready,drained`."""
    status = message.status
    if status.draining:
        # Of a node that is away it is not known whether executors are left.
        empty = status.state == ty.NodeState.Ready and not status.executors
        return f"{node_state(message)},{'drained' if empty else 'draining'}"
    return f"{node_state(message)},cordoned" if status.cordoned else node_state(message)


def shim_name(shim: ty.Shim) -> str:
    return ty.Shim.Name(shim)

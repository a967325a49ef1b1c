"""The states of every object; the numbers are those of the wire."""

from __future__ import annotations

from enum import IntEnum


class SessionState(IntEnum):
    OPEN = 0
    CLOSED = 1


class TaskState(IntEnum):
    PENDING = 0
    RUNNING = 1
    SUCCEED = 2
    FAILED = 3
    CANCELLED = 4

    @property
    def terminal(self) -> bool:
        """Whether no further change can follow."""
        return self >= TaskState.SUCCEED


class ApplicationState(IntEnum):
    ENABLED = 0
    DISABLED = 1


class Shim(IntEnum):
    HOST = 0
    WASM = 1
    REST = 16
    STDIO = 17
    CONTAINER = 18


class ExecutorState(IntEnum):
    UNKNOWN = 0
    VOID = 1
    IDLE = 2
    BINDING = 3
    BOUND = 4
    UNBINDING = 5
    RELEASING = 6
    RELEASED = 7


class NodeState(IntEnum):
    UNKNOWN = 0
    READY = 1
    NOT_READY = 2


class BindCode(IntEnum):
    """Why an executor could not be bound to its session; the numbers are those of event 1001's text."""

    OK = 0
    INSTALL = 10
    START = 11
    ENTER = 12
    OTHER = 19


class EventCode(IntEnum):
    """Codes of recorded events: 0 to 4 are task states, from 1001 on they concern a session."""

    PENDING = 0
    RUNNING = 1
    SUCCEED = 2
    FAILED = 3
    CANCELLED = 4
    BIND_FAILED = 1001
    RETRY_LIMIT = 1002
    INSTANCE_LOST = 1003
    UNSATISFIABLE = 1004
    GANG_LOST = 1005
    IDLE = 1006

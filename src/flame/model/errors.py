"""The errors of Flame: what went wrong in the user's words, whether a retry can help, and what to do next.

Every layer raises these; gRPC status codes and exit codes are derived from the one table `MEANING` below.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple


class FlameErrorCode(IntEnum):
    """Kinds of error. Numbers 0 to 5 are those that existing clients know."""

    INVALID_CONFIG = 0
    INVALID_STATE = 1
    INVALID_ARGUMENT = 2
    INTERNAL = 3
    ALREADY_EXISTS = 4
    NOT_FOUND = 5
    PERMISSION_DENIED = 6
    UNAUTHENTICATED = 7
    TOO_LARGE = 8
    EXHAUSTED = 9
    UNAVAILABLE = 10
    TIMED_OUT = 11
    CANCELLED = 12
    READ_ONLY = 13
    PROTOCOL = 14
    TASK_FAILED = 15


class Meaning(NamedTuple):
    """How one kind of error shows at the edges: gRPC status name, exit code of the CLIs, whether a retry can help."""

    grpc: str
    exit_code: int
    retryable: bool


MEANING: dict[FlameErrorCode, Meaning] = {
    FlameErrorCode.INVALID_CONFIG: Meaning("INVALID_ARGUMENT", 2, False),
    FlameErrorCode.INVALID_STATE: Meaning("INVALID_ARGUMENT", 5, False),
    FlameErrorCode.INVALID_ARGUMENT: Meaning("INVALID_ARGUMENT", 2, False),
    FlameErrorCode.INTERNAL: Meaning("INTERNAL", 1, False),
    FlameErrorCode.ALREADY_EXISTS: Meaning("ALREADY_EXISTS", 5, False),
    FlameErrorCode.NOT_FOUND: Meaning("NOT_FOUND", 4, False),
    FlameErrorCode.PERMISSION_DENIED: Meaning("PERMISSION_DENIED", 6, False),
    FlameErrorCode.UNAUTHENTICATED: Meaning("UNAUTHENTICATED", 6, False),
    FlameErrorCode.TOO_LARGE: Meaning("OUT_OF_RANGE", 5, False),
    FlameErrorCode.EXHAUSTED: Meaning("RESOURCE_EXHAUSTED", 7, True),
    FlameErrorCode.UNAVAILABLE: Meaning("UNAVAILABLE", 7, True),
    FlameErrorCode.TIMED_OUT: Meaning("DEADLINE_EXCEEDED", 7, True),
    FlameErrorCode.CANCELLED: Meaning("CANCELLED", 1, False),
    FlameErrorCode.READ_ONLY: Meaning("UNAVAILABLE", 7, True),
    FlameErrorCode.PROTOCOL: Meaning("INTERNAL", 1, False),
    FlameErrorCode.TASK_FAILED: Meaning("INTERNAL", 1, False),
}


class FlameError(Exception):
    """Base of all errors of Flame.

    Attributes: `code`, `message`, `remedy` (what to do next, may be empty), `retryable` (whether the same request
    may succeed later). Subclasses fix the code; `error_of` finds the subclass of a code.
    """

    code: FlameErrorCode
    message: str
    remedy: str
    retryable: bool

    def __init__(
        self, code: FlameErrorCode | int, message: str, *, remedy: str = "", retryable: bool | None = None
    ) -> None:
        super().__init__(message)
        self.code = FlameErrorCode(code)
        self.message = message
        self.remedy = remedy
        self.retryable = MEANING[self.code].retryable if retryable is None else retryable

    def __str__(self) -> str:
        text = f"{self.message}; {self.remedy}" if self.remedy else self.message
        return f"{text} (code: {int(self.code)})"

    def __reduce__(self) -> tuple[object, ...]:
        return (error_of, (int(self.code), self.message, self.remedy, self.retryable))


class _FixedError(FlameError):
    """An error whose class determines its code."""

    code = FlameErrorCode.INTERNAL

    def __init__(self, message: str, *, remedy: str = "", retryable: bool | None = None) -> None:
        super().__init__(type(self).code, message, remedy=remedy, retryable=retryable)


class InvalidConfigError(_FixedError):
    """A setting, a configuration file or an address is wrong."""

    code = FlameErrorCode.INVALID_CONFIG


class InvalidStateError(_FixedError):
    """The object exists but its state forbids the request (a closed session, a running task)."""

    code = FlameErrorCode.INVALID_STATE


class InvalidArgumentError(_FixedError):
    """A value in the request is malformed or out of range."""

    code = FlameErrorCode.INVALID_ARGUMENT


class InternalError(_FixedError):
    """A fault of Flame itself."""

    code = FlameErrorCode.INTERNAL


class AlreadyExistsError(_FixedError):
    """An object of that name exists."""

    code = FlameErrorCode.ALREADY_EXISTS


class NotFoundError(_FixedError):
    """No object of that name exists."""

    code = FlameErrorCode.NOT_FOUND


class PermissionDeniedError(_FixedError):
    """The caller is known but its role or session does not allow the request."""

    code = FlameErrorCode.PERMISSION_DENIED


class UnauthenticatedError(_FixedError):
    """The caller showed no valid certificate or token."""

    code = FlameErrorCode.UNAUTHENTICATED


class TooLargeError(_FixedError):
    """A payload or a message is over the limit that its text names."""

    code = FlameErrorCode.TOO_LARGE


class ExhaustedError(_FixedError):
    """A quota or a queue is full; later requests may succeed."""

    code = FlameErrorCode.EXHAUSTED


class UnavailableError(_FixedError):
    """The peer can't be reached or is shutting down."""

    code = FlameErrorCode.UNAVAILABLE


class TimedOutError(_FixedError, TimeoutError):
    """The time that the caller allowed is over."""

    code = FlameErrorCode.TIMED_OUT


class TaskCancelledError(_FixedError):
    """The task was cancelled, or its session was closed before it ran."""

    code = FlameErrorCode.CANCELLED


class ReadOnlyError(_FixedError):
    """The journal can't be written (disk full or failing); nothing new is accepted until it can."""

    code = FlameErrorCode.READ_ONLY


class ProtocolError(_FixedError):
    """The peer sent something that the contract does not allow."""

    code = FlameErrorCode.PROTOCOL


class TaskFailedError(_FixedError):
    """The service raised or returned a failure for this task. `traceback` holds the remote one when it is known,
    `details` what the service added for clients that know it."""

    code = FlameErrorCode.TASK_FAILED
    traceback: str = ""
    details: bytes = b""


_CLASSES: dict[FlameErrorCode, type[_FixedError]] = {kind.code: kind for kind in _FixedError.__subclasses__()}


def error_of(code: int, message: str, remedy: str = "", retryable: bool | None = None) -> FlameError:
    """The error object for a code from the wire; an unknown number becomes INTERNAL."""
    try:
        kind = _CLASSES[FlameErrorCode(code)]
    except (ValueError, KeyError):
        kind = InternalError
    return kind(message, remedy=remedy, retryable=retryable)

"""Errors on the wire: `link_pb2.Error` and the exceptions of `flame.model.errors`."""

from __future__ import annotations

from flame.model.errors import FlameError, InternalError, error_of
from flame.proto import link_pb2


def to_wire(error: BaseException) -> link_pb2.Error:
    """The message for an exception; one that is not ours becomes INTERNAL with its type and text."""
    if not isinstance(error, FlameError):
        error = InternalError(f"{type(error).__name__}: {error}")
    return link_pb2.Error(code=int(error.code), message=error.message, remedy=error.remedy, retryable=error.retryable)


def from_wire(message: link_pb2.Error) -> FlameError:
    """The exception for a message; an unknown code becomes INTERNAL."""
    return error_of(message.code, message.message, message.remedy, message.retryable)

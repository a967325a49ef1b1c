"""Exceptions on their way from an instance to who made the call."""

from __future__ import annotations

import pickle
import traceback
from functools import partial
from types import TracebackType
from typing import Any

from flame.model.errors import InvalidStateError, TaskFailedError
from flame.runner.payloads import PROTOCOL
from flame.runner.pickling import pickled
from flame.service.api import TaskFailure
from flame.service.outcome import describe

_LARGEST = 128 * 1024  # bytes of an exception that travels as itself
_TEXT = 32 * 1024  # characters of its text and of its traceback


class StateLostError(InvalidStateError):
    """The instance that held the state of a service has ended, and the state with it."""

    def __reduce__(self) -> tuple[object, ...]:
        return partial(StateLostError, remedy=self.remedy), (self.message,)


def failure_of(error: BaseException, hidden: int = 0) -> TaskFailure:
    """What a service raises for an exception of the user's code; the outermost `hidden` frames are not shown."""
    trace: TracebackType | None = error.__traceback__
    for _ in range(hidden):
        trace = trace.tb_next if trace is not None and trace.tb_next is not None else trace
    text = "".join(traceback.format_exception(type(error), error, trace))
    kind = f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins.")
    return TaskFailure(_shortened(describe(error)), _shortened(text), pickle.dumps((kind, _pickled(error)), PROTOCOL))


def _shortened(text: str) -> str:
    """A text without the middle of it if that is long: the frames of a traceback come first, what was raised last."""
    return text if len(text) <= _TEXT else f"{text[: _TEXT // 2]} ... {text[-_TEXT // 2 :]}"


def _pickled(error: BaseException) -> bytes | None:
    """The exception as a pickle that loads again; None when it has none, or a very large one."""
    try:
        data = pickled(error, PROTOCOL)
        return data if len(data) <= _LARGEST and type(pickle.loads(data)) is type(error) else None
    except Exception:
        return None


def error_of(failure: TaskFailedError) -> Exception:
    """The exception that the call raised there, caused by the failure; the failure itself when it can't be had here."""
    if not failure.details:
        return failure
    try:
        kind, data = pickle.loads(failure.details)
        error: Any = pickle.loads(data) if data is not None else None
    except Exception as problem:
        return _unknown(failure, f"its exception can't be loaded here: {type(problem).__name__}: {problem}")
    if error is None:
        return _unknown(failure, f"{kind} can't be pickled, or is very large")
    if not isinstance(error, Exception):
        return _unknown(failure, f"{kind} is not raised here, where it would end the caller: raise another exception")
    error.__cause__ = failure
    return error


def _unknown(failure: TaskFailedError, why: str) -> TaskFailedError:
    try:
        kind: str = pickle.loads(failure.details)[0]
    except Exception:
        kind = "an exception"
    error = TaskFailedError(f"{kind}: {failure.message}", remedy=why, retryable=failure.retryable)
    error.traceback = failure.traceback
    error.__cause__ = failure
    return error

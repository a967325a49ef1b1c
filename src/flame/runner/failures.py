"""Exceptions on their way from an instance to who made the call."""

from __future__ import annotations

import pickle
import traceback
from functools import partial
from types import MemberDescriptorType, TracebackType
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
    for candidate in (error, _Parts(error)):
        try:
            data = pickled(candidate, PROTOCOL)
            if len(data) <= _LARGEST and type(pickle.loads(data)) is type(error):
                return data
        except Exception:
            continue
    return None


class _Parts:
    """Pickles as an exception that can't be made again by calling its class with its `args`: as most that have
    arguments of their own."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __reduce__(self) -> tuple[object, ...]:
        error = self._error
        known = {name: getattr(error, name) for kind in type(error).__mro__ for name in _members(kind)}
        # An OSError with a file name of None is another one than without a file name.
        given = {name: value for name, value in known.items() if value is not None}
        state = {name: value for name, value in {**given, **vars(error)}.items() if _can_travel(value)}
        return put_together, (type(error), error.args, state)


def put_together(kind: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]) -> BaseException:
    """Stands in pickles, under this name, for an exception that is made without calling its `__init__`."""
    error = kind.__new__(kind, *args)
    error.args = args
    for name, value in state.items():
        setattr(error, name, value)
    return error


def _members(kind: type) -> list[str]:
    """What exceptions of C keep beside their attributes, such as errno."""
    return [name for name, member in vars(kind).items() if isinstance(member, MemberDescriptorType)]


def _can_travel(value: Any) -> bool:
    try:
        pickle.loads(pickled(value, PROTOCOL))
    except Exception:
        return False
    return True


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

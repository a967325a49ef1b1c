"""The future of a call: its value is unpickled when somebody wants it."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from flame.client.futures import TaskFuture
from flame.client.synchronous_session import as_completed
from flame.model.errors import FlameError, TaskFailedError
from flame.runner.failures import error_of
from flame.runner.payloads import PICKLE, is_stored, note_future

if TYPE_CHECKING:
    from flame.client.stream import TaskStream
    from flame.objects.keys import ObjectRef
    from flame.runner.lane import Lane


class ObjectFuture(TaskFuture):
    """The result of a call.

    A `concurrent.futures.Future` that can be awaited, and that can be an argument of other calls, on its own or inside
    of lists, dicts and other objects: they get its value. Every `get()` gives a fresh object that is the caller's own.
    """

    needs: tuple[ObjectFuture, ...] = ()  # its arguments, as long as their results must not go
    held: bool = False  # waits for those, and is not submitted
    _submitted: bytes | None = None  # what was submitted, if this process could run it itself
    _looked_after: bool = False  # somebody does that already, should nobody else be able to
    _wanted: bool = False  # somebody waited when it was not submitted yet

    def __init__(self, stream: TaskStream, lane: Lane) -> None:
        super().__init__(stream)
        self._lane = lane

    def result(self, timeout: float | None = None) -> Any:
        """What the call returned; waits up to `timeout` seconds. Raises what the call raised, with the remote traceback
        as its cause, TaskFailedError when that exception can't be had here, TaskCancelledError, TimedOutError."""
        self._wait(timeout)
        value = self._value
        if isinstance(value, FlameError):
            raise _as_raised(value)
        return self._lane.decode(value)

    get = result

    def exception(self, timeout: float | None = None) -> Any:
        """What `result` would raise, or None; waits like it. Raises TimedOutError, TaskCancelledError."""
        error = super().exception(timeout)
        return None if error is None else _as_raised(error)

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the call has ended, in whatever way. Raises TimedOutError."""
        self._wait(timeout)

    def ref(self) -> ObjectRef:
        """Where the result is in the object cache; a small one is put there now. Waits, and raises like `result`."""
        self._wait(None)
        if isinstance(self._value, FlameError):
            raise _as_raised(self._value)
        return self._lane.reference(self._value)

    def submitted(self, call: bytes) -> None:
        """Note what was submitted, which this process could run itself."""
        self._submitted = call
        if self._wanted:
            self._look_after()

    @property
    def outcome(self) -> bytes | FlameError | None:
        """What the cluster gave, None before."""
        return self._value

    def cancel(self) -> bool:
        """Ask for the end of the call, also when it runs. False when it has ended already."""
        if not self.held:
            return super().cancel()
        if self.done():
            return False
        self._cancel_wanted = True
        self._lane.cancel_held(self)
        return True

    def _wait(self, timeout: float | None) -> None:
        if self._submitted is not None and self._state == "PENDING" and not self._looked_after:
            self._looked_after = True
            try:
                timeout = self._lane.run_here_if_full(self, self._submitted, timeout)
            finally:
                self._looked_after = False
        super()._wait(timeout)

    def _look_after(self) -> None:
        if not self._lane.looks_after:
            return
        self._wanted = True
        if self._submitted is not None and self._state == "PENDING" and not self._looked_after:
            self._looked_after = True
            self._lane.look_after(self, self._submitted)

    @property
    def _condition(self) -> threading.Condition:  # pyright: ignore[reportIncompatibleVariableOverride]
        self._look_after()  # who looks at this is about to wait: concurrent.futures.wait and as_completed
        return super()._condition

    def add_done_callback(self, fn: Callable[[Any], object]) -> None:
        """Call `fn(self)` once when it is done, in the thread of the connection; at once when it is done already."""
        self._look_after()
        super().add_done_callback(fn)

    def __await__(self) -> Generator[Any, None, Any]:
        self._look_after()
        try:
            value = yield from super().__await__()
        except TaskFailedError as failure:
            raise error_of(failure)  # noqa: B904 - it says itself what caused it
        if value is not None and is_stored(value):
            return (yield from asyncio.to_thread(self._lane.decode, value).__await__())
        return self._lane.decode(value)

    def __reduce__(self) -> Any:
        return note_future(self)

    def __del__(self) -> None:
        value = self._value
        if type(value) is bytes and value[:1] != PICKLE and is_stored(value) and not sys.is_finalizing():
            self._lane.free(value)


class ObjectFutureIterator:
    """Futures in the order in which they end; each comes once."""

    def __init__(self, futures: Iterable[ObjectFuture]) -> None:
        self._ended: Iterator[Any] = as_completed(futures)

    def __iter__(self) -> Iterator[ObjectFuture]:
        return self

    def __next__(self) -> ObjectFuture:
        return next(self._ended)


def _as_raised(error: FlameError) -> Exception:
    return error_of(error) if isinstance(error, TaskFailedError) else error

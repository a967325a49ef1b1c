"""Calls that are not submitted yet: they wait for the futures among their arguments.

A call is submitted by the thread of the connection when the last of its arguments has ended, with their results as
they came: whoever made the call never waits, and no executor is taken by a call that can't run yet. The calls of a
service with a state also wait for those before them, so that it gets them in the order in which they were made.
"""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from flame.client.futures import CancelledTaskError, settle
from flame.model.errors import FlameError
from flame.runner.payloads import PROTOCOL, bare, with_values
from flame.runner.storage import background

if TYPE_CHECKING:
    from flame.proto import types_pb2 as ty
    from flame.runner.futures import ObjectFuture

_LARGE = 1 << 20  # bytes from which on submitting may take a while
_NONE = pickle.dumps(None, PROTOCOL)


class _Entry:
    """One call that waits, for `left` of its arguments."""

    __slots__ = ("call", "future", "left", "options")

    def __init__(self, future: ObjectFuture, call: bytes, options: ty.TaskOptions | None, left: int) -> None:
        self.future = future
        self.call = call
        self.options = options
        self.left = left


class Line:
    """The waiting calls of one session. `wake` runs something soon in the thread of the connection, `submit` submits a
    call or raises FlameError."""

    def __init__(
        self,
        wake: Callable[[Callable[[], object]], object],
        submit: Callable[[ObjectFuture, bytes, ty.TaskOptions | None], None],
        *,
        ordered: bool,
    ) -> None:
        self._wake = wake
        self._submit = submit
        self._ordered = ordered
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._entries: dict[ObjectFuture, _Entry] = {}  # in the order of their calls

    def takes(
        self, future: ObjectFuture, call: bytes, needs: list[ObjectFuture], options: ty.TaskOptions | None
    ) -> bool:
        """Keep a call that must wait; False when it may be submitted at once."""
        with self._lock:
            if not needs and not (self._ordered and self._entries):
                return False
            entry = self._entries[future] = _Entry(future, call, options, len(needs))
            future.held, future.needs = True, tuple(needs)
        for need in needs:
            need.add_done_callback(partial(self._ended, entry))
        return True

    def cancel(self, future: ObjectFuture) -> None:
        """It was cancelled while it waits."""
        self._wake(partial(self._refuse, future, CancelledTaskError("cancelled before its arguments were there")))

    def futures(self) -> list[ObjectFuture]:
        """The calls that wait now."""
        with self._lock:
            return list(self._entries)

    def wait(self) -> None:
        """Wait until none waits any more."""
        with self._changed:
            self._changed.wait_for(lambda: not self._entries)

    def _ended(self, entry: _Entry, _: object) -> None:
        with self._lock:
            entry.left -= 1
            if entry.left:
                return
        self._wake(self._advance if self._ordered else partial(self._release, entry))

    # --- the thread of the connection --------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Submit those at the front that have all they need."""
        with self._lock:
            entry = next(iter(self._entries.values()), None)
        if entry is not None and not entry.left:
            self._release(entry)

    def _release(self, entry: _Entry) -> None:
        """All arguments of a call have ended. It leaves the line when it is submitted, not before."""
        future = entry.future
        if future not in self._entries or not future.held:
            return
        future.held = False
        values = [need.outcome for need in future.needs]
        error = next((value for value in values if isinstance(value, FlameError)), None)
        if error is not None:
            self._refuse(future, error)
            return
        call = entry.call
        if values:
            call = with_values(call, [bare(value) if isinstance(value, bytes) else _NONE for value in values])
            future.add_done_callback(_let_go)
        if len(call) > _LARGE:
            background.do(partial(self._submit_call, future, call, entry.options))
        else:
            self._submit_call(future, call, entry.options)

    def _submit_call(self, future: ObjectFuture, call: bytes, options: ty.TaskOptions | None) -> None:
        try:
            self._submit(future, call, options)
        except FlameError as error:
            self._wake(partial(self._refuse, future, error))
        else:
            self._leave(future)

    def _refuse(self, future: ObjectFuture, error: FlameError) -> None:
        future.held = False
        if not future.done():
            settle(future._stream.lock, (future,), (error,), plain=False)  # pyright: ignore[reportPrivateUsage]
        self._leave(future)

    def _leave(self, future: ObjectFuture) -> None:
        with self._changed:
            self._entries.pop(future, None)
            if not self._entries:
                self._changed.notify_all()
        if self._ordered:
            self._wake(self._advance)


def _let_go(future: ObjectFuture) -> None:
    """It has ended, so its arguments may go."""
    future.needs = ()

"""The calls of one session: submitted at once, or held until the futures among their arguments are done.

A held call is submitted by the thread of the connection when the last of its arguments has ended, with their results
as they came: whoever made the call never waits, and no executor is taken by a call that can't run yet.
"""

from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from flame.client.futures import CancelledTaskError, settle
from flame.model.errors import FlameError, InvalidArgumentError, TaskFailedError, TooLargeError
from flame.model.states import TaskState
from flame.runner import nesting
from flame.runner.failures import StateLostError, error_of
from flame.runner.futures import ObjectFuture
from flame.runner.payloads import (
    PICKLE,
    STATE,
    STATE_ID,
    TAG,
    bare,
    dumps,
    encode_call,
    is_stored,
    with_values,
)
from flame.runner.storage import Storage, StoredArgument, background

if TYPE_CHECKING:
    from flame.client.stream import TaskStream
    from flame.client.synchronous_session import Session
    from flame.objects.keys import ObjectRef
    from flame.proto import types_pb2 as ty

_UNKNOWN = bytes(STATE_ID)
INSIDE = bool(os.environ.get("FLAME_INSTANCE_ID"))  # this process is an instance


class Lane:
    """See above. `stateful`: its instance has a state that calls change, so it must stay the same one."""

    def __init__(
        self, session: Session, storage: Storage, *, stateful: bool = False, target: Callable[..., Any] | None = None
    ) -> None:
        """`target`: what answers calls without a method, if it can answer them in this process just as well."""
        self.session = session
        self._target = target if INSIDE else None
        self._storage = storage
        self._wake = session.connection.thread.loop.call_soon_threadsafe
        self._lock = threading.Lock()
        self._held: set[ObjectFuture] = set()
        self._ended = threading.Condition(self._lock)  # that of the last held call
        self._stateful = stateful
        self._state = _UNKNOWN

    # --- calling ---------------------------------------------------------------------------------------------------

    def call(
        self,
        method: str | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: ty.TaskOptions | None = None,
    ) -> ObjectFuture:
        """Make a call. Raises InvalidArgumentError, TooLargeError, or what ended the session's stream."""
        call, needs, kept = self._encode(method, args, kwargs)
        future = ObjectFuture(self.session.task_stream(), self)
        if self._stateful:
            future.add_done_callback(self._learn)
        if kept:
            self._free_after(future, *kept)
        if needs:
            self._hold(future, call, tuple(needs), options)
        else:
            self._submit(future, call, options)
        return future

    def send(self, payload: bytes, options: ty.TaskOptions | None) -> ObjectFuture:
        """Submit this input as it is; the result is unpickled. Raises TooLargeError."""
        future = ObjectFuture(self.session.task_stream(), self)
        self._submit(future, payload, options)
        return future

    def _encode(
        self, method: str | None, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[bytes, list[ObjectFuture], list[bytes]]:
        """A call, the futures in it, and what was put into the cache for it."""
        kept: list[bytes] = []
        if self._storage.configured:
            args = tuple(self._argument(value, kept) for value in args)
            kwargs = {name: self._argument(value, kept) for name, value in kwargs.items()}
        call, needs = encode_call(method, args, kwargs)
        return call, needs, kept

    def map(self, calls: Iterable[tuple[Any, ...]], timeout: float | None, window: int | None) -> Iterator[Any]:
        """The values of calls with these arguments, in their order, as they come; the first are made at once.

        Raises InvalidArgumentError, also for futures among the arguments.
        """
        results = self.session.map(map(self._bulk, calls), timeout=timeout, window=window, return_exceptions=True)
        return self._values(results)

    def _bulk(self, args: tuple[Any, ...]) -> bytes:
        call, needs, _ = self._encode(None, args, {})
        if needs:
            raise InvalidArgumentError("the arguments of map can't be futures", remedy="give them to submit")
        return self._storage.keep(call) if len(call) > self._storage.threshold else call

    def _values(self, results: Iterator[Any]) -> Iterator[Any]:
        for result in results:
            if isinstance(result, FlameError):
                raise error_of(result) if isinstance(result, TaskFailedError) else result
            yield self.decode(result)
            if is_stored(result):
                self.free(result)

    def _argument(self, value: Any, kept: list[bytes]) -> Any:
        stored = self._storage.keep_value(value)
        if stored is None:
            return value
        kept.append(stored)
        return StoredArgument(stored)

    def _free_after(self, future: ObjectFuture, *kept: bytes) -> None:
        def free(_: object) -> None:
            for stored in kept:
                self._storage.free(stored)

        future.add_done_callback(free)

    def _submit(self, future: ObjectFuture, call: bytes, options: ty.TaskOptions | None) -> None:
        if len(call) > self._storage.threshold:
            call = self._storage.keep(call)
            self._free_after(future, call)
        if self._target is not None:
            future._submitted = call  # pyright: ignore[reportPrivateUsage]
        if self._stateful:
            call = STATE + self._state + call
        stream: TaskStream = future._stream  # pyright: ignore[reportPrivateUsage, reportAssignmentType]
        try:
            stream.submit(call, future, options)
        except TooLargeError as error:
            raise self._storage.too_large(error) from error

    def _hold(
        self, future: ObjectFuture, call: bytes, needs: tuple[ObjectFuture, ...], options: ty.TaskOptions | None
    ) -> None:
        future._held, future._needs = True, needs  # pyright: ignore[reportPrivateUsage]
        left = len(needs)
        with self._lock:
            self._held.add(future)

        def one_ended(_: object) -> None:
            nonlocal left
            with self._lock:
                left -= 1
                last = not left
            if last:
                self._wake(partial(self._release, future, call, options))

        for need in needs:
            need.add_done_callback(one_ended)

    def _release(self, future: ObjectFuture, call: bytes, options: ty.TaskOptions | None) -> None:
        """All arguments of a held call have ended. In the thread of the connection."""
        if future.done():
            return
        self._no_longer_held(future)
        values = [need._value for need in future._needs]  # pyright: ignore[reportPrivateUsage]
        error = next((value for value in values if isinstance(value, FlameError)), None)
        if error is None:
            results = [bare(value) for value in values if isinstance(value, bytes)]
            future.add_done_callback(_let_go)
            whole = with_values(call, results)
            if len(whole) > self._storage.threshold:
                background.do(partial(self._submit_held, future, whole, options))
            else:
                self._submit_held(future, whole, options)
            return
        self._settle(future, error)

    def _submit_held(self, future: ObjectFuture, call: bytes, options: ty.TaskOptions | None) -> None:
        try:
            self._submit(future, call, options)
        except FlameError as error:
            self._wake(partial(self._settle, future, error))

    def cancel_held(self, future: ObjectFuture) -> None:
        """It was cancelled before it was submitted."""
        self._wake(partial(self._settle, future, CancelledTaskError("cancelled before its arguments were there")))

    def _no_longer_held(self, future: ObjectFuture) -> None:
        future._held = False  # pyright: ignore[reportPrivateUsage]
        with self._lock:
            self._held.discard(future)
            if not self._held:
                self._ended.notify_all()

    def _settle(self, future: ObjectFuture, error: FlameError) -> None:
        if not future.done():
            self._no_longer_held(future)
            settle(future._stream.lock, (future,), (error,), plain=False)  # pyright: ignore[reportPrivateUsage]

    # --- results ---------------------------------------------------------------------------------------------------

    def decode(self, result: bytes | None) -> Any:
        """The value of a result. Raises what unpickling or fetching it raises, StateLostError."""
        if result is None:
            return None
        if result[:1] == PICKLE:
            return pickle.loads(result)
        if result[:TAG] == STATE:
            self._check(result[TAG : TAG + STATE_ID])
            return self.decode(result[TAG + STATE_ID :])
        return self._storage.value(result)

    def reference(self, result: bytes | None) -> ObjectRef:
        """Where a result is in the object cache; put there if it is not."""
        return self._storage.reference(bare(result or b""))

    def free(self, result: bytes) -> None:
        """Nobody can ask for this result any more."""
        self._storage.free(bare(result))

    def _learn(self, future: ObjectFuture) -> None:
        value = future._value  # pyright: ignore[reportPrivateUsage]
        if isinstance(value, bytes):
            try:
                self._check(value[TAG : TAG + STATE_ID])
            except StateLostError:
                pass  # for who asks for the result

    def _check(self, state: bytes) -> None:
        """The first state that answered is the one that all others must be."""
        with self._lock:
            if self._state == _UNKNOWN:
                self._state = state
        if state != self._state:
            raise lost_state(self.session.application)

    # --- waiting ---------------------------------------------------------------------------------------------------

    def wait(self) -> None:
        """Wait until all calls have ended."""
        with self._ended:
            self._ended.wait_for(lambda: not self._held)
        self.session.wait()

    def run_here_if_full(self, future: ObjectFuture, call: bytes, timeout: float | None) -> float | None:
        """A call of an instance waits for another call. If the cluster has no room for that one, it is run here, so
        that calls that wait for calls end however full the cluster is. Answers what is left of `timeout`."""
        assert self._target is not None
        return nesting.wait_or_run(future, lambda: self._answer(call), self.session, timeout)

    def _answer(self, call: bytes) -> bytes:
        assert self._target is not None
        method, args, kwargs = self._storage.call(call)
        del method
        return dumps(self._target(*args, **kwargs), "the result")

    def cancel_pending(self) -> None:
        """Cancel the calls that no instance has begun with."""
        with self._lock:
            held = list(self._held)
        for future in held:
            future.cancel()
        pending = self.session.list_tasks([TaskState.PENDING], without_payloads=True)
        self.session.cancel([task.id for task in pending], reason="the executor was shut down")

    # --- the end ---------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the session, what has not ended is cancelled, and delete its objects."""
        try:
            self.session.close(force=True)
        finally:
            self._storage.clear()


def lost_state(name: str) -> StateLostError:
    """What calls get when the instance that they meant is gone."""
    return StateLostError(
        f"the instance that held the state of this service ({name}) has ended, and the state with it",
        remedy="make the service again, or make it with durable=True",
    )


def _let_go(future: ObjectFuture) -> None:
    """It has ended, so its arguments may go."""
    future._needs = ()  # pyright: ignore[reportPrivateUsage]

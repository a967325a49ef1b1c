"""The calls of one session: encoded, submitted, and their results decoded."""

from __future__ import annotations

import os
import pickle
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from flame.model.errors import ExhaustedError, FlameError, InvalidArgumentError, TaskFailedError, TooLargeError
from flame.model.states import TaskState
from flame.runner import nesting
from flame.runner.failures import StateLostError, error_of
from flame.runner.futures import ObjectFuture
from flame.runner.host import Host
from flame.runner.in_process import awaited
from flame.runner.line import Line
from flame.runner.owners import close_children
from flame.runner.payloads import (
    PICKLE,
    PLAIN,
    STATE,
    STATE_ID,
    TAG,
    bare,
    dumps,
    encode_call,
    is_stored,
)
from flame.runner.storage import Storage, StoredArgument, background

if TYPE_CHECKING:
    from flame.client.stream import TaskStream
    from flame.client.synchronous_session import Session
    from flame.objects.keys import ObjectRef
    from flame.proto import types_pb2 as ty

_UNKNOWN = bytes(STATE_ID)
INSIDE = bool(os.environ.get("FLAME_INSTANCE_ID"))  # this process is an instance
_PATIENCE_S = 60.0  # until a call that must not be run here fails
_STATE_PATIENCE_S = 5.0  # until a state moves here, for good

# Makes a call: the method, None = the target itself, and its arguments.
Target = Callable[[str | None, tuple[Any, ...], dict[str, Any]], Any]


class Lane:
    """Makes calls in a session. `stateful`: its instance has a state that calls change, so it must stay the same one;
    `ordered`: calls are submitted in the order in which they were made (stateful ones are)."""

    def __init__(
        self,
        session: Session,
        storage: Storage,
        *,
        stateful: bool = False,
        ordered: bool = False,
        target: Target | None = None,
    ) -> None:
        """`target`: what answers calls, if this process can answer them just as well; for a stateful one, one at a time
        and as long as no instance has."""
        self.session = session
        self._target = target
        self._storage = storage
        self._lock = threading.Lock()
        self._stateful = stateful
        self._state = _UNKNOWN
        self._movable = stateful and target is not None and INSIDE
        self._waiting: dict[ObjectFuture, bytes] = {}  # what was submitted and could move here
        self._host: Host | None = None  # where it moved to
        self._begun = False  # an instance may have changed the state
        wake = session.connection.thread.loop.call_soon_threadsafe
        self._line = Line(wake, self._submit, ordered=ordered or stateful)

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
        future = ObjectFuture(self._host.stream if self._host is not None else self.session.task_stream(), self)
        if self._stateful:
            future.add_done_callback(self._learn)
        if kept:
            self._free_after(future, *kept)
        if not self._line.takes(future, call, needs, options):
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
        if self._storage.configured and not (PLAIN.issuperset(map(type, args)) and not kwargs):
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
        if self._movable:
            with self._lock:
                if self._host is not None:
                    self._host.submit(future, call)
                    return
                self._waiting[future] = call
                try:
                    self._send(future, call, options)
                except FlameError:
                    del self._waiting[future]
                    raise
        else:
            self._send(future, call, options)
        if INSIDE:
            future.submitted(call)

    def _send(self, future: ObjectFuture, call: bytes, options: ty.TaskOptions | None) -> None:
        stream: TaskStream = future._stream  # pyright: ignore[reportPrivateUsage, reportAssignmentType]
        try:
            stream.submit(STATE + self._state + call if self._stateful else call, future, options)
        except TooLargeError as error:
            raise self._storage.too_large(error) from error

    @property
    def looks_after(self) -> bool:
        """Whether calls that nobody can begin with shall not be waited for: this process holds an executor itself."""
        return INSIDE

    def cancel_held(self, future: ObjectFuture) -> None:
        """It was cancelled before it was submitted."""
        self._line.cancel(future)

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
        self._begun = True
        self._waiting.pop(future, None)
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
        self._line.wait()
        self.session.wait()

    def run_here_if_full(self, future: ObjectFuture, call: bytes, timeout: float | None) -> float | None:
        """A call of an instance waits for another call. If the cluster has no room for that one, it is run here, so
        that calls that wait for calls end however full the cluster is. Answers what is left of `timeout`."""
        return nesting.wait_or_run(future, partial(self._help, future, call), self.session, timeout, self._patience)

    def look_after(self, future: ObjectFuture, call: bytes) -> None:
        """The same for a call that is waited for without a thread."""
        nesting.look_after(future, partial(self._help, future, call), self.session, self._patience)

    def _help(self, future: ObjectFuture, call: bytes) -> None:
        """Nobody else can begin with this call: answer it here, or all of a state that has not begun anywhere."""
        with self._lock:
            if self._movable and not self._begun and self._host is None:
                stream: Any = future._stream  # pyright: ignore[reportPrivateUsage]
                lost = lost_state(self.session.application)
                self._host = Host(self.session, stream, dict(self._waiting), self._answered, lost)
        if self._host is None:
            nesting.take_back(future, partial(self._answer, call), self.session)

    def _answered(self, call: bytes) -> bytes | FlameError:
        return nesting.answered(partial(self._call_here, call))

    def _patience(self) -> float:
        if self._target is not None and not self._stateful:
            return 0.0
        return _nested_patience(_STATE_PATIENCE_S if self._movable and not self._begun else _PATIENCE_S)

    def _answer(self, call: bytes) -> bytes:
        if self._target is None or self._stateful:
            raise ExhaustedError(
                f"the cluster had no room for the instance of {self.session.application} that a call inside of another "
                f"one waited for: {self.session.pending_reason}",
                remedy="give the cluster more room, make fewer calls at once, or set FLAME_NESTED_PATIENCE (seconds)",
            )
        return self._call_here(call)

    def _call_here(self, call: bytes) -> bytes:
        assert self._target is not None
        return dumps(awaited(self._target(*self._storage.call(call))), "the result")

    def cancel_pending(self) -> None:
        """Cancel the calls that no instance has begun with."""
        for future in self._line.futures():
            future.cancel()
        answered = threading.Event()  # what is still on its way to the cluster is in no list of its tasks
        stream: TaskStream = self.session.task_stream()  # pyright: ignore[reportAssignmentType]
        self.session.connection.thread.loop.call_soon_threadsafe(stream.when_answered, answered.set)
        answered.wait()
        pending = self.session.list_tasks([TaskState.PENDING], without_payloads=True)
        self.session.cancel([task.id for task in pending], reason="the executor was shut down")

    # --- the end ---------------------------------------------------------------------------------------------------

    def close(self, *, keep_results: bool = False) -> None:
        """Close the session, what has not ended is cancelled, and delete its objects; or keep them until the last
        future is gone."""
        if self._host is not None:
            self._host.close()
        try:
            self.session.close(force=True)
            close_children(self.session.connection, self.session.id)
        finally:
            if keep_results:
                self._storage.end()
                weakref.finalize(self, background.do, self._storage.clear).atexit = False
            else:
                self._storage.clear()


def _nested_patience(default: float) -> float:
    """Seconds that a call in an instance waits for what gets no room. Raises InvalidArgumentError."""
    text = os.environ.get("FLAME_NESTED_PATIENCE", "")
    try:
        return float(text) if text else default
    except ValueError:
        raise InvalidArgumentError(f"FLAME_NESTED_PATIENCE must be a number of seconds, not {text!r}") from None


def lost_state(name: str) -> StateLostError:
    """What calls get when the instance that they meant is gone."""
    return StateLostError(
        f"the instance that held the state of this service ({name}) has ended, and the state with it",
        remedy="make the service again, or make it with durable=True",
    )

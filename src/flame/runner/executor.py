"""`Executor`: the interface of `concurrent.futures` on a cluster."""

from __future__ import annotations

import concurrent.futures
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

from flame.client.values import ResourceRequirement, SessionAttributes, short_name
from flame.model.errors import FlameError
from flame.model.states import SessionState
from flame.runner.application import RunnerApplication
from flame.runner.chunks import call_each, call_pickled, chunked
from flame.runner.endings import Ending
from flame.runner.futures import ObjectFuture
from flame.runner.in_process import fits_here
from flame.runner.lane import Lane
from flame.runner.owners import labels
from flame.runner.payloads import dumps, served
from flame.runner.storage import Storage

if TYPE_CHECKING:
    from flame.client.synchronous import Connection


class Executor(concurrent.futures.Executor):
    """Runs functions on a cluster; what it gives are futures of `concurrent.futures` that can also be awaited.

        with flame.Executor() as executor:
            print(list(executor.map(math.factorial, range(10))))

    `max_workers` instances at most (None = as many as there is work and room for), each of the size `resreq`. Each runs
    `initializer(*initargs)` once; when that raises, all calls raise the same. `package`, `dependencies`,
    `python_version` and `environments` are those of a Runner, `session` further attributes of the session, such as
    priority. Functions may use an Executor, too: see docs/runner.md for what happens when the cluster is full.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        name: str | None = None,
        resreq: ResourceRequirement | str | None = None,
        package: str | os.PathLike[str] | None = None,
        dependencies: Sequence[str] = (),
        python_version: str | None = None,
        environments: Mapping[str, str] | None = None,
        connection: Connection | None = None,
        **session: Any,
    ) -> None:
        if max_workers is not None and max_workers < 1:
            raise ValueError(f"max_workers must be at least 1, not {max_workers}")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be callable")
        self._application = RunnerApplication(
            name or short_name("executor"),
            dependencies=dependencies,
            python_version=python_version,
            package=package,
            environments=environments,
            connection=connection,
        )
        self._application.open()
        session["labels"] = {**labels(), **session.get("labels", {})}
        try:
            self._application.look_around()
            session_id = short_name(self._application.name)
            storage = Storage(
                f"{self._application.name}/{session_id}",
                self._application.cache,
                self._application.connection.max_payload,
            )
            attributes = SessionAttributes(
                self._application.name,
                id=session_id,
                common_data=storage.common_data(served((initializer, initargs), calls=True)),
                max_instances=max_workers,
                resreq=resreq,
                **session,
            )
            connected = self._application.connection
            opened = self._application.while_there(lambda: connected.create_session(attributes))
        except BaseException:
            self._application.close()
            raise
        self._lane = Lane(opened, storage, target=_call_here if fits_here(attributes) else None)
        self._lock = threading.Lock()
        self._shut_down = False
        self._ending = Ending(connected, partial(_close, self._lane, self._application), self._lane.wait)
        weakref.finalize(self, self._ending.dropped).atexit = False

    @property
    def session_id(self) -> str:
        """The session that serves it."""
        return self._lane.session.id

    def session_state(self) -> SessionState:
        """The state of that session now. Raises FlameError."""
        self._lane.session.refresh()
        return self._lane.session.state

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> ObjectFuture:
        """Call `fn(*args, **kwargs)` there. Raises RuntimeError after shutdown, InvalidArgumentError."""
        self._check()
        return self._lane.call(None, (dumps(fn, "the function"), *args), kwargs)

    def map(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[Any]:
        """The results of `fn` with one item of each iterable, in their order, as they come.

        `chunksize` calls are one task. The iterables may be endless: at most `buffersize` tasks (16,384 by default) are
        ahead of what was taken. Raises what the first call that failed raised, TimedOutError `timeout` seconds after
        the call.
        """
        self._check()
        if chunksize < 1:
            raise ValueError(f"chunksize must be at least 1, not {chunksize}")
        arguments = zip(*iterables, strict=False)
        if chunksize == 1:
            function = dumps(fn, "the function")
            calls = ((function, *each) for each in arguments)
        else:
            function = dumps(partial(call_each, fn), "the function")
            calls = ((function, chunk) for chunk in chunked(arguments, chunksize))
        results = self._lane.map(calls, timeout, buffersize)
        return results if chunksize == 1 else (value for chunk in results for value in chunk)

    def _check(self) -> None:
        if self._shut_down:
            raise RuntimeError("cannot schedule new futures after shutdown")
        self._application.look_around()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no further calls; end when those that were made have ended, and wait for that unless told not to.

        `cancel_futures`: those that no instance has begun with are cancelled.
        """
        with self._lock:
            first, self._shut_down = not self._shut_down, True
        if cancel_futures:
            self._lane.cancel_pending()
        if wait:
            self._ending.finish()
        elif first:
            threading.Thread(target=self._ending.finish, name="flame-shutdown").start()

    def abort(self) -> None:
        """End now: all calls that have not ended are cancelled."""
        self._shut_down = True
        self._ending.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leaving the block waits for all calls, also after an exception. What interrupts it, such as Ctrl-C in a
        program or a notebook, cancels them."""
        if error is None or isinstance(error, Exception):
            self.shutdown()
        else:
            self.abort()


def _close(lane: Lane, application: RunnerApplication) -> None:
    try:
        lane.close(keep_results=True)
    except FlameError:
        pass  # its calls have said why
    application.close()


def _call_here(method: str | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return call_pickled(*args, **kwargs)

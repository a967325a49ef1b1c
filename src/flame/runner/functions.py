"""`@function`: a function that can also be called on a cluster."""

from __future__ import annotations

import itertools
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from functools import update_wrapper
from typing import Any, Generic, ParamSpec, TypeVar, Unpack, overload

from flame.client.snapshot import TaskArguments
from flame.client.values import ResourceRequirement, short_name
from flame.runner.application import RunnerApplication
from flame.runner.endings import Ending
from flame.runner.futures import ObjectFuture
from flame.runner.service import RunnerService

P = ParamSpec("P")
R = TypeVar("R")


class RemoteFunction(Generic[P, R]):
    """What `@function` makes of a function: called as before it runs here, `remote`, `map` and `aio` run it there.

    The first remote call makes a session of it, which ends with this process, or at `close()`. Of a method, the object
    travels with each call.
    """

    def __init__(
        self,
        function: Callable[P, R],
        settings: dict[str, Any],
        options: TaskArguments,
        shared: _Shared | None = None,
        bound: tuple[Any, ...] = (),
    ) -> None:
        """`bound` are arguments that come before those of each call."""
        self._function = function
        self._settings = settings
        self._options = options
        self._shared = shared or _Shared(function, settings)
        self._bound = bound
        update_wrapper(self, function)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call it here."""
        function: Callable[..., R] = self._function
        return function(*self._bound, *args, **kwargs)

    def remote(self, *args: Any, **kwargs: Any) -> ObjectFuture:
        """Call it there. Arguments may be futures of other calls."""
        return self._shared.service().options(**self._options)(*self._bound, *args, **kwargs)

    def map(self, *iterables: Iterable[Any], timeout: float | None = None) -> Iterator[R]:
        """The results of calls with one item of each iterable, in their order. They may be endless: 16,384 calls
        are made at once, and others as results are taken."""
        always = (itertools.repeat(value) for value in self._bound)
        return self._shared.service().options(**self._options).map(*always, *iterables, timeout=timeout)

    async def aio(self, *args: Any, **kwargs: Any) -> R:
        """Call it there and wait for the result in an event loop. When the waiting is cancelled, so is the call."""
        if not self._shared.open:
            import asyncio

            await asyncio.to_thread(self._shared.service)
        return await self.remote(*args, **kwargs)

    def options(self, **options: Unpack[TaskArguments]) -> RemoteFunction[P, R]:
        """The same function with other options for its calls, such as run_timeout, max_retries or priority."""
        return RemoteFunction(self._function, self._settings, {**self._options, **options}, self._shared, self._bound)

    def close(self) -> None:
        """End its session; calls that have not ended are cancelled. The next remote call makes a new one."""
        self._shared.close()

    def __reduce__(self) -> Any:
        return RemoteFunction, (self._function, self._settings, self._options, None, self._bound)

    @overload
    def __get__(self, instance: None, owner: type | None = None) -> RemoteFunction[P, R]: ...
    @overload
    def __get__(self, instance: object, owner: type | None = None) -> RemoteFunction[..., R]: ...
    def __get__(self, instance: object, owner: type | None = None) -> RemoteFunction[..., R]:
        """The method of an object."""
        if instance is None:
            return self
        return RemoteFunction[..., R](self._function, self._settings, self._options, self._shared, (instance,))


class _Shared:
    """The service of a function, made when it is first called there."""

    def __init__(self, function: Callable[..., Any], settings: dict[str, Any]) -> None:
        self._function = function
        self._settings = settings
        self._lock = threading.Lock()
        self._service: RunnerService | None = None
        self._ending: Ending | None = None
        self._process = 0

    @property
    def open(self) -> bool:
        """Whether it is made."""
        return self._service is not None and self._process == os.getpid()

    def service(self) -> RunnerService:
        """It. Raises FlameError."""
        with self._lock:
            if self._service is None or self._process != os.getpid():
                application = _application()
                application.look_around()
                self._service = RunnerService(
                    application.connection,
                    application.name,
                    self._function,
                    cache=application.cache,
                    **self._settings,
                )
                self._process = os.getpid()
                self._ending = Ending(application.connection, self._service.close, self._service.wait)
                # Its calls go on when the function is defined anew, as in a notebook, or forgotten.
                weakref.finalize(self, self._ending.dropped).atexit = False
            return self._service

    def close(self) -> None:
        """End it."""
        with self._lock:
            service, self._service = self._service, None
            if service is not None and self._ending is not None:
                self._ending.close()


@overload
def function(function: Callable[P, R], /) -> RemoteFunction[P, R]: ...
@overload
def function(
    *,
    resreq: ResourceRequirement | str | None = None,
    max_instances: int | None = None,
    warmup: int = 0,
    session: dict[str, Any] | None = None,
    **options: Unpack[TaskArguments],
) -> Callable[[Callable[P, R]], RemoteFunction[P, R]]: ...
def function(
    function: Callable[P, R] | None = None,
    /,
    *,
    resreq: ResourceRequirement | str | None = None,
    max_instances: int | None = None,
    warmup: int = 0,
    session: dict[str, Any] | None = None,
    **options: Unpack[TaskArguments],
) -> RemoteFunction[P, R] | Callable[[Callable[P, R]], RemoteFunction[P, R]]:
    """Decorate a function so that it can be called on a cluster as well.

        @flame.function(max_retries=2)
        def simulate(seed): ...

        futures = [simulate.remote(seed) for seed in range(100)]

    `resreq` is the size of an instance, `max_instances` how many there may be, `warmup` how many there are from the
    first call on. `options` are those of each call (run_timeout, max_retries, priority, ...), `session` further
    attributes of the session.
    """
    settings = {"resreq": resreq, "warmup": warmup, "max_instances": max_instances, **(session or {})}

    def decorate(decorated: Callable[P, R]) -> RemoteFunction[P, R]:
        return RemoteFunction(decorated, settings, options)

    return decorate if function is None else decorate(function)


_lock = threading.Lock()
_made: RunnerApplication | None = None
_process = 0


def _application() -> RunnerApplication:
    """The one of all functions of this process."""
    global _made, _process
    with _lock:
        if _made is None or _process != os.getpid():
            _made, _process = RunnerApplication(short_name("functions")), os.getpid()
            Ending(_made.connection, _made.close)
            _made.open()
        return _made

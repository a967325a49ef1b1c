"""A function, a class or an object of this process, served by instances of a cluster."""

from __future__ import annotations

import itertools
import logging
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Unpack

from flame.client.gather import DEFAULT_WINDOW
from flame.client.snapshot import TaskArguments
from flame.client.values import ResourceRequirement, SessionAttributes, short_name
from flame.model.errors import AlreadyExistsError, InvalidArgumentError
from flame.runner.futures import ObjectFuture
from flame.runner.in_process import InProcess, copy_of, fits_here
from flame.runner.lane import Lane
from flame.runner.owners import labels
from flame.runner.payloads import served
from flame.runner.storage import Storage, no_cache
from flame.runner.types import RunnerContext, SessionContext

if TYPE_CHECKING:
    from flame.client.synchronous import Connection

logger = logging.getLogger("flame.runner")


class RemoteCall:
    """Something to call there. `options` are those of its tasks, such as run_timeout or max_retries."""

    def __init__(self, service: RunnerService, method: str | None, options: TaskArguments) -> None:
        self._service = service
        self._method = method
        self._options = options

    def __call__(self, *args: Any, **kwargs: Any) -> ObjectFuture:
        """Make the call."""
        lane = self._service._lane()  # pyright: ignore[reportPrivateUsage]
        return lane.call(self._method, args, kwargs, lane.session.options(**self._options))

    def map(self, *iterables: Iterable[Any], timeout: float | None = None) -> Iterator[Any]:
        """The results of calls with one item of each iterable, in their order. The iterables may be endless: 16,384
        calls are made at once, and others as results are taken; those that have not ended when the iteration does, are
        cancelled. Raises what the first call that failed raised, TimedOutError `timeout` seconds after the call."""
        deadline = None if timeout is None else time.monotonic() + timeout
        calls = (self(*args) for args in zip(*iterables, strict=False))
        results = _in_order(calls, deadline)
        next(results)  # so that closing it does its work even when nobody ever takes a result
        return results

    def options(self, **options: Unpack[TaskArguments]) -> RemoteCall:
        """The same with other options."""
        return RemoteCall(self._service, self._method, {**self._options, **options})


class RunnerService:
    """What `Runner.service` gives. It is called like what it serves, and answers futures.

    Of classes and objects, methods are called: `service.method(...)`. A service with several instances that have a
    state of their own (`instances=N`) is called through `service.at(index)` or `service.keyed(key)`; without, its
    instances take turns.
    """

    def __init__(
        self,
        connection: Connection,
        application: str,
        execution_object: Any,
        autoscale: bool | None = None,
        warmup: int = 0,
        resreq: ResourceRequirement | str | None = None,
        *,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        instances: int | None = None,
        max_instances: int | None = None,
        durable: bool = False,
        cache: str = "",
        **session: Any,
    ) -> None:
        context = RunnerContext(execution_object, None, autoscale, warmup, args, kwargs or {})
        self._stateful = bool(context.stateful) or instances is not None
        if instances is not None:
            if instances < 1:
                raise ValueError(f"instances must be at least 1, not {instances}")
            if autoscale or warmup:
                raise ValueError("give either instances, or autoscale and warmup")
            context.min_instances = context.max_instances = 1
        elif max_instances is not None:
            context.max_instances = min(max_instances, context.max_instances or max_instances)
        self._target = execution_object
        self._methods = _methods_of(execution_object)
        self._turns = itertools.count()
        self.application = application
        chosen = _session_id_of(execution_object)
        name = chosen or short_name(application)
        what = getattr(execution_object, "__qualname__", type(execution_object).__qualname__)
        if durable and not self._stateful:
            raise ValueError("only an object, or instances=N, has a state to be durable")
        if durable and not cache:
            raise no_cache("a durable state")
        pickled = served(context, stateful=self._stateful, durable=durable, name=str(what))
        self._lanes: list[Lane] = []
        session["labels"] = {**labels(), **session.get("labels", {})}
        try:
            for index in range(instances or 1):
                session_id = name if not index else f"{name}-{index}"
                storage = Storage(f"{application}/{session_id}", cache, connection.max_payload)
                if durable:
                    pickled = pickled._replace(home=pickled.home or storage.home())
                attributes = SessionAttributes(
                    application,
                    id=session_id,
                    common_data=storage.common_data(pickled),
                    min_instances=context.min_instances,
                    max_instances=context.max_instances,
                    resreq=resreq,
                    **session,
                )
                opened = _open(connection, attributes, shared=chosen is not None)
                target = None
                if fits_here(attributes) and not durable and chosen is None:  # else others may have a part in it
                    target = (
                        copy_of(pickled.body) if self._stateful else InProcess(execution_object, args, kwargs or {})
                    )
                self._lanes.append(
                    Lane(opened, storage, stateful=self._stateful and not durable, ordered=durable, target=target)
                )
        except BaseException:
            self.close()
            raise

    # --- calling ---------------------------------------------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> ObjectFuture:
        """Call the function, or the object that can be called."""
        if not callable(self._target) or isinstance(self._target, type):
            kind = self._target.__name__ if isinstance(self._target, type) else type(self._target).__name__
            raise TypeError(
                f"a service of {kind} is called by its methods: {', '.join(sorted(self._methods)) or 'none'}"
            )
        return self._lane().call(None, args, kwargs)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_") or name not in self._methods:
            raise AttributeError(f"this service has no method {name!r}")
        return RemoteCall(self, name, {})

    def method(self, name: str) -> RemoteCall:
        """A method of what is served, also one that has the name of something of this object."""
        return RemoteCall(self, name, {})

    def map(self, *iterables: Iterable[Any], timeout: float | None = None) -> Iterator[Any]:
        """The results of calls with one item of each iterable, in their order, as of any RemoteCall."""
        return RemoteCall(self, None, {}).map(*iterables, timeout=timeout)

    def options(self, **options: Unpack[TaskArguments]) -> RemoteCall:
        """The same function with options for its tasks: run_timeout, max_retries, priority, ..."""
        return RemoteCall(self, None, options)

    # --- instances -------------------------------------------------------------------------------------------------

    @property
    def instances(self) -> int:
        """How many instances with a state of their own there are; 1 for others."""
        return len(self._lanes)

    def at(self, index: int) -> RunnerService:
        """This service with calls going to the instance of that index. Raises InvalidArgumentError."""
        if not 0 <= index < len(self._lanes):
            raise InvalidArgumentError(f"this service has instances 0 to {len(self._lanes) - 1}, not {index}")
        return self._of([self._lanes[index]])

    def keyed(self, key: str | bytes | int) -> RunnerService:
        """This service with calls going to the instance that the key always means."""
        data = key if isinstance(key, bytes) else str(key).encode()
        return self.at(zlib.crc32(data) % len(self._lanes))

    def _of(self, lanes: list[Lane]) -> RunnerService:
        view = object.__new__(RunnerService)
        view.__dict__.update(self.__dict__)
        view._lanes = lanes
        return view

    def _lane(self) -> Lane:
        lanes = self._lanes
        return lanes[0] if len(lanes) == 1 else lanes[next(self._turns) % len(lanes)]

    @property
    def session_ids(self) -> list[str]:
        """The sessions that serve it, one per instance with a state of its own."""
        return [lane.session.id for lane in self._lanes]

    def wait(self) -> None:
        """Wait until all calls have ended."""
        for lane in self._lanes:
            lane.wait()

    def close(self) -> None:
        """Close it: calls that have not ended are cancelled, its objects are deleted."""
        for lane in self._lanes:
            lane.close()

    def __repr__(self) -> str:
        return f"<RunnerService {', '.join(self.session_ids)}>"


def _in_order(calls: Iterator[ObjectFuture], deadline: float | None) -> Iterator[Any]:
    """The results of calls, after a first None."""
    futures: deque[ObjectFuture] = deque()
    try:
        futures.extend(itertools.islice(calls, DEFAULT_WINDOW))
        yield None
        while futures:
            yield futures[0].result(None if deadline is None else max(0.0, deadline - time.monotonic()))
            futures.popleft()  # its result may go
            futures.extend(itertools.islice(calls, 1))
    finally:
        for future in futures:
            future.cancel()


def _open(connection: Connection, attributes: SessionAttributes, *, shared: bool) -> Any:
    if not shared:
        return connection.create_session(attributes)
    assert attributes.id is not None
    try:
        return connection.create_session(attributes)
    except AlreadyExistsError:
        return connection.open_session(attributes.id)


def _session_id_of(target: Any) -> str | None:
    context = getattr(target, "_session_context", None)
    if context is None:
        return None
    if not isinstance(context, SessionContext):
        logger.warning("_session_context is a %s and no SessionContext: it is ignored", type(context).__name__)
        return None
    return context.session_id


def _methods_of(target: Any) -> frozenset[str]:
    names = [name for name in dir(target) if not name.startswith("_") and callable(getattr(target, name, None))]
    taken = [name for name in names if name in vars(RunnerService)]
    if taken:
        logger.warning("methods %s are called as service.method(NAME)(...)", ", ".join(taken))
    return frozenset(names)

"""`Runner`: the code in front of the user as an application of a cluster."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

from flame.client.values import ResourceRequirement
from flame.runner.application import RunnerApplication
from flame.runner.endings import Ending
from flame.runner.futures import ObjectFuture, ObjectFutureIterator
from flame.runner.service import RunnerService

if TYPE_CHECKING:
    from flame.client.synchronous import Connection
    from flame.objects.keys import ObjectRef

logger = logging.getLogger("flame.runner")


class Runner:
    """Makes services of functions, classes and objects.

        with Runner("pi") as runner:
            service = runner.service(estimate)
            print(sum(runner.get([service(1000) for _ in range(8)])))

    An application of that name is registered (see flame.runner.code for where it finds the code), or used when it
    exists with the same code. At the end all sessions are closed, whatever still runs in them is cancelled, and the
    application goes with the last Runner that uses it. `dependencies` are further requirements to install, and
    `python_version` the version of Python to use, where the code is installed; `package` is the folder to install in
    place of the working directory. `environments` are further variables of the instances.
    """

    def __init__(
        self,
        name: str,
        fail_if_exists: bool = False,
        dependencies: Sequence[str] | None = None,
        python_version: str | None = None,
        *,
        package: str | os.PathLike[str] | None = None,
        environments: Mapping[str, str] | None = None,
        connection: Connection | None = None,
    ) -> None:
        self.name = name
        self._application = RunnerApplication(
            name,
            dependencies=dependencies or (),
            python_version=python_version,
            package=package,
            environments=environments or {},
            connection=connection,
        )
        self._application.open(fail_if_exists=fail_if_exists)
        self._services: list[RunnerService] = []
        self._ending = Ending(self._application.connection, self._close)

    def service(
        self,
        execution_object: Any,
        autoscale: bool | None = None,
        warmup: int = 0,
        resreq: ResourceRequirement | str | None = None,
        *,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        instances: int | None = None,
        durable: bool = False,
        **session: Any,
    ) -> RunnerService:
        """Serve a function, a class or an object.

        Functions and classes get as many instances as there is work and room for; `warmup` of them from the start, and
        no others without `autoscale`. A class is called once per instance, with `args` and `kwargs`. An object has one
        instance, whose state its calls change. `instances=N` makes that N, each with a state of its own, also of a
        class. When an instance is lost, so is its state, and further calls raise StateLostError; a `durable` state is
        saved in the object cache after each call, and the next instance goes on with it. `session` are further
        attributes of its sessions (SessionAttributes), such as priority or task_defaults.
        Raises ValueError, InvalidArgumentError (it can't be pickled).
        """
        service = self._application.while_there(
            lambda: RunnerService(
                self._application.connection,
                self.name,
                execution_object,
                autoscale,
                warmup,
                resreq,
                args=args,
                kwargs=kwargs,
                instances=instances,
                durable=durable,
                cache=self._application.cache,
                **session,
            )
        )
        self._services.append(service)
        return service

    def get(self, futures: Iterable[ObjectFuture], timeout: float | None = None) -> list[Any]:
        """The values of all, in their order. Raises what the first that failed raised."""
        return [future.get(timeout) for future in futures]

    def ref(self, futures: Iterable[ObjectFuture]) -> list[ObjectRef]:
        """The references of all, in their order."""
        return [future.ref() for future in futures]

    def wait(self, futures: Iterable[ObjectFuture], timeout: float | None = None) -> None:
        """Wait until all have ended, in whatever way."""
        for future in futures:
            future.wait(timeout)

    def select(self, futures: Iterable[ObjectFuture]) -> ObjectFutureIterator:
        """The futures as they end."""
        return ObjectFutureIterator(futures)

    def put_object(self, obj: Any) -> ObjectRef:
        """Put an object where all services of this Runner find it: a reference given to a call becomes the object."""
        return self._application.shared.put(obj)

    def close(self) -> None:
        """Close all services and forget the application. What can't be cleaned up is logged; harmless when repeated."""
        self._ending.close()

    def _close(self) -> None:
        for service in self._services:
            try:
                service.close()
            except Exception as error:
                logger.warning("closing %r failed: %s", service, error)
        self._application.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

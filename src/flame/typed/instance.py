"""The side of the service: `FlameInstance`."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Callable
from typing import Any, TypeVar, get_type_hints

from flame.model.errors import InvalidArgumentError, InvalidStateError
from flame.runner.failures import failure_of
from flame.runner.payloads import dumps
from flame.service.api import FlameService, SessionContext, TaskContext
from flame.service.runtime import run
from flame.typed.context import SharedContext

F = TypeVar("F", bound=Callable[..., Any])
# Annotations that mean more than their class.
_ALSO: dict[type, tuple[type, ...]] = {float: (float, int), complex: (complex, float, int)}


class FlameInstance:
    """A service of one function.

        instance = FlameInstance()

        @instance.entrypoint
        def answer(question: Question) -> Answer: ...

        if __name__ == "__main__":
            instance.run()

    The function takes the request or nothing, may be `async def`, and may use `instance.context()`. When its parameter
    is annotated with a class, other requests are refused.
    """

    def __init__(self) -> None:
        self._entry: Callable[..., Any] | None = None
        self._takes_request = False
        self._wanted: type | None = None
        self._shared: SharedContext | None = None

    def entrypoint(self, function: F) -> F:
        """Serve this function; it is returned as it is. Raises AssertionError for more than one parameter."""
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        parameters = list(inspect.signature(function).parameters.values())
        if len(parameters) > 1 or any(parameter.kind not in kinds for parameter in parameters):
            raise AssertionError("an entrypoint takes the request, as its one positional parameter, or nothing")
        self._entry = function
        self._takes_request = bool(parameters)
        self._wanted = _class_of(function, parameters[0].name) if parameters else None
        return function

    def context(self) -> Any:
        """The session's context as it is now, None when it has none."""
        return None if self._shared is None else self._shared.get()

    def update_context(self, value: Any) -> None:
        """Replace the session's context, for all its instances and its client. Does nothing when it has none.

        Raises InvalidConfigError when there is no object cache.
        """
        if self._shared is not None:
            self._shared.update(value)

    def run(self) -> None:
        """Serve the session that this process was started for. Raises InvalidStateError without an entrypoint, or when
        no executor manager started this process."""
        if self._entry is None:
            raise InvalidStateError("there is nothing to serve", remedy="decorate a function with @instance.entrypoint")
        run(_Async(self) if inspect.iscoroutinefunction(self._entry) else _Plain(self))

    # --- inside ----------------------------------------------------------------------------------------------------

    def enter(self, context: SessionContext) -> None:
        """A session begins."""
        self._shared = SharedContext(context.common_data())

    def leave(self) -> None:
        """It has ended."""
        shared, self._shared = self._shared, None
        if shared is not None:
            shared.close()

    def call(self, data: bytes | None) -> Any:
        """Call the function with a task's input. Raises InvalidArgumentError for one of the wrong type."""
        assert self._entry is not None
        if not self._takes_request:
            return self._entry()
        request = None if data is None else pickle.loads(data)
        if self._wanted is not None and not isinstance(request, _ALSO.get(self._wanted, self._wanted)):
            raise InvalidArgumentError(
                f"the entrypoint takes a {self._wanted.__qualname__}, not a {type(request).__qualname__}"
            )
        return self._entry(request)


class _Plain(FlameService):
    def __init__(self, instance: FlameInstance) -> None:
        self._instance = instance

    def on_session_enter(self, context: SessionContext) -> None:
        self._instance.enter(context)

    def on_task_invoke(self, context: TaskContext) -> bytes | None:
        try:
            return _output(self._instance.call(context.input))
        except Exception as error:
            raise failure_of(error, hidden=2) from None

    def on_session_leave(self) -> None:
        self._instance.leave()


class _Async(FlameService):
    def __init__(self, instance: FlameInstance) -> None:
        self._instance = instance

    def on_session_enter(self, context: SessionContext) -> None:
        self._instance.enter(context)

    async def on_task_invoke(self, context: TaskContext) -> bytes | None:
        try:
            return _output(await self._instance.call(context.input))
        except Exception as error:
            raise failure_of(error, hidden=1) from None

    def on_session_leave(self) -> None:
        self._instance.leave()


def _output(value: Any) -> bytes | None:
    return None if value is None else dumps(value, f"the result, a {type(value).__name__},")


def _class_of(function: Callable[..., Any], parameter: str) -> type | None:
    """The class that a parameter is annotated with, if it is just a class."""
    try:
        hint = get_type_hints(function).get(parameter)
    except Exception:
        return None  # names that exist for type checkers only
    if not isinstance(hint, type):
        return None
    try:
        isinstance(None, hint)
    except TypeError:
        return None  # no class of objects: a protocol or a TypedDict
    return hint

"""Serving sessions of the Runner of `flamepy` 0.6: everything is in the object cache, and pickled by that package.

The session's common data is a reference to the pickle of a RunnerContext, a task's input the pickle of a RunnerRequest,
its output a reference to the result. The state of an object is read before and written after each call.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from flame.model.errors import InvalidArgumentError, InvalidConfigError
from flame.objects.keys import ObjectRef
from flame.runner import bytecode
from flame.runner.pickling import cloudpickle

if TYPE_CHECKING:
    from flame.objects.client import ObjectClient

_AT_ONCE = 8  # arguments that are fetched


class ForeignRunner:
    """What one such session serves. Raises InvalidConfigError when `flamepy` is not installed here."""

    def __init__(self, common_data: bytes, application: str, session_id: str) -> None:
        from flame.objects.client import ObjectClient

        self._ref = ObjectRef.decode(common_data)
        if find_spec("flamepy") is None:
            raise InvalidConfigError(
                "sessions of the Runner of flamepy need that package on the nodes",
                remedy="pip install 'flame-engine[flamepy]' there",
            )
        # The cache of the reference is the one that the client uses.
        self._cache: ObjectClient = ObjectClient(os.environ.get("FLAME_CACHE_ENDPOINT") or self._ref.endpoint)
        self._prefix = f"{application}/{session_id}"
        self._context = self._load()
        target = self._context.execution_object
        self._target = target() if isinstance(target, type) else target

    def _load(self) -> Any:
        return bytecode.loads(self._cache.get(self._ref))

    def call(self, data: bytes) -> tuple[Any, bool]:
        """The result of a call, or something to await for it; and whether a state may have changed."""
        request = bytecode.loads(data)
        if not all(hasattr(request, name) for name in ("method", "args", "kwargs")):
            raise InvalidArgumentError("the input of this task is no call of a Runner")
        if self._context.stateful:
            self._context = self._load()
            self._target = self._context.execution_object
        args, kwargs = self._resolved(list(request.args or ()), dict(request.kwargs or {}))
        function = self._target if request.method is None else getattr(self._target, request.method)
        return function(*args, **kwargs), bool(self._context.stateful)

    def _resolved(self, args: list[Any], kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        values = [*args, *kwargs.values()]
        if any(_referred(value) is not None for value in values):
            with ThreadPoolExecutor(min(_AT_ONCE, len(values))) as pool:
                values = list(pool.map(self._value, values))
        return values[: len(args)], dict(zip(kwargs, values[len(args) :], strict=True))

    def _value(self, value: Any) -> Any:
        ref = _referred(value)
        return value if ref is None else self._cache.get(ref)

    def output(self, value: Any, *, changed: bool) -> bytes:
        """The output of a task with this result."""
        if changed:
            self._context.execution_object = self._target
            self._ref = self._cache.update(self._ref, cloudpickle().dumps(self._context))
        return self._cache.put(self._prefix, value).encode()

    def close(self) -> None:
        """End the connection to the cache."""
        self._cache.close()


def is_reference(data: bytes) -> bool:
    """Whether these are the common data of such a session."""
    try:
        ObjectRef.decode(data)
    except Exception:
        return False
    return True


def _referred(value: Any) -> ObjectRef | None:
    """The reference that an argument is; bytes that read as one are one as well."""
    if type(value).__name__ == "ObjectRef":
        return ObjectRef(value.endpoint, value.key, value.version)
    if type(value) is bytes and is_reference(value):
        return ObjectRef.decode(value)
    return None

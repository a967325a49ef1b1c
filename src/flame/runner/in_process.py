"""What a service serves, called in this process."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

from flame.client.values import ResourceRequirement, SessionAttributes


def fits_here(attributes: SessionAttributes) -> bool:
    """Whether a session asks for nothing that this process might lack: a GPU, certain nodes, a sandbox."""
    asked = attributes.resreq
    needs = ResourceRequirement.from_string(asked) if isinstance(asked, str) else asked
    placed = attributes.selector or attributes.isolation or attributes.limits or attributes.network
    return not placed and not (needs and needs.gpu)


class InProcess:
    """A function, or instances of a class: as many as there are calls at once, each made when a call finds none."""

    def __init__(self, target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self._target = target
        self._arguments = (args, kwargs)
        self._free: list[Any] = []  # appended to and taken from in one step each: threads need no lock

    def __call__(self, method: str | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call it, or its method. Raises what that raises."""
        if not isinstance(self._target, type):
            return _called(self._target, method, args, kwargs)
        try:
            instance = self._free.pop()
        except IndexError:
            arguments, named = self._arguments
            instance = self._target(*arguments, **named)
        try:
            return awaited(_called(instance, method, args, kwargs))
        finally:
            self._free.append(instance)


def copy_of(body: bytes) -> Callable[[str | None, tuple[Any, ...], dict[str, Any]], Any]:
    """What the pickle of a RunnerContext serves, made when it is called first. For one call at a time."""

    @cache
    def made() -> InProcess:
        context = pickle.loads(body)
        return InProcess(context.execution_object, context.args, context.kwargs)

    def call(method: str | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return made()(method, args, kwargs)

    return call


def _called(target: Any, method: str | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return (target if method is None else getattr(target, method))(*args, **kwargs)


def awaited(made: Any) -> Any:
    """A value, or what an awaitable comes to: in a thread of its own, since this one may run a loop."""
    if not hasattr(made, "__await__"):
        return made
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, _wait(made)).result()


async def _wait(awaitable: Awaitable[Any]) -> Any:
    return await awaitable

"""Local Python code as remote services: Runner, Executor, remote functions.

Names are loaded when they are first used: instances load this package too, and need little of it.
"""

from __future__ import annotations

TYPE_CHECKING = False  # like typing's, without its import
if TYPE_CHECKING:
    from typing import Any

    from flame.runner.failures import StateLostError
    from flame.runner.futures import ObjectFuture, ObjectFutureIterator
    from flame.runner.runner import Runner
    from flame.runner.runpy import FlameRunpyService
    from flame.runner.service import RunnerService
    from flame.runner.types import RunnerContext, RunnerRequest, SessionContext

__all__ = [
    "FlameRunpyService",
    "ObjectFuture",
    "ObjectFutureIterator",
    "Runner",
    "RunnerContext",
    "RunnerRequest",
    "RunnerService",
    "SessionContext",
    "StateLostError",
]

_SOURCES = {
    "failures": "StateLostError",
    "futures": "ObjectFuture ObjectFutureIterator",
    "runner": "Runner",
    "runpy": "FlameRunpyService",
    "service": "RunnerService",
    "types": "RunnerContext RunnerRequest SessionContext",
}
_SOURCE_OF = {name: module for module, names in _SOURCES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    module = _SOURCE_OF.get(name)
    if module is None:
        raise AttributeError(f"module 'flame.runner' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"flame.runner.{module}"), name)
    return value

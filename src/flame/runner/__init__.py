"""Local Python code as remote services: Runner, Executor, remote functions.

Names are loaded when they are first used: instances load this package too, and need little of it.
"""

from __future__ import annotations

TYPE_CHECKING = False  # like typing's, without its import
if TYPE_CHECKING:
    from typing import Any

    from flame.runner.bars import progress
    from flame.runner.executor import Executor
    from flame.runner.failures import StateLostError
    from flame.runner.functions import RemoteFunction, function
    from flame.runner.futures import ObjectFuture, ObjectFutureIterator
    from flame.runner.inspecting import ErrorType, RunnerError, get_data
    from flame.runner.joblib import register_joblib
    from flame.runner.runner import Runner
    from flame.runner.runpy import FlameRunpyService
    from flame.runner.service import RunnerService
    from flame.runner.types import RunnerContext, RunnerRequest, SessionContext

__all__ = [
    "ErrorType",
    "Executor",
    "FlameRunpyService",
    "ObjectFuture",
    "ObjectFutureIterator",
    "RemoteFunction",
    "Runner",
    "RunnerContext",
    "RunnerError",
    "RunnerRequest",
    "RunnerService",
    "SessionContext",
    "StateLostError",
    "function",
    "get_data",
    "progress",
    "register_joblib",
]

# Where each name comes from; a test asks for all of them.
_SOURCES = {
    "executor": "Executor",
    "failures": "StateLostError",
    "functions": "RemoteFunction function",
    "futures": "ObjectFuture ObjectFutureIterator",
    "inspecting": "ErrorType RunnerError get_data",
    "joblib": "register_joblib",
    "bars": "progress",
    "runner": "Runner",
    "runpy": "FlameRunpyService",
    "service": "RunnerService",
    "types": "RunnerContext RunnerRequest SessionContext",
}
_SOURCE_OF = {name: f"flame.runner.{module}" for module, names in _SOURCES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    module = _SOURCE_OF.get(name)
    if module is None:
        raise AttributeError(f"module 'flame.runner' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(module), name)
    return value

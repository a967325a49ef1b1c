"""The SDK for services: derive from `FlameService` and give an object of it to `run`."""

from flame.service.api import (
    ApplicationContext,
    FlameService,
    GangContext,
    SessionContext,
    TaskCancelled,
    TaskContext,
    TaskFailure,
)
from flame.service.runtime import run

__all__ = [
    "ApplicationContext",
    "FlameService",
    "GangContext",
    "SessionContext",
    "TaskCancelled",
    "TaskContext",
    "TaskFailure",
    "run",
]


def __getattr__(name: str) -> object:
    # They stand on the client as well, which instances do not load.
    if name in ("FlameInstance", "Session"):
        from importlib import import_module

        return getattr(import_module("flame.typed"), name)
    raise AttributeError(f"module 'flame.service' has no attribute {name!r}")

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

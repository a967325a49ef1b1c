"""The SDK for services: derive from `FlameService` and give an object of it to `run`."""

from flame.service.api import ApplicationContext, FlameService, SessionContext, TaskCancelled, TaskContext
from flame.service.runtime import run

__all__ = ["ApplicationContext", "FlameService", "SessionContext", "TaskCancelled", "TaskContext", "run"]

"""The state machines of sessions, tasks, executors, nodes and applications, as one pure function of events."""

from flame.engine.engine import Engine, EngineSettings

__all__ = ["Engine", "EngineSettings"]

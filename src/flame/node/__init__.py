"""The executor manager: one per node, runs executors for the session manager."""

from flame.node.manager import ExecutorManager
from flame.node.settings import NodeSettings

__all__ = ["ExecutorManager", "NodeSettings"]

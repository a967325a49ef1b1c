"""Flame for asyncio: `connection = await flame.aio.connect()`."""

from flame.client.asynchronous import AsyncConnection, AsyncSession, as_completed, connect
from flame.client.futures import TaskFuture

__all__ = ["AsyncConnection", "AsyncSession", "TaskFuture", "as_completed", "connect"]

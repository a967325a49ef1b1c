"""Flame for asyncio: `connection = await flame.aio.connect()`."""

from flame.client.async_connection import AsyncConnection, connect
from flame.client.async_session import AsyncSession, as_completed
from flame.client.futures import TaskFuture

__all__ = ["AsyncConnection", "AsyncSession", "TaskFuture", "as_completed", "connect"]

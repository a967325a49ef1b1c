"""Flame for asyncio: `connection = await flame.aio.connect()`, `sandbox = await flame.aio.AsyncSandbox.create()`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flame.client.async_connection import AsyncConnection, connect
from flame.client.async_session import AsyncSession, as_completed
from flame.client.futures import TaskFuture

if TYPE_CHECKING:
    from flame.sandbox import AsyncSandbox

__all__ = ["AsyncConnection", "AsyncSandbox", "AsyncSession", "TaskFuture", "as_completed", "connect"]


def __getattr__(name: str) -> object:
    if name == "AsyncSandbox":
        from flame.sandbox import AsyncSandbox

        return AsyncSandbox
    raise AttributeError(f"module 'flame.aio' has no attribute {name!r}")

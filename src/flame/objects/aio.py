"""The client of objects for asyncio: the same calls, each in a worker thread while the loop goes on."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterable
from typing import Any, Self

from flame.config import TlsConfig
from flame.objects.client import Deserializer, ObjectClient
from flame.objects.held import DEFAULT_BYTES
from flame.objects.keys import ObjectRef
from flame.objects.messages import CacheStatus, ObjectInfo


class AsyncObjectClient:
    """ObjectClient with coroutines."""

    def __init__(
        self, endpoint: str | None = None, *, tls: TlsConfig | None = None, cache_bytes: int = DEFAULT_BYTES
    ) -> None:
        self._client = ObjectClient(endpoint, tls=tls, cache_bytes=cache_bytes)
        self.endpoint = self._client.endpoint

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """See ObjectClient.close."""
        await asyncio.to_thread(self._client.close)

    async def put(
        self, key_or_prefix: str, value: Any, *, expected: int | None = None, ttl: float | None = None, tenant: str = ""
    ) -> ObjectRef:
        """See ObjectClient.put."""
        return await asyncio.to_thread(
            self._client.put, key_or_prefix, value, expected=expected, ttl=ttl, tenant=tenant
        )

    async def update(
        self, ref: ObjectRef, value: Any, *, expected: int | None = None, ttl: float | None = None
    ) -> ObjectRef:
        """See ObjectClient.update."""
        return await asyncio.to_thread(self._client.update, ref, value, expected=expected, ttl=ttl)

    async def patch(self, ref: ObjectRef, delta: Any, *, expected: int | None = None) -> ObjectRef:
        """See ObjectClient.patch."""
        return await asyncio.to_thread(self._client.patch, ref, delta, expected=expected)

    async def get(self, ref: ObjectRef, deserializer: Deserializer | None = None) -> Any:
        """See ObjectClient.get."""
        return await asyncio.to_thread(self._client.get, ref, deserializer)

    async def upload(self, key_or_prefix: str, path: str | os.PathLike[str], *, ttl: float | None = None) -> ObjectRef:
        """See ObjectClient.upload."""
        return await asyncio.to_thread(self._client.upload, key_or_prefix, path, ttl=ttl)

    async def download(self, ref: ObjectRef, path: str | os.PathLike[str]) -> None:
        """See ObjectClient.download."""
        await asyncio.to_thread(self._client.download, ref, path)

    async def delete(self, target: ObjectRef | str) -> None:
        """See ObjectClient.delete."""
        await asyncio.to_thread(self._client.delete, target)

    async def delete_many(self, refs: Iterable[ObjectRef]) -> None:
        """See ObjectClient.delete_many."""
        await asyncio.to_thread(self._client.delete_many, refs)

    async def exists(self, target: ObjectRef | str) -> ObjectInfo | None:
        """See ObjectClient.exists."""
        return await asyncio.to_thread(self._client.exists, target)

    async def list(self, prefix: str, *, page: int = 1000) -> AsyncIterator[ObjectInfo]:
        """See ObjectClient.list."""
        infos = self._client.list(prefix, page=page)
        while (info := await asyncio.to_thread(next, infos, None)) is not None:
            yield info

    async def expire(self, target: ObjectRef | str, after: float | None) -> None:
        """See ObjectClient.expire."""
        await asyncio.to_thread(self._client.expire, target, after)

    async def end_session(self, prefix: str, after: float | None = None) -> None:
        """See ObjectClient.end_session."""
        await asyncio.to_thread(self._client.end_session, prefix, after)

    async def status(self) -> CacheStatus:
        """See ObjectClient.status."""
        return await asyncio.to_thread(self._client.status)

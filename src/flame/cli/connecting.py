"""Which cluster a command means, and the connection to it."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator

from flame.cli.options import Settings
from flame.config import load_context
from flame.link import Link, connect, parse
from flame.proto import link_pb2


class LinkCaller:
    """A link that calls are made on."""

    def __init__(self, link: Link) -> None:
        self._link = link

    async def call(self, method: str, request: bytes, *, timeout: float | None = None) -> bytes:
        return await self._link.call(method, request, timeout=timeout)

    def stream(self, method: str, request: bytes) -> AsyncIterator[bytes]:
        return self._link.stream(method, request)

    async def close(self) -> None:
        self._link.close()
        await self._link.wait_closed()


async def open_caller(settings: Settings) -> LinkCaller:
    """Connect to the cluster of --endpoint, of the context and environment, or to the local one. Raises FlameError."""
    endpoint = settings.endpoint
    if endpoint is None:
        context = load_context(settings.config, context=settings.context)
        endpoint = context.endpoint
    if endpoint is None:
        from flame.local import default_endpoint

        endpoint = default_endpoint()
    hello = link_pb2.Hello(role="client", id=f"cli-{secrets.token_hex(8)}", software="flmctl")
    link = await connect(parse(endpoint), hello, timeout=settings.timeout, on_frames=_ignore, on_closed=_ignore)
    return LinkCaller(link)


def _ignore(*_: object) -> None:
    """No sessions are attached: nothing comes unasked."""

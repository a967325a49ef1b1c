"""Which cluster a command means, and the connection to it."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from flame.cli.options import Settings
from flame.client.endpoints import Dialer, Endpoint, parse_endpoint
from flame.client.values import FlameClientTls
from flame.config import TlsConfig, load_context
from flame.link import Link

if TYPE_CHECKING:
    from flame.client.synchronous import Connection


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
    """Connect for calls only. Raises FlameError."""
    dialer = Dialer(find_endpoint(settings), f"cli-{os.urandom(8).hex()}")
    # No session is attached to this link: nothing comes unasked, and who waits for a call hears of its end.
    return LinkCaller(await dialer.dial(settings.timeout, _ignore, _ignore))


def open_connection(settings: Settings) -> Connection:
    """Connect with the SDK, for tasks. Raises FlameError."""
    from flame.client.synchronous import Connection

    endpoint = find_endpoint(settings, announce=False)
    return Connection.connect(endpoint.text, endpoint.tls)


def find_endpoint(settings: Settings, *, announce: bool = True) -> Endpoint:
    """The cluster of --endpoint, of the context or the environment, or the local one, started when there is none.

    `announce`: say when a cluster was started that will end with this command.
    """
    context = load_context(settings.config, context=settings.context)
    address, tls = settings.endpoint or context.endpoint, _client_tls(context.tls)
    if address is not None:
        return parse_endpoint(address, tls)
    from flame.local import Cluster, find_or_start

    local = find_or_start()
    if announce and isinstance(local, Cluster):
        print(
            "note: no cluster was running; this one ends with the command (flmadm up --detach starts one that stays)",
            file=sys.stderr,
        )
    return parse_endpoint(local.endpoint)


def _client_tls(tls: TlsConfig | None) -> FlameClientTls | None:
    if tls is None:
        return None
    return FlameClientTls(
        **{
            name: str(file)
            for name, file in (("ca_file", tls.ca_file), ("cert_file", tls.cert_file), ("key_file", tls.key_file))
            if file is not None
        }
    )


def _ignore(*_: object) -> None:
    pass

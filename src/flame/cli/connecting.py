"""Which cluster a command means, and the connection to it."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, NamedTuple

from flame.cli.options import Settings
from flame.config import TlsConfig, load_context

if TYPE_CHECKING:
    from flame.client.endpoints import Endpoint
    from flame.client.synchronous import Connection
    from flame.client.values import FlameClientTls
    from flame.link import Link
    from flame.local import Cluster
    from flame.local.registry import ClusterRecord


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
    where = find_cluster(settings)
    from flame.client.endpoints import Dialer

    dialer = Dialer(where.endpoint(), f"cli-{os.urandom(8).hex()}")
    # No session is attached to this link: nothing comes unasked, and who waits for a call hears of its end.
    return LinkCaller(await dialer.dial(settings.timeout, _ignore, _ignore))


def open_connection(settings: Settings) -> Connection:
    """Connect with the SDK, for tasks. Raises FlameError."""
    where = find_cluster(settings, announce=False)
    # While a new cluster starts: both take about as long.
    from flame.client.synchronous import Connection

    endpoint = where.endpoint()
    return Connection.connect(endpoint.text, endpoint.tls)


class Where(NamedTuple):
    """The cluster that is meant: an address, or a local cluster that may still be starting."""

    address: str | None
    tls: TlsConfig | None
    local: Cluster | ClusterRecord | None

    def endpoint(self) -> Endpoint:
        """Wait for the local cluster if need be. Raises FlameError."""
        from flame.client.endpoints import parse_endpoint

        address = self.local.endpoint if self.local is not None else self.address or ""
        return parse_endpoint(address, _client_tls(self.tls))


def find_cluster(settings: Settings, *, announce: bool = True) -> Where:
    """The cluster of --endpoint, of the context or the environment, or the local one, started when there is none.

    `announce`: say when a cluster was started that will end with this command. Raises UnavailableError when there is
    none and the settings forbid to start one.
    """
    context = load_context(settings.config, context=settings.context)
    address = settings.endpoint or context.endpoint
    if address is not None:
        return Where(address, context.tls, None)
    if not settings.start:
        return Where(None, None, _running())
    from flame.local import Cluster, find_or_start
    from flame.local.registry import running

    local = find_or_start()
    if announce and isinstance(local, Cluster):
        print(
            "note: no cluster was running; this one ends with the command (flmadm up --detach starts one that stays)",
            file=sys.stderr,
        )
        others = [record.name for record in running() if not record.anonymous]
        if others:
            names = ", ".join(others)
            print(f"note: under other names run: {names} (used with FLAME_CLUSTER=NAME)", file=sys.stderr)
    return Where(None, None, local)


def _running() -> ClusterRecord:
    from flame.local.cluster import DEFAULT_NAME
    from flame.local.registry import find
    from flame.model.errors import UnavailableError

    name = os.environ.get("FLAME_CLUSTER") or DEFAULT_NAME
    record = find(name)
    if record is None:
        raise UnavailableError(f"the local cluster {name!r} is not running")
    return record


def _client_tls(tls: TlsConfig | None) -> FlameClientTls | None:
    if tls is None:
        return None
    from flame.client.values import FlameClientTls

    return FlameClientTls(
        **{
            name: str(file)
            for name, file in (("ca_file", tls.ca_file), ("cert_file", tls.cert_file), ("key_file", tls.key_file))
            if file is not None
        }
    )


def _ignore(*_: object) -> None:
    pass

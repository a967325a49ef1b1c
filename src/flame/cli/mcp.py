"""flame-mcp: sandboxes as tools of whatever speaks MCP."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from flame._version import __version__
from flame.cli.bounds import SECONDS, Bounded, whole
from flame.cli.options import Settings, settings_of, where_options
from flame.cli.program import run
from flame.cli.session_options import isolation_option, limit_option, limit_texts, memory_option, network_option
from flame.model.errors import InvalidConfigError

if TYPE_CHECKING:
    from flame.agents.clients import Clients
    from flame.agents.door import Rules
    from flame.client.async_connection import AsyncConnection
    from flame.model.isolation import Limits
    from flame.sandbox import AsyncSandbox

TOKEN = "FLAME_MCP_TOKEN"
_LEAVE_S = 2  # for requests that are still served when the server ends


@dataclass(frozen=True)
class Kind:
    """The sandboxes that clients get. Times in seconds; `limit` in characters of an answer."""

    isolation: str
    network: str
    limits: Limits | None
    idle_timeout: float
    timeout: float
    limit: int
    most: int


@click.command()
@click.option("--http", is_flag=True, help="Serve streamable HTTP; without it, one client over stdin and stdout.")
@click.option("--host", default="127.0.0.1", metavar="ADDRESS", help="Where HTTP listens (127.0.0.1).")
@click.option("--port", type=whole(0, 65535), metavar="N", default=8765, help="The port (8765); 0 is any that is free.")
@click.option("--allowed-host", "hosts", multiple=True, metavar="NAME", help="A name that clients may ask for it by.")
@click.option("--allowed-origin", "origins", multiple=True, metavar="URL", help="A web page that may use it.")
@click.option("--insecure", is_flag=True, help="Beyond loopback without a token: whoever reaches it runs code.")
@isolation_option("process", "process")
@network_option("none; host at isolation none")
@limit_option
@memory_option
@click.option(
    "--idle-timeout",
    type=Bounded(click.FloatRange(min=1)),
    default=600.0,
    metavar="SECONDS",
    help="A sandbox is closed when nothing was asked of it for so long (600).",
)
@click.option(
    "--timeout",
    type=SECONDS,
    default=120.0,
    metavar="SECONDS",
    help="How long one call of a client may take (120).",
)
@click.option("--max-output", type=whole(1000), default=20_000, metavar="N", help="Characters of one answer (20000).")
@click.option("--max-sandboxes", type=whole(1), default=16, metavar="N", help="Open at once (16).")
@where_options
@click.version_option(__version__, prog_name="flame-mcp", message="%(prog)s %(version)s")
@click.pass_context
def flame_mcp(
    ctx: click.Context,
    http: bool,
    host: str,
    port: int,
    hosts: tuple[str, ...],
    origins: tuple[str, ...],
    insecure: bool,
    isolation: str,
    network: str | None,
    memory: str | None,
    limits: tuple[str, ...],
    idle_timeout: float,
    timeout: float,
    max_output: int,
    max_sandboxes: int,
) -> int:
    """Serve the Model Context Protocol: tools to run code, commands and files in a sandbox.

    Each client has a sandbox of its own, made at its first call and closed when it ends. Over HTTP, clients show the
    token of $FLAME_MCP_TOKEN, if it is set, as `Authorization: Bearer TOKEN`; there is no TLS, a proxy does that.
    """
    from flame.agents.clients import Clients
    from flame.agents.door import rules
    from flame.cli.sandboxes import network_of
    from flame.model.isolation import NO_LIMITS, check, parse_limits

    allowed = parse_limits(limit_texts(limits, memory)) if memory or limits else None
    kind = Kind(
        isolation, network_of(isolation, network), allowed, idle_timeout, timeout, max_output, max_sandboxes
    )  # fmt: skip
    check(isolation, allowed or NO_LIMITS, kind.network)
    maker = _Maker(settings_of(ctx), kind)
    clients = Clients(maker.create, idle=idle_timeout, most=max_sandboxes, timeout=timeout, limit=max_output)
    if not http:
        return asyncio.run(_serve_stdio(clients))
    who = rules(host, token=os.environ.get(TOKEN, ""), insecure=insecure, hosts=hosts, origins=origins)
    return asyncio.run(_serve_http(clients, who, host, port, idle_timeout))


class _Maker:
    """Makes sandboxes, on one connection that is made for the first."""

    def __init__(self, settings: Settings, kind: Kind) -> None:
        self._settings = settings
        self._kind = kind
        self._lock = asyncio.Lock()
        self._connection: AsyncConnection | None = None

    async def create(self) -> AsyncSandbox:
        from flame.sandbox import AsyncSandbox

        async with self._lock:
            if self._connection is None:
                self._connection = await self._connect()
        kind = self._kind
        return await AsyncSandbox.create(
            isolation=kind.isolation,
            network=kind.network,
            limits=kind.limits,
            idle_timeout=kind.idle_timeout * 2,  # should this program be killed
            connection=self._connection,
        )

    async def _connect(self) -> AsyncConnection:
        from flame.cli.connecting import find_cluster
        from flame.client.async_connection import connect

        # In a thread: it may start a cluster and wait for it.
        where = await asyncio.to_thread(lambda: find_cluster(self._settings, announce=False).endpoint())
        return await connect(where.text, where.tls)


async def _serve_stdio(clients: Clients) -> int:
    from flame.agents.mcp import make_server

    ending: list[asyncio.Task[None]] = []

    async def end(number: int) -> None:
        await clients.close_all()
        # Not in the ordinary way: a thread waits for stdin, and nothing but its end wakes it.
        os._exit(128 + number)

    loop = asyncio.get_running_loop()

    def on_signal(number: int) -> None:
        if not ending:
            ending.append(loop.create_task(end(number)))

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, on_signal, number)
    await make_server(clients).run_stdio_async()
    await clients.close_all()  # a client that loses patience sends a signal while they are closed
    return 0


async def _serve_http(clients: Clients, who: Rules, host: str, port: int, idle: float) -> int:
    import uvicorn

    from flame.agents.door import Door
    from flame.agents.mcp import http_app, make_server, session_key

    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.create_server(address, family=family)
    except OSError as error:
        raise InvalidConfigError(f"can't listen at {host} port {port}: {error.strerror or error}") from None
    app = http_app(make_server(clients), clients, idle)
    door: Any = Door(app, who, lambda session: clients.close(session_key(session)))
    config = uvicorn.Config(
        door, log_level="warning", lifespan="on", timeout_graceful_shutdown=_LEAVE_S, server_header=False
    )
    shown = f"[{host}]" if ":" in host else host
    print(f"flame-mcp listens at http://{shown}:{listener.getsockname()[1]}/mcp", file=sys.stderr, flush=True)
    await uvicorn.Server(config).serve([listener])
    return 0


def main() -> None:
    """The console script."""
    sys.exit(run(flame_mcp, "flame-mcp"))

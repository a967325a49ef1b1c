"""HTTP for probes, Prometheus and people who look: is the manager alive, is it ready, what does it count.

It only reads. aiohttp and prometheus_client are imported when the first connection comes, in a thread: a manager that
nobody asks does not pay for them, and one that is busy goes on meanwhile.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, cast

from flame.link import Address, PeerInfo
from flame.link.connection import HELLO_TIMEOUT
from flame.link.peer import peer_of
from flame.manager.metrics import Metrics
from flame.model.errors import FlameError, InvalidConfigError

if TYPE_CHECKING:
    from aiohttp import web

_log = logging.getLogger("flame.manager")

KEEP_ALIVE_S = 75.0
CLOSE_S = 1.0
_TEXT = "text/plain; charset=utf-8"


class Answer(NamedTuple):
    """What one request gets."""

    status: int
    text: bytes
    content_type: str = _TEXT


class Path(NamedTuple):
    """What a path is for, and the name of the call in the table of roles."""

    what: str
    call: str


PATHS = {
    "/": Path("this page", "Health"),
    "/healthz": Path("200 while the process is alive", "Health"),
    "/readyz": Path("200 while work is accepted, else 503 with the reason", "Health"),
    "/metrics": Path("metrics in the text formats of Prometheus and OpenMetrics", "Metrics"),
}
INDEX = "Flame session manager\n\n" + "".join(f"{path:<10}{what}\n" for path, (what, _) in PATHS.items())


class HttpServer:
    """One listener. The functions that it is given say who may ask, and what is true now."""

    def __init__(self, admit: Callable[[PeerInfo, str], None], unready: Callable[[], str], metrics: Metrics) -> None:
        """`admit(peer, call)` raises a FlameError for peers that may not; `unready()` says why no work is accepted,
        empty when it is."""
        self._admit = admit
        self._unready = unready
        self._metrics = metrics
        self._listener: asyncio.Server | None = None
        self._web: web.Server | None = None
        self._arriving: set[asyncio.Task[None]] = set()
        self.address = Address()
        """Where it listens, with the real port; known after `start`."""

    async def start(self, address: Address, context: ssl.SSLContext | None) -> None:
        """Listen; with TLS only to those who show a certificate. Raises InvalidConfigError."""
        if address.unix:
            raise InvalidConfigError(f"can't serve HTTP at {address}", remedy="write host:port")
        if context is not None:
            context.verify_mode = ssl.CERT_REQUIRED
        loop = asyncio.get_running_loop()
        patience = HELLO_TIMEOUT if context is not None else None
        try:
            self._listener = await loop.create_server(
                self._protocol, address.host, address.port, ssl=context, ssl_handshake_timeout=patience
            )
        except OSError as error:
            raise InvalidConfigError(f"can't listen at {address}: {error.strerror or error}") from error
        self.address = address._replace(port=self._listener.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Listen no more and end all connections; requests under way get a moment."""
        if self._listener is None:
            return
        self._listener.close()
        for task in self._arriving:
            task.cancel()
        if self._web is not None:
            await self._web.shutdown(CLOSE_S)
        await self._listener.wait_closed()

    # --- connections -------------------------------------------------------------------------------------------------

    def _protocol(self) -> asyncio.BaseProtocol:
        return self._web() if self._web is not None else _Doorstep(self._arrived)

    def _arrived(self, doorstep: _Doorstep) -> None:
        task = asyncio.get_running_loop().create_task(self._let_in(doorstep))
        self._arriving.add(task)
        task.add_done_callback(self._arriving.discard)

    async def _let_in(self, doorstep: _Doorstep) -> None:
        """Import what serves the connection, then give it over."""
        try:
            for package in ("aiohttp.web", "prometheus_client"):
                await asyncio.to_thread(importlib.import_module, package)
            if self._web is None:
                from aiohttp import web

                self._web = web.Server(self._handle, access_log=None, keepalive_timeout=KEEP_ALIVE_S)
        except BaseException:
            doorstep.transport.abort()
            raise
        doorstep.give_over(self._web())

    # --- requests ----------------------------------------------------------------------------------------------------

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        from aiohttp import web

        began = asyncio.get_running_loop().time()
        await asyncio.sleep(0)
        lag = asyncio.get_running_loop().time() - began
        headers = {"Cache-Control": "no-store"}
        if request.method not in ("GET", "HEAD"):
            answer = Answer(405, f"{request.method} is not served, only GET and HEAD are\n".encode())
            headers["Allow"] = "GET, HEAD"
        elif request.transport is None:
            answer = Answer(400, b"the connection is gone\n")
        else:
            answer = self._answer(request.path, request.headers.get("Accept", ""), peer_of(request.transport), lag)
        headers["Content-Type"] = answer.content_type
        return web.Response(status=answer.status, body=answer.text, headers=headers)

    def _answer(self, path: str, accept: str, peer: PeerInfo, lag: float) -> Answer:
        served = PATHS.get(path)
        if served is None:
            return Answer(404, f"there is no {path!r} here\n\n{INDEX}".encode())
        try:
            self._admit(peer, served.call)
        except FlameError as error:
            return Answer(403, f"{error.message}{'; ' if error.remedy else ''}{error.remedy}\n".encode())
        if path == "/metrics":
            return Answer(200, *self._metrics.render(accept, lag))
        if path == "/readyz":
            reason = self._unready()
            return Answer(503, f"not ready: {reason}\n".encode()) if reason else Answer(200, b"ready\n")
        return Answer(200, b"alive\n" if path == "/healthz" else INDEX.encode())


class _Doorstep(asyncio.Protocol):
    """A connection that waits for its real protocol. It reads once: what came then is handed over."""

    def __init__(self, arrived: Callable[[_Doorstep], None]) -> None:
        self._arrived = arrived
        self._received = b""
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are asyncio.Transports in all but inheritance.
        self.transport = cast(asyncio.Transport, transport)
        self._arrived(self)

    def data_received(self, data: bytes) -> None:
        self._received += data
        self.transport.pause_reading()

    def give_over(self, protocol: asyncio.Protocol) -> None:
        """The connection is the other's from now on."""
        if self.transport.is_closing():
            return
        self.transport.set_protocol(protocol)
        protocol.connection_made(self.transport)
        if self._received:
            protocol.data_received(self._received)
            self.transport.resume_reading()

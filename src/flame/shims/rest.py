"""The rest shim: an instance is an HTTP server of the user's, on this machine.

It finds two places to listen at, PORT (on 127.0.0.1) and FLAME_REST_SOCKET (a unix socket's path), and takes the one it
likes; nothing else is ever contacted. Its readiness has no event to wait for when it takes the port: it is asked.
"""

from __future__ import annotations

import asyncio
import importlib
import signal
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from flame.model.errors import InvalidArgumentError
from flame.model.states import BindCode
from flame.shims.processes import Process, describe_status
from flame.shims.reception import Reception
from flame.shims.rest_dialect import NOT_THERE, Pages, RestDialect, describe
from flame.shims.shim import BindError, Launch, Owner
from flame.shims.stdio import concurrency_of, label_values
from flame.shims.workplace import Workplace, Workshop, in_words

if TYPE_CHECKING:
    import aiohttp

_HOST = "127.0.0.1"
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.005, 0.2
# Servers hang up connections that rest for some seconds; a request that meets this would look like a lost instance.
_REST_S = 1.0
_CONCURRENCY = "X-Flame-Concurrency"


class RestOptions(msgspec.Struct, frozen=True):
    """What an application's labels say. `concurrency` None = what the service says, else one task at a time."""

    pages: Pages
    concurrency: int | None = None


def options_of(labels: Iterable[str]) -> RestOptions:
    """Reads `rest-ready=/PATH`, `rest-invoke=/PATH`, `concurrency=N`. Raises InvalidArgumentError."""
    values = label_values(labels)
    pages = Pages(values.get("rest-ready", "/healthz"), values.get("rest-invoke", "/invoke"))
    for name, path in (("ready", pages.ready), ("invoke", pages.invoke)):
        if not path.startswith("/") or path.startswith("//"):  # the second would name another host
            raise InvalidArgumentError(
                f"the label rest-{name}={path} is no path", remedy="write one that begins with /"
            )
    wanted = values.get("concurrency")
    return RestOptions(pages, concurrency_of(wanted) if wanted is not None else None)


class RestShim:
    """Starts HTTP servers and sends them tasks."""

    def __init__(self, workshop: Workshop, reception: Reception) -> None:
        self._workshop = workshop
        self._reception = reception
        self._number = 0
        self._ports: set[int] = set()  # promised to instances that live

    async def prepare(self, launch: Launch) -> Launch:
        """Install the application's package if it is not there yet. Raises BindError with code 10."""
        return await self._workshop.prepare(launch)

    async def start(self, launch: Launch, owner: Owner) -> RestInstance:
        """Start the application's command. Raises BindError with code 11."""
        try:
            options = options_of(launch.application.labels)
        except InvalidArgumentError as error:
            raise BindError(BindCode.START, in_words(error)) from None
        # The import takes longer than starting an instance: not in the event loop.
        await asyncio.to_thread(importlib.import_module, "aiohttp")
        place = await self._workshop.open(launch)
        self._number += 1
        path = self._reception.folder / f"r{self._number:x}.sock"
        port = self._free_port()
        instance = RestInstance(place, owner, options, path, port, self._reception)
        try:
            await instance.start()
        except BaseException:
            await instance.dispose()
            raise
        finally:
            instance.gone.add_done_callback(lambda _: self._ports.discard(port))
        return instance

    def _free_port(self) -> int:
        while True:
            with socket.socket() as probe:
                probe.bind((_HOST, 0))
                port = probe.getsockname()[1]
            if port not in self._ports:
                self._ports.add(port)
                return port


class RestInstance:
    """One server process. `gone` is done when it was disposed of."""

    def __init__(
        self, place: Workplace, owner: Owner, options: RestOptions, path: Path, port: int, reception: Reception
    ) -> None:
        loop = asyncio.get_running_loop()
        self.pid = 0
        self.ended: asyncio.Future[str] = loop.create_future()
        self.gone: asyncio.Future[None] = loop.create_future()
        self._place = place
        self._owner = owner
        self._options = options
        self._path = path
        self._port = port
        self._reception = reception
        self._http: aiohttp.ClientSession | None = None
        self._over_socket = False
        self._dialect: RestDialect | None = None
        self._process: Process | None = None
        launch = place.launch
        _, self._file = reception.expect(launch.executor_id, launch.token, path)

    async def start(self) -> None:
        """Start the process. Raises BindError."""
        found = self._place.program
        env = self._place.variables(PORT=str(self._port), FLAME_REST_SOCKET=str(self._path))
        self._process = await self._place.start(msgspec.structs.replace(found, env=env))
        self.pid = self._process.pid
        self._process.ended.add_done_callback(self._on_exit)

    async def ready(self) -> RestDialect:
        """Ask until it answers that it is ready. Raises BindError (11) when it ends before or talks nonsense."""
        asking = asyncio.ensure_future(self._ask())
        try:
            await asyncio.wait({asking, self.ended}, return_when=asyncio.FIRST_COMPLETED)
            if asking.done():
                self._dialect = asking.result()
                return self._dialect
        finally:
            asking.cancel()
            await asyncio.wait({asking})
        raise BindError(BindCode.START, f"the instance {self.ended.result()} before it was ready{self.last_words()}")

    def entered(self) -> None:
        pass

    def last_words(self) -> str:
        return self._place.last_words()

    def terminate(self) -> None:
        if self._process is not None:
            self._process.signal(signal.SIGTERM)

    def kill(self) -> None:
        if self._process is not None:
            self._process.signal(signal.SIGKILL)

    async def dispose(self) -> None:
        """Close its connections and its log, remove its socket and its folder."""
        self._reception.forget(self._place.launch.executor_id, self._path)
        if self._dialect is not None:
            self._dialect.close()
        if self._http is not None:
            await self._http.close()
        self._path.unlink(missing_ok=True)
        await self._place.close()
        self.gone.set_result(None)

    async def _ask(self) -> RestDialect:
        """Raises BindError when what answers is no HTTP server."""
        import aiohttp

        pause = _FIRST_PAUSE_S
        while True:
            http = await self._client()
            try:
                async with http.get(self._options.pages.ready, allow_redirects=False) as response:
                    status, said = response.status, response.headers.get(_CONCURRENCY)
            except aiohttp.ClientConnectionError:
                pass  # nobody listens yet
            except aiohttp.ClientError as error:
                why = f"what listens there is no HTTP server: {describe(error)}"
                raise BindError(BindCode.START, f"the instance is not ready; {why}") from error
            else:
                if status // 100 == 2 or status in NOT_THERE:
                    return RestDialect(
                        http, self._owner, self._options.pages, self._place.max_payload, self._concurrency(said)
                    )
            # The socket's file is an event that ends the pause.
            await asyncio.wait({self._file} if not self._over_socket else {self.ended}, timeout=pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    def _concurrency(self, said: str | None) -> int:
        if self._options.concurrency is not None or said is None:
            return self._options.concurrency or 1
        try:
            return concurrency_of(said)
        except InvalidArgumentError as error:
            raise BindError(BindCode.START, f"the instance answered {_CONCURRENCY}: {error.message}") from error

    async def _client(self) -> aiohttp.ClientSession:
        """A client for where the service listens: the socket once it is there, the port until then."""
        import aiohttp

        if self._http is not None and self._over_socket == self._file.done():
            return self._http
        if self._http is not None:
            await self._http.close()
        self._over_socket = self._file.done()
        if self._over_socket:
            connector: aiohttp.BaseConnector = aiohttp.UnixConnector(
                str(self._path), limit=0, keepalive_timeout=_REST_S
            )
            base = "http://localhost"
        else:
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_REST_S, use_dns_cache=False)
            base = f"http://{_HOST}:{self._port}"
        # No time-outs, no proxies, no cookies: the executor's deadlines hold, and what is kept is the service's own.
        self._http = aiohttp.ClientSession(
            base,
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            # An output is what the service sent, byte by byte.
            auto_decompress=False,
            headers={"Accept-Encoding": "identity"},
        )
        return self._http

    def _on_exit(self, status: asyncio.Future[int]) -> None:
        if not self.ended.done():
            self.ended.set_result(describe_status(status.result()))

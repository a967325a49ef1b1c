"""The rest shim: an instance is an HTTP server of the user's, on this machine.

It finds two places to listen at, PORT (on 127.0.0.1) and FLAME_REST_SOCKET (a unix socket's path), and takes the one it
likes; nothing else is ever contacted. Its readiness has no event to wait for when it takes the port: it is asked.
"""

from __future__ import annotations

import asyncio
import importlib
import socket
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from flame.model.errors import InvalidArgumentError
from flame.model.states import BindCode
from flame.shims.instance import ProgramInstance
from flame.shims.reception import Arrival, Reception
from flame.shims.rest_dialect import NOT_THERE, Pages, RestDialect, describe
from flame.shims.shim import BindError, Launch, Owner
from flame.shims.stdio import concurrency_of, label_values, refuse_unknown
from flame.shims.workplace import Workshop, in_words

if TYPE_CHECKING:
    import aiohttp

_HOST = "127.0.0.1"
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.005, 0.2
# Servers hang up connections that rest for some seconds; a request that meets this would look like a lost instance.
_REST_S = 1.0
_ONLY_A_SOCKET = (
    "; in a network of its own it is reached at FLAME_REST_SOCKET only: listen there, or ask for network host"
)
_NO_PORT = "; it is reached at FLAME_REST_SOCKET only: listen there"
_CONCURRENCY = "X-Flame-Concurrency"


class RestOptions(msgspec.Struct, frozen=True):
    """What an application's labels say. `concurrency` None = what the service says, else one task at a time."""

    pages: Pages
    concurrency: int | None = None


def options_of(labels: Iterable[str]) -> RestOptions:
    """Reads `rest-ready=/PATH`, `rest-invoke=/PATH`, `concurrency=N`. Raises InvalidArgumentError."""
    labels = tuple(labels)
    refuse_unknown(labels, "rest-", ("rest-ready", "rest-invoke"))
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

    missing = ""

    def __init__(self, workshop: Workshop, reception: Reception) -> None:
        self._workshop = workshop
        self._reception = reception
        self._ports: set[int] = set()  # promised to instances that live

    async def prepare(self, launch: Launch) -> Launch:
        """Install the application's package if it is not there yet. Raises BindError with code 10."""
        return await self._workshop.prepare(launch)

    async def start(self, launch: Launch, owner: Owner) -> ProgramInstance:
        """Start the application's command. Raises BindError with code 11."""
        try:
            options = options_of(launch.application.labels)
        except InvalidArgumentError as error:
            raise BindError(BindCode.START, in_words(error)) from None
        confinement = self._workshop.confinement
        # The import takes longer than starting an instance: not in the event loop.
        await asyncio.to_thread(importlib.import_module, "aiohttp")
        try:
            arrival = self._reception.expect(launch.executor_id, launch.token, link=False)
        except OSError as error:
            raise BindError(BindCode.START, f"can't make a folder for the instance's socket: {error}") from error
        shares = confinement.shares_network(launch) and not confinement.streams(launch)
        port = self._free_port() if shares else 0
        door = RestDoor(self._reception, arrival, owner, options, port, self._workshop.surroundings.max_payload)
        if confinement.streams(launch):
            door.hint = _NO_PORT
        try:
            inside = confinement.door(launch) if confinement.streams(launch) else arrival.socket
            if inside is None:
                level = launch.application.isolation
                raise BindError(
                    BindCode.START, f"an HTTP server can't be reached at isolation {level}: use another shim"
                )
            variables = {"FLAME_REST_SOCKET": str(inside), **({"PORT": str(port)} if port else {})}
            place = await self._workshop.open(launch, variables, [arrival.folder])
        except BaseException:
            await door.close()
            self._ports.discard(port)
            raise
        instance = ProgramInstance(place, door, owner)
        instance.on_disposed = partial(self._ports.discard, port)
        try:
            await instance.run(place.program)
        except BaseException:
            await instance.dispose()
            raise
        return instance

    def _free_port(self) -> int:
        while True:
            with socket.socket() as probe:
                probe.bind((_HOST, 0))
                port = probe.getsockname()[1]
            if port not in self._ports:
                self._ports.add(port)
                return port


class RestDoor:
    """One server, which listens at its socket or at `port`; 0 = that can't be reached."""

    def __init__(
        self,
        reception: Reception,
        arrival: Arrival,
        owner: Owner,
        options: RestOptions,
        port: int,
        max_payload: int,
    ) -> None:
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.over.set_result(None)
        self.hint = "" if port else _ONLY_A_SOCKET
        self._reception = reception
        self._arrival = arrival
        self._owner = owner
        self._options = options
        self._port = port
        self._max_payload = max_payload
        self._http: aiohttp.ClientSession | None = None

    def bind(self, owner: Owner) -> None:
        self._owner = owner

    def last_call(self) -> None:
        pass

    async def close(self) -> None:
        if self._http is not None:
            await self._http.close()
        await self._reception.forget(self._arrival)

    async def ready(self) -> RestDialect:
        """Ask until it answers that it is ready."""
        import aiohttp

        pause = _FIRST_PAUSE_S
        while True:
            file = self._arrival.file
            http = await self._client()
            try:
                if http is not None:
                    async with http.get(self._options.pages.ready, allow_redirects=False) as response:
                        status, said = response.status, response.headers.get(_CONCURRENCY)
                    if status // 100 == 2 or status in NOT_THERE:
                        concurrency = self._concurrency(said)
                        self._reception.settled(self._arrival)
                        return RestDialect(http, self._owner, self._options.pages, self._max_payload, concurrency)
                    self.hint = f"; it answers GET {self._options.pages.ready} with HTTP {status}"
            except aiohttp.ClientConnectionError:
                pass  # nobody listens yet
            except aiohttp.ClientError as error:
                why = f"what listens there is no HTTP server: {describe(error)}"
                raise BindError(BindCode.START, f"the instance is not ready; {why}") from error
            # The socket's file is an event that ends the pause.
            if file.done():
                await asyncio.sleep(pause)
            else:
                await asyncio.wait({file}, timeout=pause if self._port else None)
            pause = min(2 * pause, _LONGEST_PAUSE_S)

    def _concurrency(self, said: str | None) -> int:
        if self._options.concurrency is not None or said is None:
            return self._options.concurrency or 1
        try:
            return concurrency_of(said)
        except InvalidArgumentError as error:
            raise BindError(BindCode.START, f"the instance answered {_CONCURRENCY}: {error.message}") from error

    async def _client(self) -> aiohttp.ClientSession | None:
        """A client for where the service listens: the socket once it is there, the port until then. None when there is
        neither. Raises BindError when what is at the socket's path is none."""
        import aiohttp

        if self._http is not None:
            await self._http.close()
            self._http = None
        if self._arrival.file.done():
            try:
                path = str(self._arrival.address())
            except FileNotFoundError:  # it was taken away again
                return None
            connector: aiohttp.BaseConnector = aiohttp.UnixConnector(path, limit=0, keepalive_timeout=_REST_S)
            base = "http://localhost"
        elif self._port:
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_REST_S, use_dns_cache=False)
            base = f"http://{_HOST}:{self._port}"
        else:
            return None
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

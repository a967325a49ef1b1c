"""The object cache of a local cluster: a process of its own, for clients of this user started when the first one comes.

Its socket is there from the start, in the hands of the cluster, and the process takes the visitors over. So nobody has
to ask whether it runs, and it may come and go.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import select
import socket
import sys
from importlib.util import find_spec
from pathlib import Path

import msgspec

from flame.cache.beside import Beside, Said
from flame.config import ClusterConfig
from flame.link import Address, parse
from flame.link.peer import is_loopback
from flame.local.registry import SOCKET, ClusterRecord
from flame.local.settings import DaemonSettings
from flame.model.errors import InternalError, InvalidConfigError, TimedOutError, error_of
from flame.node.capacity import limits

logger = logging.getLogger("flame.local")

DOOR = "cache.sock"
OFF = "off"
_LEAST_MEMORY = 1024**3
_SHARE = 4  # of the machine's memory, it may take one part
_START_TIMEOUT = 60.0
_PAUSE = 3.0  # seconds after a start that failed, until the next


def cache_endpoint(settings: DaemonSettings, config: ClusterConfig) -> str:
    """Where the cluster's cache is; empty when it has none. Raises InvalidConfigError.

    One that only this user can reach is there unless it is switched off. Clients that come over TCP could not read what
    is in it, so a cluster that listens for them has none unless it is told where. A configured one somebody else runs.
    """
    if settings.cache == OFF:
        return ""
    if settings.cache:
        return f"grpc://{str(_checked(parse(f'tcp:{settings.cache}'), insecure=settings.insecure))[4:]}"
    if config.cache is not None:
        return config.cache.endpoint
    if settings.listen is not None or find_spec("pyarrow") is None:
        return ""
    return f"unix:{settings.folder}/{DOOR}"


def runs_here(settings: DaemonSettings, endpoint: str) -> bool:
    """Whether the cluster itself runs the cache at its endpoint."""
    return bool(settings.cache and endpoint) or endpoint.startswith("unix:")


class LocalCache:
    """The cache at the endpoint of a record."""

    def __init__(self, settings: DaemonSettings, record: ClusterRecord) -> None:
        self._path: Path | None = None
        self._socket: socket.socket | None = None
        if record.cache.startswith("unix:"):
            self._path = Path(record.cache.removeprefix("unix:"))
        self._settings = Beside(
            manager=f"{settings.folder}/{SOCKET}",
            folder=f"{settings.data}/objects",
            endpoint=record.cache,
            # What the journal would lose at a restart need not be on disk either.
            spill=record.storage == "none" or settings.temporary,
            config=settings.config or "",
        )
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> str:
        """Open the door; a cache for clients elsewhere is started and waited for. Its endpoint. Raises FlameError."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.bind(str(self._path))
            self._path.chmod(0o600)
            self._socket.listen(128)
            self._settings = msgspec.structs.replace(self._settings, listener=self._socket.fileno())
            endpoint = self._settings.endpoint
        else:
            endpoint = await self._launch()
        self._task = asyncio.create_task(self._keep())
        return endpoint

    async def stop(self) -> None:
        """End the process and wait for that."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self._process is not None:
            await _end(self._process)
        if self._socket is not None and self._path is not None:
            self._socket.close()
            self._path.unlink(missing_ok=True)

    async def _keep(self) -> None:
        """Start the process when somebody knocks (one for clients elsewhere: at once), whenever it does not run."""
        while True:
            try:
                if self._process is None:
                    await self._knock()
                    await self._launch()
                assert self._process is not None
                logger.info("object_cache_started pid=%d", self._process.pid)
                code = await self._process.wait()
                logger.error("object_cache_ended exit_code=%d", code)
            except Exception as error:
                logger.error("object_cache_fails why=%r", str(error))
                self._turn_away()
                await asyncio.sleep(_PAUSE)
                self._turn_away()
            self._process = None

    async def _knock(self) -> None:
        """Wait until somebody is at the door."""
        if self._socket is None:
            return
        loop, there = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._socket, there.set)
        try:
            await there.wait()
        finally:
            loop.remove_reader(self._socket)

    def _turn_away(self) -> None:
        """Those who wait at the door learn that nobody comes."""
        if self._socket is None:
            return
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        while poll.poll(0):
            self._socket.accept()[0].close()

    async def _launch(self) -> str:
        """Start the process and wait until it can be used; its endpoint. Raises FlameError."""
        settings = msgspec.structs.replace(self._settings, max_memory=max(_LEAST_MEMORY, limits()[1] // _SHARE))
        descriptors = () if settings.listener is None else (settings.listener,)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "flame.cache.beside",
            msgspec.json.encode(settings).decode(),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            pass_fds=descriptors,
            start_new_session=True,
            cwd="/",
        )
        assert process.stdout is not None
        try:
            # Not wait_for: before Python 3.12 it loses a cancellation that comes together with the line.
            async with asyncio.timeout(_START_TIMEOUT):
                line = await process.stdout.readline()
        except TimeoutError:
            process.kill()
            await process.wait()
            raise TimedOutError(f"the object cache did not start within {_START_TIMEOUT:g} s") from None
        except BaseException:
            process.kill()
            await process.wait()
            raise
        if not line:
            raise InternalError(f"the object cache ended while it started (exit code {await process.wait()})")
        said = msgspec.json.decode(line, type=Said)
        if said.error:
            await process.wait()
            raise error_of(said.code, said.error, said.remedy)
        self._process = process
        return said.endpoint


async def _end(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), 10.0)
    except TimeoutError:
        process.kill()
        await process.wait()


def _checked(address: Address, *, insecure: bool) -> Address:
    if not address.port:
        raise InvalidConfigError("the object cache needs a port", remedy=f"write {address.host}:9090")
    if not insecure and address.host != "localhost" and not is_loopback(address.host):
        raise InvalidConfigError(
            f"refusing to keep objects at {str(address)[4:]} without TLS: everybody who reaches it could read them all",
            remedy="use 127.0.0.1, run flame-object-cache with cache.tls, or insist with --insecure",
        )
    return address

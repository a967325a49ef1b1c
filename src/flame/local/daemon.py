"""The process of a local cluster: session manager and executor manager in one event loop, on one unix socket.

Started by `flame.local.launch` as `python -m flame.local.daemon SETTINGS`. It says on its standard output, in one
line, that clients can connect or why they can't; everything else goes to its log, which is its standard error. It ends
on SIGTERM, and when its standard input does unless it is detached: then its starter is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from pathlib import Path

import msgspec

from flame._version import __version__
from flame.config import ClusterConfig, ClusterSection, load_cluster
from flame.link import BACKEND_OFFSET, HTTP_OFFSET, LINK_OFFSET, parse, tcp, unix
from flame.link.loops import event_loop_factory
from flame.local.cache import LocalCache, cache_endpoint, runs_here
from flame.local.folders import private_folder
from flame.local.registry import SOCKET, ClusterRecord, retire, take_lock, write_record
from flame.local.settings import DaemonSettings, Ready
from flame.manager.daemon import settings_of as manager_settings
from flame.manager.daemon import tune_process
from flame.manager.manager import SessionManager
from flame.manager.settings import ManagerSettings
from flame.model.errors import AlreadyExistsError, FlameError, InternalError, InvalidConfigError
from flame.model.resources import Resources
from flame.node import ExecutorManager, NodeSettings
from flame.node.capacity import detect, offered
from flame.node.daemon import settings_of as node_settings
from flame.telemetry import set_up_logging

logger = logging.getLogger("flame.local")


def main() -> int:
    """Run until told to end; the exit code is 1 when the cluster could not start or broke."""
    settings = msgspec.json.decode(sys.argv[1], type=DaemonSettings)
    set_up_logging()
    folder = Path(settings.folder)
    lock = take_lock(folder)
    if lock is None:
        _say(_failure(AlreadyExistsError(f"the local cluster {settings.name!r} is running already")))
        return 1
    code = 1
    record = None
    try:
        record = _record(settings, _config(settings))
        (folder / SOCKET).unlink(missing_ok=True)
        with asyncio.Runner(loop_factory=event_loop_factory()) as runner:
            code = runner.run(_run(settings, record))
    except FlameError as error:
        logger.error("the cluster can't start: %s", error)
        _say(_failure(error))
    except Exception as error:
        logger.exception("the cluster can't start")
        _say(_failure(InternalError(f"the cluster can't start: {error}")))
    if record is not None:
        # After a failure the starter still wants to read the log; it removes what was temporary.
        retire(folder, record, keep_data=code != 0)
    os.close(lock)
    return code


async def _run(settings: DaemonSettings, record: ClusterRecord) -> int:
    """Start both managers, say so, and wait for the end. Raises FlameError and OSError when they can't start."""
    over = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, over.set)
    if not settings.detached:
        _watch_starter(loop, over)
    config = _config(settings)
    async with contextlib.AsyncExitStack() as stack:
        manager = SessionManager(_manager_settings(settings, config, record))
        await manager.start()
        stack.push_async_callback(manager.stop)
        node = ExecutorManager(await asyncio.to_thread(_node_settings, settings, config, record))
        await node.start()
        stack.push_async_callback(node.stop)
        if runs_here(settings, record.cache):
            cache = LocalCache(settings, record)
            stack.push_async_callback(cache.stop)
            record = msgspec.structs.replace(record, cache=await cache.start())
        write_record(Path(settings.folder), record)
        tune_process()
        _say(Ready(endpoint=record.endpoint, pid=os.getpid()))
        ended = asyncio.create_task(over.wait())
        broken = asyncio.create_task(manager.wait_failed())
        await asyncio.wait((ended, broken), return_when=asyncio.FIRST_COMPLETED)
        for task in (ended, broken):
            task.cancel()
        return 1 if broken.done() and not broken.cancelled() else 0


def _manager_settings(settings: DaemonSettings, config: ClusterConfig, record: ClusterRecord) -> ManagerSettings:
    links = [unix(Path(settings.folder) / SOCKET)]
    frontend = backend = http = None
    if settings.listen is not None:
        host, port = listen_address(settings.listen)
        links.append(tcp(host, port + LINK_OFFSET))
        frontend, backend = str(tcp(host, port))[4:], str(tcp(host, port + BACKEND_OFFSET))[4:]
        http = str(tcp(host, port + HTTP_OFFSET))[4:]
    return msgspec.structs.replace(
        manager_settings(config, insecure=settings.insecure),
        name=settings.name,
        links=links,
        frontend=frontend,
        backend=backend,
        http=http,
        endpoint=record.listen or record.endpoint,
        storage=record.storage,
    )


def _node_settings(settings: DaemonSettings, config: ClusterConfig, record: ClusterRecord) -> NodeSettings:
    cluster = config.cluster
    return msgspec.structs.replace(
        node_settings(config, Path(settings.data) / "work"),
        manager=unix(Path(settings.folder) / SOCKET),
        grpc=None,
        capacity=_capacity(settings, cluster) or cluster.executors.capacity,
        socket_dir=private_folder(Path(settings.folder) / "i"),
        # Its own link and those of its instances are unix sockets, where the kernel says who is there.
        tls=None,
        endpoint=record.endpoint,
        cache_endpoint=record.cache,
    )


def _capacity(settings: DaemonSettings, cluster: ClusterSection) -> Resources | None:
    """Room for the executors that were asked for; None = what the machine has."""
    if settings.capacity is not None or settings.executors is None:
        return settings.capacity
    found = offered(detect(), None, cluster.executors.devices, cluster.executors.gpu_fraction).resources
    count, unit = settings.executors, cluster.resreq
    return Resources(
        cpu=count * max(1, unit.cpu),
        # The user knows that so many fit: a small machine is no reason to start fewer.
        memory=max(found.memory, count * unit.memory),
        gpu=max(found.gpu, count * unit.gpu),
    )


def _config(settings: DaemonSettings) -> ClusterConfig:
    return load_cluster(Path(settings.config)) if settings.config is not None else ClusterConfig()


def listen_address(text: str) -> tuple[str, int]:
    """Host and port of HOST:PORT (IPv6 hosts in brackets). Raises InvalidConfigError."""
    address = parse(f"tcp:{text}")
    if not 0 < address.port <= 65535 - LINK_OFFSET:
        raise InvalidConfigError(f"invalid port {address.port} to listen at", remedy="two more above it are used")
    return address.host, address.port


def _watch_starter(loop: asyncio.AbstractEventLoop, over: asyncio.Event) -> None:
    """End when standard input does. Nobody writes to it: anything to read is its end."""

    def readable() -> None:
        if not os.read(0, 4096):
            loop.remove_reader(0)
            over.set()

    loop.add_reader(0, readable)


def _record(settings: DaemonSettings, config: ClusterConfig) -> ClusterRecord:
    listen = None
    if settings.listen is not None:
        host, port = listen_address(settings.listen)
        listen = f"{'http' if config.cluster.tls is None else 'https'}://{str(tcp(host, port))[4:]}"
    if settings.storage:
        storage = settings.storage
    else:
        storage = config.cluster.storage if settings.config is not None else f"sqlite://{settings.data}/flame.db"
    return ClusterRecord(
        name=settings.name,
        pid=os.getpid(),
        endpoint=f"unix:{settings.folder}/{SOCKET}",
        storage=storage,
        data=settings.data,
        log=f"{settings.data}/daemon.log",
        version=__version__,
        started=time.time(),
        temporary=settings.temporary,
        anonymous=settings.anonymous,
        listen=listen,
        cache=cache_endpoint(settings, config),
    )


def _say(ready: Ready) -> None:
    """The one line, and then nothing more: the reader may have gone."""
    with contextlib.suppress(OSError):
        os.write(1, msgspec.json.encode(ready) + b"\n")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)


def _failure(error: FlameError) -> Ready:
    return Ready(error=error.message, remedy=error.remedy, code=int(error.code))


if __name__ == "__main__":
    sys.exit(main())

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
from typing import TYPE_CHECKING

import msgspec

from flame._version import __version__
from flame.config import ClusterConfig, load_cluster
from flame.link import unix
from flame.local.folders import private_folder
from flame.local.registry import SOCKET, ClusterRecord, retire, take_lock, write_record
from flame.local.settings import DaemonSettings, Ready
from flame.model.errors import AlreadyExistsError, FlameError, InternalError, InvalidConfigError
from flame.model.resources import Resources

if TYPE_CHECKING:
    from flame.manager import ManagerSettings, SessionManager
    from flame.node import ExecutorManager, NodeSettings

logger = logging.getLogger("flame.local")


def main() -> int:
    """Run until told to end; the exit code is 1 when the cluster could not start or broke."""
    settings = msgspec.json.decode(sys.argv[1], type=DaemonSettings)
    from flame.telemetry import log_to_stderr

    log_to_stderr()
    folder = Path(settings.folder)
    lock = take_lock(folder)
    if lock is None:
        _say(_failure(AlreadyExistsError(f"the local cluster {settings.name!r} is running already")))
        return 1
    record = _record(settings)
    (folder / SOCKET).unlink(missing_ok=True)
    try:
        return asyncio.run(_run(settings, folder, record))
    finally:
        retire(folder, record)
        os.close(lock)


async def _run(settings: DaemonSettings, folder: Path, record: ClusterRecord) -> int:
    over = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, over.set)
    if not settings.detached:
        _watch_starter(loop, over)
    async with contextlib.AsyncExitStack() as stack:
        try:
            config = _load(settings)
            manager = _make_manager(settings, config)
            await manager.start()
            stack.push_async_callback(manager.stop)
            node = _make_node(settings, config)
            await node.start()
            stack.push_async_callback(node.stop)
            write_record(folder, record)
        except FlameError as error:
            logger.error("the cluster can't start: %s", error)
            _say(_failure(error))
            return 1
        except OSError as error:
            logger.exception("the cluster can't start")
            _say(_failure(InternalError(f"the cluster can't start: {error}")))
            return 1
        _say(Ready(endpoint=record.endpoint, pid=os.getpid()))
        logger.info("cluster %s runs on %s, storage %s", settings.name, record.endpoint, record.storage)
        await over.wait()
        logger.info("cluster %s ends", settings.name)
    return 0


def _watch_starter(loop: asyncio.AbstractEventLoop, over: asyncio.Event) -> None:
    """End when standard input does. Nobody writes to it: anything to read is its end."""

    def readable() -> None:
        if not os.read(0, 4096):
            loop.remove_reader(0)
            over.set()

    loop.add_reader(0, readable)


def _record(settings: DaemonSettings) -> ClusterRecord:
    return ClusterRecord(
        name=settings.name,
        pid=os.getpid(),
        endpoint=f"unix:{settings.folder}/{SOCKET}",
        storage=_storage(settings, None),
        data=settings.data,
        log=f"{settings.data}/daemon.log",
        version=__version__,
        started=time.time(),
        temporary=settings.temporary,
        anonymous=settings.anonymous,
        listen=settings.listen,
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

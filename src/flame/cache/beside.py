"""The object cache of a local cluster, as a process beside its daemon, which starts it.

`python -m flame.cache.beside SETTINGS` says in one line of JSON on its standard output that it can be used, or why it
can't. It ends on SIGTERM, and when its standard input does: then the cluster is gone.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

import msgspec

from flame.cache.daemon import serve, settings_of
from flame.cache.settings import CacheSettings
from flame.config import load_cluster
from flame.config.cache import DEFAULT_CACHE_ENDPOINT
from flame.link import unix
from flame.model.errors import FlameError
from flame.telemetry import set_up_logging


class Beside(msgspec.Struct, frozen=True):
    """The command line, as JSON.

    `endpoint` is `unix:PATH`, or `grpc://HOST:PORT`; `listener`: descriptor of the socket at PATH. `folder` is for
    objects: all of them, or with `spill` what `max_memory` bytes have no room for. `manager`: socket of the cluster,
    which is asked about sessions. `config`: a cluster file, whose section `cache` goes over this but for the endpoint.
    """

    manager: str
    folder: str
    endpoint: str
    listener: int | None = None
    spill: bool = True
    max_memory: int = 1024**3
    config: str = ""


class Said(msgspec.Struct, frozen=True):
    """The one line: where the cache is, or an error."""

    endpoint: str = ""
    error: str = ""
    remedy: str = ""
    code: int = 0


def cache_settings(beside: Beside) -> CacheSettings:
    """What the cache needs to know. Raises FlameError."""
    settings = CacheSettings(
        location=beside.endpoint,
        endpoint=beside.endpoint,
        max_memory=beside.max_memory,
        storage=Path(beside.folder),
        spill=beside.spill,
        manager=unix(Path(beside.manager)),
        listener=beside.listener,
    )
    config = load_cluster(Path(beside.config)) if beside.config else None
    if config is None or config.cache is None:
        return settings
    # The door says who may come in, so certificates of other caches are not looked at.
    section = msgspec.structs.replace(config.cache, endpoint=DEFAULT_CACHE_ENDPOINT, tls=None, verify_clients=False)
    chosen = settings_of(msgspec.structs.replace(config, cache=section), os.environ)
    return msgspec.structs.replace(
        chosen,
        location=settings.location,
        endpoint=settings.endpoint,
        storage=chosen.storage or settings.storage,
        spill=settings.spill and chosen.storage is None,
        manager=settings.manager,
        manager_tls=None,
    )


def main() -> int:
    """Run until told to end; the exit code is 1 when the cache can't start."""
    beside = msgspec.json.decode(sys.argv[1], type=Beside)
    set_up_logging()
    threading.Thread(target=_end_with_the_cluster, daemon=True).start()
    try:
        settings = cache_settings(beside)
        serve(settings, lambda: _say(Said(endpoint=settings.endpoint)))
    except FlameError as error:
        _say(Said(error=error.message, remedy=error.remedy, code=int(error.code)))
        return 1
    return 0


def _end_with_the_cluster() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _say(said: Said) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(said) + b"\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())

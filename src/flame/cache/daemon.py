"""`flame-object-cache`: one object cache as a process of its own."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from flame._version import __version__
from flame.cache.addresses import place
from flame.cache.settings import CacheSettings
from flame.config import ClusterConfig, load_cluster
from flame.config.cache import CacheSection, with_environment
from flame.link import LINK_OFFSET, tcp
from flame.model.errors import MEANING, FlameError
from flame.telemetry import set_up_logging


def settings_of(config: ClusterConfig, environ: Mapping[str, str], *, insecure: bool = False) -> CacheSettings:
    """The settings of the cache of a cluster. Raises InvalidConfigError."""
    section = with_environment(config.cache or CacheSection(), environ)
    location, endpoint = place(section, insecure=insecure or config.cluster.insecure)
    return CacheSettings(
        location=location,
        endpoint=endpoint,
        max_memory=section.eviction.max_memory,
        max_objects=section.eviction.max_objects,
        evict=section.eviction.policy == "lru",
        storage=section.storage,
        max_disk=section.max_disk,
        object_store=section.object_store,
        quotas=dict(section.quotas),
        session_quota=section.session_quota,
        retention=section.session_retention,
        peers=section.peers,
        tls=section.tls if endpoint.startswith("grpc+tls://") else None,
        verify_clients=section.verify_clients,
        manager=tcp(config.cluster.host, config.cluster.port + LINK_OFFSET),
        manager_tls=config.cluster.tls,
    )


def serve(settings: CacheSettings, ready: Callable[[], object]) -> None:
    """Run a cache until SIGTERM or SIGINT. `ready` is called once it can be used. Raises FlameError."""
    from flame.cache.running import Running

    stopping = threading.Event()

    def stop(number: int, frame: object) -> None:
        del number, frame
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    sys.setswitchinterval(0.001)  # a small request does not wait long for a large one
    running = Running(settings)
    running.start()
    ready()
    try:
        while not stopping.wait(1.0):
            running.tidy()
    finally:
        running.stop()


def main(arguments: Sequence[str] | None = None) -> int:
    """The program. The exit status is 0 after a signal, else that of the error (model/errors.py)."""
    parser = argparse.ArgumentParser(prog="flame-object-cache", description="Flame's object cache.")
    parser.add_argument(
        "-c", "--config", type=Path, metavar="FILE", help="cluster file (default: ~/.flame/flame-cluster.yaml)"
    )
    parser.add_argument(
        "--insecure",
        action="store_true",
        help="listen beyond the loopback without TLS: everybody who reaches the port can read and change all objects",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    options = parser.parse_args(arguments)
    set_up_logging()
    try:
        settings = settings_of(load_cluster(options.config), os.environ, insecure=options.insecure)
        serve(settings, lambda: _say(f"flame-object-cache is ready at {settings.endpoint}"))
    except FlameError as error:
        sys.stderr.write(f"flame-object-cache: {error.message}{'; ' if error.remedy else ''}{error.remedy}\n")
        return MEANING[error.code].exit_code
    return 0


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())

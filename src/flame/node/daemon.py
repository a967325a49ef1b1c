"""The daemon `flame-executor-manager`."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from flame._version import __version__
from flame.config import ClusterConfig, load_cluster
from flame.config.executors import parse_label, parse_taint
from flame.link import BACKEND_OFFSET, LINK_OFFSET, tcp
from flame.link.loops import event_loop_factory
from flame.model.errors import MEANING, FlameError, InvalidConfigError
from flame.node.manager import ExecutorManager
from flame.node.settings import NodeSettings
from flame.packages.limits import StoreLimits
from flame.shims.container_limits import ImageLimits
from flame.telemetry import set_up_logging


def settings_of(config: ClusterConfig, work_dir: Path, name: str | None = None) -> NodeSettings:
    """The settings of a node of this cluster. Raises InvalidConfigError."""
    cluster, cache = config.cluster, config.cache
    executors = cluster.executors
    ca_file = cluster.tls.ca_file if cluster.tls is not None else None
    cache_ca_file = cache.tls.ca_file if cache is not None and cache.tls is not None else None
    return NodeSettings(
        manager=tcp(cluster.host, cluster.port + LINK_OFFSET),
        grpc=tcp(cluster.host, cluster.port + BACKEND_OFFSET),
        work_dir=work_dir,
        name=name or os.uname().nodename,
        capacity=executors.capacity,
        tls=cluster.tls,
        shim=executors.shim,
        labels=executors.labels,
        taints=executors.taints,
        max_executors=executors.limits.max_executors or cluster.limits.max_executors or 0,
        devices=executors.devices,
        gpu_fraction=executors.gpu_fraction,
        warm_instances=executors.warm.max_instances,
        warm_idle=executors.warm.idle,
        packages=executors.packages.folder,
        package_limits=StoreLimits(
            install_timeout=executors.packages.install_timeout,
            keep_count=executors.packages.keep_count,
            keep_bytes=executors.packages.keep_size,
        ),
        image_limits=ImageLimits(
            max_bytes=executors.images.max_size,
            max_files=executors.images.max_files,
            timeout=executors.images.timeout,
            keep_count=executors.images.keep_count,
            keep_bytes=executors.images.keep_size,
        ),
        endpoint=cluster.endpoint,
        cache_endpoint=cache.endpoint if cache is not None else "",
        ca_file=str(ca_file) if ca_file is not None else "",
        cache_ca_file=str(cache_ca_file) if cache_ca_file is not None else "",
        max_payload=cluster.limits.max_payload,
    )


def _told(settings: NodeSettings, chosen: argparse.Namespace) -> NodeSettings:
    """The settings with what the command line adds and replaces. Raises InvalidConfigError."""
    if chosen.max_executors is not None and not 0 < chosen.max_executors < 2**31:
        raise InvalidConfigError(f"--max-executors {chosen.max_executors} is out of range", remedy="leave it out")
    return msgspec.structs.replace(
        settings,
        labels={**settings.labels, **dict(parse_label(text) for text in chosen.label)},
        taints=tuple(dict.fromkeys((*settings.taints, *(parse_taint(text) for text in chosen.taint)))),
        max_executors=chosen.max_executors or settings.max_executors,
    )


async def serve(settings: NodeSettings) -> None:
    """Run a node until SIGTERM or SIGINT."""
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    manager = ExecutorManager(settings)
    await manager.start()
    sys.stdout.write(f"flame-executor-manager is ready: node {settings.name}, session manager {settings.manager}\n")
    sys.stdout.flush()
    try:
        await told.wait()
    finally:
        await manager.stop()


def main(arguments: Sequence[str] | None = None) -> int:
    """The console script. The exit status is 0 after a signal, else that of the error (model/errors.py)."""
    parser = argparse.ArgumentParser(prog="flame-executor-manager", description="Run executors on this node.")
    parser.add_argument("--config", type=Path, help="cluster file (default: ~/.flame/flame-cluster.yaml)")
    parser.add_argument("--name", help="name of this node (default: the host's)")
    parser.add_argument("--work-dir", type=Path, help="folder for executors and logs (default: ~/.flame/node)")
    parser.add_argument(
        "--label", action="append", default=[], metavar="NAME=VALUE", help="a label for selectors; may be repeated"
    )
    parser.add_argument(
        "--taint", action="append", default=[], metavar="KEY[=VALUE]", help="only sessions that tolerate it; repeatable"
    )
    parser.add_argument("--max-executors", type=int, metavar="N", help="at most so many at once")
    parser.add_argument("--version", action="version", version=f"flame-executor-manager {__version__}")
    chosen = parser.parse_args(arguments)
    set_up_logging()
    try:
        work_dir = (chosen.work_dir or Path.home() / ".flame" / "node").absolute()
        with asyncio.Runner(loop_factory=event_loop_factory()) as runner:
            runner.run(serve(_told(settings_of(load_cluster(chosen.config), work_dir, chosen.name), chosen)))
    except FlameError as error:
        sys.stderr.write(f"flame-executor-manager: {error}\n")
        return MEANING[error.code].exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

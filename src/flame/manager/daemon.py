"""`flame-session-manager`: one session manager as a process of its own."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from flame._version import __version__
from flame.config import ClusterConfig, load_cluster
from flame.link import BACKEND_OFFSET, HTTP_OFFSET, LINK_OFFSET, tcp
from flame.link.loops import event_loop_factory
from flame.link.peer import is_loopback
from flame.manager.manager import SessionManager
from flame.manager.settings import ManagerSettings
from flame.model.errors import MEANING, FlameError
from flame.telemetry import set_up_logging

_log = logging.getLogger("flame.manager")


def settings_of(config: ClusterConfig, *, insecure: bool = False) -> ManagerSettings:
    """The settings of a manager for a cluster: port P of the endpoint for the frontend, P+1 for nodes over gRPC, P+2
    for the framed link, P+3 for probes and metrics. An endpoint beyond the loopback means all interfaces: its host is a
    name for others."""
    cluster = config.cluster
    host = cluster.host if cluster.host == "localhost" or is_loopback(cluster.host) else "0.0.0.0"
    bracketed = f"[{host}]" if ":" in host else host
    return ManagerSettings(
        name=cluster.name,
        links=(tcp(host, cluster.port + LINK_OFFSET),),
        frontend=f"{bracketed}:{cluster.port}",
        backend=f"{bracketed}:{cluster.port + BACKEND_OFFSET}",
        http=f"{bracketed}:{cluster.port + HTTP_OFFSET}",
        endpoint=cluster.endpoint,
        storage=cluster.storage,
        resreq=cluster.resreq,
        tls=cluster.tls,
        insecure=insecure or cluster.insecure,
        max_payload=cluster.limits.max_payload,
        retry_limits=cluster.recovery.session.retry_limits,
        max_sessions=cluster.limits.max_sessions,
        max_kills=cluster.recovery.task.max_kills,
        drain_ms=cluster.recovery.node.drain * 1000,
        retention_s=cluster.retention,
        policies=cluster.policies,
        tenants=cluster.tenants,
        preemption_grace_ms=round(cluster.scheduling.preemption_grace * 1000),
        unsatisfiable_ms=max(1, round(cluster.scheduling.unsatisfiable * 1000)),
        gang_ports=cluster.scheduling.gang_ports,
        max_pending=cluster.limits.max_pending,
    )


def tune_process() -> None:
    """Settings of the interpreter for a process that keeps millions of small objects and one busy loop.

    Full collections are rare (what the engine keeps is not tracked anyway), and the journal's thread gets the
    interpreter soon after its disk has answered.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    sys.setswitchinterval(0.001)


async def run(settings: ManagerSettings) -> int:
    """Run until SIGTERM or SIGINT (exit code 0), or until a fault that only a restart mends (1)."""
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    manager = SessionManager(settings)
    await manager.start()
    tune_process()
    sys.stdout.write(f"flame-session-manager is ready at {settings.endpoint}\n")
    sys.stdout.flush()
    stopped = asyncio.create_task(stopping.wait())
    failed = asyncio.create_task(manager.wait_failed())
    await asyncio.wait((stopped, failed), return_when=asyncio.FIRST_COMPLETED)
    code = 1 if failed.done() else 0
    stopped.cancel()
    failed.cancel()
    await manager.stop()
    return code


def main(arguments: Sequence[str] | None = None) -> int:
    """The program."""
    parser = argparse.ArgumentParser(prog="flame-session-manager", description="Flame's session manager.")
    parser.add_argument("--config", type=Path, metavar="FILE", help="default: ~/.flame/flame-cluster.yaml")
    parser.add_argument(
        "--insecure",
        action="store_true",
        help="listen beyond the loopback without TLS: everybody who reaches the ports can run programs here",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    options = parser.parse_args(arguments)
    set_up_logging()
    try:
        settings = settings_of(load_cluster(options.config), insecure=options.insecure)
        with asyncio.Runner(loop_factory=event_loop_factory()) as runner:
            return runner.run(run(settings))
    except FlameError as error:
        sys.stderr.write(f"flame-session-manager: {error.message}{'; ' if error.remedy else ''}{error.remedy}\n")
        return MEANING[error.code].exit_code


if __name__ == "__main__":
    sys.exit(main())

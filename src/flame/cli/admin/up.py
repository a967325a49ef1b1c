"""flmadm up."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import click

from flame.cli.admin.options import cluster_name, name_option
from flame.cli.bounds import whole
from flame.model.errors import InternalError


@click.command()
@name_option
@click.option("-d", "--detach", is_flag=True, help="Return as soon as it runs; stop it with flmadm down.")
@click.option("--executors", type=whole(1), metavar="N", help="Executors of one core at once (the cores).")
@click.option("--storage", metavar="URL", help="none, sqlite://FILE or fs://FOLDER (SQLite in the state folder).")
@click.option("--temporary", is_flag=True, help="Remove its data when it ends.")
@click.option("--listen", metavar="HOST:PORT", help="Also serve gRPC here, the link at PORT+2, metrics at PORT+3.")
@click.option("--cache", metavar="HOST:PORT", help="Keep large objects here for clients of --listen; off: nowhere.")
@click.option("--config", type=click.Path(path_type=Path), metavar="FILE", help="A flame-cluster.yaml to take.")
@click.option("--insecure", is_flag=True, help="Let --listen go beyond this machine without TLS: anybody may connect.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing when all is well.")
def up(
    name: str | None,
    detach: bool,
    executors: int | None,
    storage: str | None,
    temporary: bool,
    listen: str | None,
    cache: str | None,
    config: Path | None,
    insecure: bool,
    quiet: bool,
) -> int:
    """Start a local cluster: session manager, executor manager and journal in one process.

    Without --detach it runs until Ctrl-C.
    """
    from flame.local import Cluster

    cluster = Cluster(
        executors,
        storage,
        name=cluster_name(name),
        temporary=temporary,
        listen=listen,
        cache=cache,
        config=config,
        insecure=insecure,
        detach=detach,
    )
    if detach:
        cluster.start()
        if not quiet:
            _introduce(cluster.name)
        return 0
    # Also for Ctrl-C: a shell that starts programs in the background lets them ignore it.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)
    try:
        with cluster:
            if not quiet:
                _introduce(cluster.name)
            words = cluster.wait()
    except KeyboardInterrupt:
        if not quiet:
            print(f"Cluster <{cluster.name}> was stopped.")
        return 0
    raise InternalError(f"the cluster {cluster.name!r} ended by itself", remedy=words)


def _introduce(name: str) -> None:
    from flame.cli.output import page
    from flame.local.launch import running_cluster
    from flame.local.registry import DEFAULT_NAME

    record = running_cluster(name)
    print(f"Cluster <{name}> is running.", flush=True)
    rows = [
        ("  endpoint", record.endpoint),
        ("  gRPC", record.listen),
        ("  cache", record.cache),
        ("  storage", record.storage),
    ]
    for line in page([*((label, value) for label, value in rows if value), ("  log", record.log)]):
        print(line, flush=True)
    if name != (os.environ.get("FLAME_CLUSTER") or DEFAULT_NAME):
        print(f"Programs and commands use it with FLAME_CLUSTER={name} in their environment.", flush=True)

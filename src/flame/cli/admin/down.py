"""flmadm down."""

from __future__ import annotations

import click

from flame.cli.admin.options import cluster_name, name_option


@click.command()
@name_option
@click.option("--all", "everything", is_flag=True, help="All local clusters that outlive their starter.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing when all is well.")
def down(name: str | None, everything: bool, quiet: bool) -> None:
    """Stop a local cluster, its executors and their instances. What is in its journal stays."""
    from flame.local.launch import running_cluster, stop_cluster
    from flame.local.registry import running

    if everything:
        records = [record for record in running() if not record.anonymous]
    else:
        records = [running_cluster(cluster_name(name))]
    for record in records:
        orderly = stop_cluster(record)
        if not quiet:
            print(f"Cluster <{record.name}> was {'stopped' if orderly else 'killed: it did not stop in time'}.")

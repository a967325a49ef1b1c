"""flmadm: start, stop and check clusters."""

from __future__ import annotations

import sys

import click

from flame._version import __version__
from flame.cli.program import Lazy, LazyGroup, run

_HERE = "flame.cli.admin"

COMMANDS = {
    "up": Lazy(f"{_HERE}.up:up", "Start a local cluster."),
    "down": Lazy(f"{_HERE}.down:down", "Stop a local cluster."),
    "status": Lazy(f"{_HERE}.status:status", "Show the local clusters that run."),
    "check": Lazy(f"{_HERE}.check:check", "Check settings files."),
    "completion": Lazy("flame.cli.commands.completion:completion", "Print the completion script for a shell."),
}


@click.group(cls=LazyGroup, lazy=COMMANDS, invoke_without_command=True)
@click.version_option(__version__, prog_name="flmadm", message="%(prog)s %(version)s")
@click.pass_context
def flmadm(ctx: click.Context) -> None:
    """Start, stop and check clusters on this machine."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main() -> None:
    """The console script."""
    sys.exit(run(flmadm, "flmadm"))

"""flmctl: look at and change what a cluster holds."""

from __future__ import annotations

import sys

import click

from flame._version import __version__
from flame.cli.options import all_options
from flame.cli.program import Lazy, LazyGroup, run

_HERE = "flame.cli.commands"

COMMANDS = {
    "list": Lazy(f"{_HERE}.list:list_objects", "List applications, sessions, tasks, executors, nodes or tenants."),
    "view": Lazy(f"{_HERE}.view:view", "Show one object in full."),
    "create": Lazy(f"{_HERE}.create:create", "Create a session."),
    "close": Lazy(f"{_HERE}.close:close", "Close a session; its pending tasks are cancelled."),
    "delete": Lazy(f"{_HERE}.delete:delete", "Delete a closed session and its tasks."),
    "register": Lazy(f"{_HERE}.register:register", "Register the applications of a file."),
    "update": Lazy(f"{_HERE}.update:update", "Replace the specification of an application."),
    "deploy": Lazy(
        f"{_HERE}.deploy:deploy", "Package an application, send it to the cluster's nodes, and register it."
    ),
    "unregister": Lazy(f"{_HERE}.unregister:unregister", "Remove an application."),
    "cancel": Lazy(f"{_HERE}.cancel:cancel", "Cancel tasks of a session."),
    "logs": Lazy(f"{_HERE}.logs:logs", "Print what instances wrote to stdout and stderr."),
    "watch": Lazy(f"{_HERE}.watch:watch", "Follow a session or a task until it ends."),
    "tenant": Lazy(f"{_HERE}.tenant:tenant", "Manage tenants: who shares the cluster, and how."),
    "node": Lazy(f"{_HERE}.node:node", "Look at nodes, and take them out of use and back."),
    "sandbox": Lazy(
        f"{_HERE}.sandbox:sandbox", "Places to run code, commands and files in, kept away from their node."
    ),
    "top": Lazy(f"{_HERE}.top:top", "Show nodes, tenants and busy sessions, again and again."),
    "explain": Lazy(f"{_HERE}.explain:explain", "Say why a session or a task waits, and what happened to it."),
    "completion": Lazy(f"{_HERE}.completion:completion", "Print the completion script for a shell."),
}


@click.group(cls=LazyGroup, lazy=COMMANDS, invoke_without_command=True)
@click.version_option(__version__, prog_name="flmctl", message="%(prog)s %(version)s")
@all_options
@click.pass_context
def flmctl(ctx: click.Context) -> None:
    """Look at and change what a Flame cluster holds.

    The cluster is the one of --endpoint or $FLAME_ENDPOINT, of the current context in ~/.flame/flame.yaml, or the
    local one that `flmadm up` started.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main() -> None:
    """The console script."""
    sys.exit(run(flmctl, "flmctl"))

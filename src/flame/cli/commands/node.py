"""flmctl node: the machines of the cluster, and which of them take executors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from flame.cli import completing
from flame.cli.bounds import SECONDS, Bounded
from flame.cli.options import all_options, output_option, settings_of, where_options
from flame.cli.program import Lazy, LazyGroup

if TYPE_CHECKING:
    from flame.proto import types_pb2 as ty

_HERE = "flame.cli.commands.node"
MOST_GRACE = (2**32 - 1) // 1000

COMMANDS = {
    "list": Lazy(f"{_HERE}:list_nodes", "List the nodes."),
    "view": Lazy(f"{_HERE}:view", "Show one node in full."),
    "cordon": Lazy(f"{_HERE}:cordon", "Let no new executors start on a node; those there stay."),
    "drain": Lazy(f"{_HERE}:drain", "Cordon a node and let its executors leave; wait until they are gone."),
    "uncordon": Lazy(f"{_HERE}:uncordon", "Let a node take executors again."),
}


@click.group(cls=LazyGroup, lazy=COMMANDS, invoke_without_command=True)
@all_options
@click.pass_context
def node(ctx: click.Context) -> None:
    """Look at nodes, and take them out of use and back."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@click.command("list")
@all_options
@click.pass_context
def list_nodes(ctx: click.Context) -> None:
    """List the nodes."""
    from flame.cli.api import open_api
    from flame.cli.objects.nodes import NODES
    from flame.cli.output import show_list

    settings = settings_of(ctx)
    with open_api(settings) as api:
        show_list(sorted(api.nodes(), key=lambda entry: entry.metadata.name), NODES, settings.output)


@click.command()
@click.argument("name", shell_complete=completing.nodes)
@all_options
@click.pass_context
def view(ctx: click.Context, name: str) -> None:
    """Show one node in full."""
    from flame.cli.api import open_api
    from flame.cli.objects.nodes import NODES
    from flame.cli.output import show_one

    settings = settings_of(ctx)
    with open_api(settings) as api:
        show_one(api.node(name), NODES, settings.output)


@click.command()
@click.argument("name", shell_complete=completing.nodes)
@all_options
@click.pass_context
def cordon(ctx: click.Context, name: str) -> None:
    """Let no new executors start on a node; those there stay."""
    _show(ctx, _marked(ctx, name, "cordon"), "is cordoned")


@click.command()
@click.argument("name", shell_complete=completing.nodes)
@all_options
@click.pass_context
def uncordon(ctx: click.Context, name: str) -> None:
    """Let a node take executors again."""
    _show(ctx, _marked(ctx, name, "uncordon"), "takes executors again")


@click.command()
@click.argument("name", shell_complete=completing.nodes)
@click.option(
    "--grace",
    type=Bounded(click.FloatRange(0, MOST_GRACE)),
    metavar="SECONDS",
    help="Running tasks may go on so long, then they run again elsewhere (the cluster's grace time).",
)
@click.option("--wait/--no-wait", default=True, help="Until no executor is left (the default), or return at once.")
@click.option(
    "--timeout",
    type=SECONDS,
    metavar="SECONDS",
    help="Wait no longer than this; the node goes on draining (no limit).",
)
@where_options
@output_option
@click.pass_context
def drain(ctx: click.Context, name: str, grace: float | None, wait: bool, timeout: float | None) -> None:
    """Cordon a node and let its executors leave; wait until they are gone.

    Ctrl-C ends the waiting, not the draining: `flmctl node uncordon` does that.
    """
    from flame.cli.api import open_api
    from flame.cli.draining import executors_text, wait_until_empty

    settings = settings_of(ctx)
    with open_api(settings) as api:
        generation = api.cluster().generation if wait else 0
        found = api.mark_node(name, "drain", None if grace is None else round(grace * 1000))
        if not wait:
            left = found.status.executors
            _show(ctx, found, f"is draining; {executors_text(left)} left" if left else "is drained")
            return
    found = wait_until_empty(settings, name, generation, timeout)
    _show(ctx, found, "is drained")


def _marked(ctx: click.Context, name: str, mark: str) -> ty.Node:
    from flame.cli.api import open_api

    with open_api(settings_of(ctx)) as api:
        return api.mark_node(name, mark)


def _show(ctx: click.Context, found: ty.Node, what: str) -> None:
    from flame.cli.objects.nodes import NODES
    from flame.cli.output import show_one

    output = settings_of(ctx).output
    if output in ("table", "wide"):
        print(f"Node <{found.metadata.name}> {what}.")
    else:
        show_one(found, NODES, output)

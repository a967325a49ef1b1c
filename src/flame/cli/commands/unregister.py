"""flmctl unregister."""

from __future__ import annotations

import click

from flame.cli import completing
from flame.cli.options import all_options, settings_of


@click.command()
@click.option(
    "-a",
    "--application",
    "name",
    metavar="NAME",
    required=True,
    help="The application.",
    shell_complete=completing.applications,
)
@all_options
@click.pass_context
def unregister(ctx: click.Context, name: str) -> None:
    """Remove an application. It may have no open session; its closed ones go with it."""
    from flame.cli.api import open_api

    settings = settings_of(ctx)
    with open_api(settings) as api:
        api.unregister(name)
        print(name if settings.output == "name" else f"Application <{name}> was unregistered.")

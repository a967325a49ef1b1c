"""flmctl register."""

from __future__ import annotations

import click

from flame.cli.options import all_options, settings_of


@click.command()
@click.option("-f", "--file", "file", metavar="FILE", required=True, help="YAML documents, - for standard input.")
@all_options
@click.pass_context
def register(ctx: click.Context, file: str) -> None:
    """Register the applications of a file.

    All documents are checked before the first is sent.
    """
    from flame.cli.api import open_api
    from flame.cli.files import read_applications
    from flame.proto.values import application_spec_message

    applications = read_applications(file)
    settings = settings_of(ctx)
    with open_api(settings) as api:
        for name, spec in applications:
            api.register(name, application_spec_message(spec))
            print(name if settings.output == "name" else f"Application <{name}> was registered.")

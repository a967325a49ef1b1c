"""flmctl update."""

from __future__ import annotations

import click

from flame.cli.options import all_options, settings_of


@click.command()
@click.option("-f", "-a", "--file", "--application", "file", metavar="FILE", required=True, help="One YAML document.")
@all_options
@click.pass_context
def update(ctx: click.Context, file: str) -> None:
    """Replace the specification of an application.

    What the file leaves out goes back to its default. The application may have no open session.
    """
    from flame.cli.api import open_api
    from flame.cli.files import read_applications
    from flame.proto.values import application_spec_message

    applications = read_applications(file)
    if len(applications) > 1:
        raise click.UsageError(f"{file} holds {len(applications)} applications; update takes one", ctx)
    settings = settings_of(ctx)
    with open_api(settings) as api:
        for name, spec in applications:
            api.update(name, application_spec_message(spec))
            print(name if settings.output == "name" else f"Application <{name}> was updated.")

"""flmctl delete."""

from __future__ import annotations

import click

from flame.cli import completing
from flame.cli.options import all_options, settings_of
from flame.cli.session_options import session_option


@click.command()
@session_option(complete=completing.closed_sessions)
@all_options
@click.pass_context
def delete(ctx: click.Context, session_id: str) -> None:
    """Delete a closed session and its tasks."""
    from flame.cli.api import open_api
    from flame.cli.objects.sessions import session_kind
    from flame.cli.output import show_one

    settings = settings_of(ctx)
    with open_api(settings) as api:
        session = api.delete_session(session_id)
        if settings.output in ("table", "wide"):
            print(f"Session <{session.metadata.id}> was deleted.")
        else:
            show_one(session, session_kind(api.unit()), settings.output)

"""flmctl close."""

from __future__ import annotations

import click

from flame.cli import completing
from flame.cli.options import all_options, settings_of
from flame.cli.session_options import session_option


@click.command()
@session_option(complete=completing.open_sessions)
@click.option("--force", is_flag=True, help="Cancel running tasks too, instead of refusing.")
@all_options
@click.pass_context
def close(ctx: click.Context, session_id: str, force: bool) -> None:
    """Close a session; its pending tasks are cancelled."""
    from flame.cli.api import open_api
    from flame.cli.objects.sessions import session_kind
    from flame.cli.output import show_one

    settings = settings_of(ctx)
    with open_api(settings) as api:
        session = api.close_session(session_id, force=force)
        if settings.output in ("table", "wide"):
            print(f"Session <{session.metadata.id}> was closed.")
        else:
            show_one(session, session_kind(api.unit()), settings.output)

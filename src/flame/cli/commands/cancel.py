"""flmctl cancel."""

from __future__ import annotations

import click

from flame.cli import completing
from flame.cli.options import all_options, settings_of
from flame.cli.session_options import session_option


@click.command()
@session_option(complete=completing.open_sessions)
@click.option("-t", "--task", "tasks", multiple=True, metavar="IDS", help="Ids and ranges, such as 1,4-6.")
@click.option("--all", "everything", is_flag=True, help="Every task that is not finished.")
@click.option("--reason", metavar="TEXT", default="cancelled with flmctl", help="What the tasks' events will say.")
@all_options
@click.pass_context
def cancel(ctx: click.Context, session_id: str, tasks: tuple[str, ...], everything: bool, reason: str) -> None:
    """Cancel tasks of a session. Running ones are interrupted."""
    if bool(tasks) == everything:
        raise click.UsageError("choose one of -t IDS and --all", ctx)
    from flame.cli.api import open_api
    from flame.cli.filters import task_ids
    from flame.cli.objects.states import UNFINISHED
    from flame.cli.output import write_json, write_yaml

    chosen = task_ids(tasks)
    settings = settings_of(ctx)
    with open_api(settings) as api:
        if everything:
            chosen = [int(task.metadata.id) for task in api.tasks(session_id, UNFINISHED)]
        cancelled = sorted(api.cancel_tasks(session_id, chosen, reason)) if chosen else []
    if settings.output == "name":
        for task_id in cancelled:
            print(task_id)
    elif settings.output in ("json", "yaml"):
        (write_json if settings.output == "json" else write_yaml)({"session_id": session_id, "cancelled": cancelled})
    else:
        print(f"{len(cancelled):,} of {len(chosen):,} tasks were cancelled.")

"""flmctl view."""

from __future__ import annotations

import click

from flame.cli import completing
from flame.cli.options import all_options, settings_of
from flame.cli.session_options import session_option

# Tasks in the document of a session; `flmctl list -t` lists more.
TASKS_SHOWN = 1000


@click.command()
@click.option("-a", "--application", metavar="NAME", help="An application.", shell_complete=completing.applications)
@session_option(required=False, help_text="A session, or with -t one of its tasks.")
@click.option("-t", "--task", "task_id", metavar="ID", help="A task of the session.")
@click.option("-n", "--node", metavar="NAME", help="A node.", shell_complete=completing.nodes)
@click.option("-e", "--executor", metavar="ID", help="An executor.", shell_complete=completing.executors)
@click.option("-T", "--tenant", metavar="NAME", help="A tenant.", shell_complete=completing.tenants)
@click.option("--output-format", type=click.Choice(("table", "json", "yaml", "name")), hidden=True)
@all_options
@click.pass_context
def view(
    ctx: click.Context,
    application: str | None,
    session_id: str | None,
    task_id: str | None,
    node: str | None,
    executor: str | None,
    tenant: str | None,
    output_format: str | None,
) -> None:
    """Show one object in full."""
    chosen = [choice for choice in (application, session_id, node, executor, tenant) if choice is not None]
    if len(chosen) != 1 or (task_id is not None and session_id is None):
        raise click.UsageError("choose one of -a NAME, -s ID, -s ID -t ID, -n NAME, -e ID and -T NAME", ctx)
    from flame.cli.api import open_api
    from flame.cli.output import show_one

    settings = settings_of(ctx)
    output = output_format or settings.output
    with open_api(settings) as api:
        if application is not None:
            from flame.cli.objects.applications import APPLICATIONS

            show_one(api.application(application), APPLICATIONS, output)
        elif session_id is not None and task_id is not None:
            from flame.cli.objects.tasks import TASKS

            show_one(api.task(session_id, task_id), TASKS, output)
        elif session_id is not None:
            from flame.cli.objects.sessions import session_kind, with_tasks

            kind = session_kind(api.unit())
            if output in ("json", "yaml"):
                kind = with_tasks(kind, list(api.tasks(session_id, limit=TASKS_SHOWN)))
            show_one(api.session(session_id), kind, output)
        elif node is not None:
            from flame.cli.objects.nodes import NODES

            show_one(api.node(node), NODES, output)
        elif executor is not None:
            from flame.cli.objects.executors import EXECUTORS

            show_one(api.executor(executor), EXECUTORS, output)
        elif tenant is not None:
            from flame.cli.objects.tenants import tenant_kind

            show_one(api.tenant(tenant), tenant_kind(), output)

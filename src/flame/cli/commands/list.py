"""flmctl list."""

from __future__ import annotations

import sys
from itertools import islice

import click

from flame.cli import completing
from flame.cli.bounds import whole
from flame.cli.options import all_options, settings_of
from flame.cli.session_options import only_label_option

DEFAULT_LIMIT = 1000


@click.command("list")
@click.option("-a", "--application", "what", flag_value="application", help="Applications.")
@click.option("-s", "--session", "what", flag_value="session", help="Sessions.")
@click.option("-e", "--executor", "what", flag_value="executor", help="Executors.")
@click.option("-n", "--node", "what", flag_value="node", help="Nodes.")
@click.option("-T", "--tenant", "--tenants", "what", flag_value="tenant", help="Tenants.")
@click.option(
    "-t",
    "--tasks",
    "tasks_of",
    metavar="SESSION",
    help="Tasks of this session.",
    shell_complete=completing.sessions,
)
@click.option("--state", "states", multiple=True, metavar="STATE", help="Only sessions or tasks in this state.")
@click.option(
    "--app",
    metavar="NAME",
    default="",
    help="Only sessions of this application.",
    shell_complete=completing.applications,
)
@click.option(
    "--of-tenant",
    metavar="NAME",
    default="",
    help="Only sessions of this tenant.",
    shell_complete=completing.tenants,
)
@only_label_option("sessions")
@click.option(
    "--of-session",
    metavar="ID",
    default="",
    help="Only executors of this session.",
    shell_complete=completing.sessions,
)
@click.option(
    "--on-node", metavar="NAME", default="", help="Only executors on this node.", shell_complete=completing.nodes
)
@click.option(
    "--limit", type=whole(), metavar="N", default=DEFAULT_LIMIT, help="At most so many tasks (1000); 0 = all."
)
@all_options
@click.pass_context
def list_objects(
    ctx: click.Context,
    what: str | None,
    tasks_of: str | None,
    states: tuple[str, ...],
    app: str,
    of_tenant: str,
    labels: tuple[str, ...],
    of_session: str,
    on_node: str,
    limit: int,
) -> None:
    """List applications, sessions, tasks, executors, nodes or tenants."""
    if (what is None) == (tasks_of is None):
        raise click.UsageError("choose one of -a, -s, -e, -n, -T and -t SESSION", ctx)
    from flame.cli.api import open_api
    from flame.cli.filters import label_filter, state_filter
    from flame.cli.objects.states import SESSION_STATES, TASK_STATES
    from flame.cli.output import show_list

    settings = settings_of(ctx)
    session_states = state_filter(states, SESSION_STATES) if what == "session" else []
    task_states = state_filter(states, TASK_STATES) if tasks_of else []
    wanted = label_filter(labels)
    with open_api(settings) as api:
        if what == "application":
            from flame.cli.objects.applications import APPLICATIONS

            found = sorted(api.applications(), key=lambda entry: entry.metadata.name)
            show_list(found, APPLICATIONS, settings.output)
        elif what == "session":
            from flame.cli.objects.sessions import listing_order, session_kind
            from flame.model.tenants import DEFAULT_TENANT

            sessions = sorted(api.sessions(session_states, app, wanted), key=listing_order)
            if of_tenant:
                sessions = [entry for entry in sessions if (entry.spec.tenant or DEFAULT_TENANT) == of_tenant]
            show_list(sessions, session_kind(api.unit()), settings.output)
        elif what == "executor":
            from flame.cli.objects.executors import EXECUTORS

            executors = sorted(
                api.executors(of_session, on_node), key=lambda entry: (entry.spec.node, entry.metadata.id)
            )
            show_list(executors, EXECUTORS, settings.output)
        elif what == "node":
            from flame.cli.objects.nodes import NODES

            show_list(sorted(api.nodes(), key=lambda entry: entry.metadata.name), NODES, settings.output)
        elif what == "tenant":
            from flame.cli.objects.tenants import tenant_kind, tree

            tenants, depths = tree(api.tenants())
            show_list(tenants, tenant_kind(depths), settings.output)
        elif tasks_of is not None:
            from flame.cli.objects.tasks import TASKS

            tasks = list(api.tasks(tasks_of, task_states, limit + 1 if limit else 0))
            shown = list(islice(tasks, limit)) if limit else tasks
            show_list(shown, TASKS, settings.output)
            if len(tasks) > len(shown):
                print(f"only the first {limit} tasks are listed; --limit 0 lists all", file=sys.stderr)

"""flmctl explain."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from flame.cli import completing
from flame.cli.options import all_options, settings_of
from flame.cli.session_options import session_option

if TYPE_CHECKING:
    from flame.cli.api import Api
    from flame.proto import types_pb2 as ty

_FORMS = "session ID, task SESSION ID and task SESSION/ID"


@click.command()
@click.argument("what", nargs=-1, metavar="[session ID | task SESSION ID]", shell_complete=completing.what_to_explain)
@session_option(required=False, complete=completing.open_sessions)
@click.option("-t", "--task", "task_id", metavar="ID", help="One of its tasks.")
@all_options
@click.pass_context
def explain(ctx: click.Context, what: tuple[str, ...], session_id: str | None, task_id: str | None) -> None:
    """Say why a session or a task waits, and what happened to it.

    Without arguments: every session of the cluster that waits for executors, the longest first.
    """
    session_id, task_id = _chosen(ctx, what, session_id, task_id)
    from flame.cli.api import open_api
    from flame.cli.objects.explanations import explanation_document, explanation_lines
    from flame.cli.output import write_json, write_yaml

    settings = settings_of(ctx)
    as_document = settings.output in ("json", "yaml")
    with open_api(settings) as api:
        if session_id:
            answer = api.explain(session_id, task_id)
            document, lines = explanation_document(answer), explanation_lines(answer)
        elif as_document:
            document, lines = _cluster_document(api), []
        else:
            document, lines = {}, _cluster_lines(api)
    if as_document:
        (write_json if settings.output == "json" else write_yaml)(document)
    else:
        print("\n".join(lines))


def _chosen(ctx: click.Context, what: tuple[str, ...], session_id: str | None, task_id: str | None) -> tuple[str, str]:
    """The session and the task that are meant; both empty = the cluster. Raises UsageError."""
    if not what:
        if task_id is not None and session_id is None:
            raise click.UsageError("-t needs the session as well: -s ID", ctx)
        return session_id or "", task_id or ""
    kind, *names = what
    if kind not in ("session", "task"):
        from flame.config.document import nearest

        raise click.UsageError(f"can't explain {kind!r}; {nearest(kind, ('session', 'task'))}", ctx)
    if kind == "session" and len(names) == 1 and session_id is None and task_id is None:
        return names[0], ""
    if kind == "task" and task_id is None:
        if len(names) == 1 and session_id is not None:
            return session_id, names[0]
        if len(names) == 1 and "/" in names[0]:
            names = list(names[0].rpartition("/")[::2])
        if len(names) == 2 and session_id is None:
            return names[0], names[1]
    raise click.UsageError(f"write one of {_FORMS}", ctx)


def _waiting(api: Api) -> tuple[list[ty.Session], int]:
    """The open sessions that wait for executors, the longest first, and how many sessions are open."""
    from flame.cli.objects.sessions import waits
    from flame.proto import types_pb2 as ty

    sessions = list(api.sessions([ty.SessionState.Open]))
    found = [entry for entry in sessions if waits(entry)]
    # A wait whose beginning is not known is listed last.
    found.sort(key=lambda entry: (not entry.status.pending_since, entry.status.pending_since, entry.metadata.id))
    return found, len(sessions)


def _summary(count: int, of: int) -> str:
    if not count:
        return f"none of {of} open session{'' if of == 1 else 's'} waits for executors"
    return f"{count} of {of} open session{'' if of == 1 else 's'} wait{'s' if count == 1 else ''} for executors"


def _cluster_lines(api: Api) -> list[str]:
    from flame.cli.objects.nodes import NODES
    from flame.cli.objects.sessions import waiting
    from flame.cli.objects.states import node_status
    from flame.cli.output import table

    found, total = _waiting(api)
    info = api.cluster()
    lines = [_summary(len(found), total)]
    if info.read_only:
        lines.append(f"READ ONLY: {info.read_only_reason}")
    if found:
        rows = [
            [
                entry.metadata.id,
                entry.spec.tenant or "-",
                f"{entry.status.executors}/{entry.status.wanted}",
                waiting(entry) or "-",
                entry.status.pending_reason or _first_reason(api, entry.metadata.id),
            ]
            for entry in found
        ]
        lines += ["", *table(("Session", "Tenant", "Executors", "Waiting", "Why"), rows)]
    away = [node for node in api.nodes() if node_status(node) != "Ready"]
    if away:
        lines += ["", "Nodes that take no executors:"]
        lines += [f"  {NODES.name(node)}  {node_status(node)}" for node in away]
    if found:
        lines += ["", "flmctl explain session ID says more."]
    return lines


def _first_reason(api: Api, session_id: str) -> str:
    """Of a session that has no tasks yet: its executors are wanted in advance."""
    from flame.model.errors import NotFoundError

    try:
        reasons = api.explain(session_id).reasons
    except NotFoundError:
        return "it was deleted meanwhile"
    return reasons[0].message if reasons else "-"


def _cluster_document(api: Api) -> dict[str, object]:
    from flame.cli.objects.explanations import explanation_document
    from flame.cli.objects.nodes import NODES
    from flame.cli.objects.states import node_status
    from flame.cli.times import utc_time
    from flame.model.errors import NotFoundError

    found, total = _waiting(api)
    info = api.cluster()
    sessions: list[dict[str, object]] = []
    for entry in found:
        try:
            answer = api.explain(entry.metadata.id)
        except NotFoundError:
            continue  # it was deleted meanwhile
        sessions.append(
            {
                "id": entry.metadata.id,
                "tenant": entry.spec.tenant or None,
                "executors": entry.status.executors,
                "wanted": entry.status.wanted,
                "pending_reason": entry.status.pending_reason or None,
                "pending_since": utc_time(entry.status.pending_since),
                **explanation_document(answer),
            }
        )
    return {
        "summary": _summary(len(found), total),
        "read_only": info.read_only_reason if info.read_only else None,
        "policies": list(info.policies),
        "sessions": sessions,
        "nodes": [NODES.document(node) for node in api.nodes() if node_status(node) != "Ready"],
    }

"""flmctl create."""

from __future__ import annotations

import os
import string
from pathlib import Path

import click

from flame.cli import completing
from flame.cli.bounds import whole
from flame.cli.options import all_options, settings_of
from flame.cli.session_options import (
    common_data_option,
    isolation_option,
    label_option,
    limit_option,
    limit_texts,
    memory_option,
    network_option,
    priority_option,
    readable_option,
    resreq_option,
    tenant_option,
)

_LETTERS = string.ascii_letters + string.digits


@click.command()
@click.option(
    "-a",
    "--app",
    "application",
    metavar="NAME",
    required=True,
    help="The application of the session.",
    shell_complete=completing.applications,
)
@tenant_option
@priority_option("-p")
@resreq_option("-r")
@click.option("--id", "session_id", metavar="ID", help="The id (the application's name and six letters).")
@click.option("--min-instances", type=whole(), metavar="N", default=0, help="Executors to keep (0).")
@click.option("--max-instances", type=whole(1), metavar="N", help="Executors at most (no limit).")
@click.option("--gang", is_flag=True, help="--min-instances executors at once or none.")
@click.option("--topology", metavar="WISH", default="", help="Of a gang: same-node, spread or same:LABEL.")
@click.option(
    "--on-member-loss",
    type=click.Choice(("restart", "fail")),
    help="Of a gang that loses an executor: all of it starts again (restart), or its tasks fail.",
)
@click.option("--selector", multiple=True, metavar="KEY=VALUE", help="A label that a node must have.")
@click.option("--toleration", multiple=True, metavar="KEY[=VALUE]", help="A taint of nodes that it puts up with.")
@click.option(
    "--prefer-node",
    "prefer_nodes",
    multiple=True,
    metavar="NAME",
    help="A node that holds its data.",
    shell_complete=completing.nodes,
)
@click.option("--max-running-per-key", type=whole(1), metavar="N", help="Tasks of one key at a time (1).")
@isolation_option("as its application says, or stricter")
@network_option("as its application says")
@readable_option
@limit_option
@memory_option
@common_data_option()
@click.option(
    "--common-data-file", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="The same from a file."
)
@label_option
@click.option("--retention", type=whole(), metavar="SECONDS", help="Readable so long after it is closed.")
@all_options
@click.pass_context
def create(
    ctx: click.Context,
    application: str,
    tenant: str,
    priority: int,
    resreq: str | None,
    session_id: str | None,
    min_instances: int,
    max_instances: int | None,
    gang: bool,
    topology: str,
    on_member_loss: str | None,
    selector: tuple[str, ...],
    toleration: tuple[str, ...],
    prefer_nodes: tuple[str, ...],
    max_running_per_key: int | None,
    isolation: str | None,
    network: str | None,
    readable_objects: tuple[str, ...],
    limits: tuple[str, ...],
    memory: str | None,
    common_data: str | None,
    common_data_file: Path | None,
    labels: tuple[str, ...],
    retention: int | None,
) -> None:
    """Create a session."""
    if common_data is not None and common_data_file is not None:
        raise click.UsageError("choose one of --common-data and --common-data-file", ctx)
    from flame.cli.api import open_api
    from flame.cli.filters import label_filter, tolerations
    from flame.cli.objects.sessions import session_kind
    from flame.cli.output import show_one
    from flame.model.isolation import parse_limits
    from flame.model.resources import parse_resources
    from flame.proto import types_pb2 as ty
    from flame.proto.values import limits_message, resources_message

    asked = limit_texts(limits, memory)
    data = common_data.encode() if common_data is not None else None
    if common_data_file is not None:
        data = _read(common_data_file)
    spec = ty.SessionSpec(
        application=application,
        priority=priority,
        min_instances=min_instances,
        max_instances=max_instances,
        batch_size=1,
        common_data=data,
        labels=label_filter(labels),
        tenant=tenant,
        gang=gang,
        topology=topology,
        on_member_loss=on_member_loss or "",
        selector=label_filter(selector, "selector"),
        tolerations=tolerations(toleration),
        prefer_nodes=prefer_nodes,
        max_running_per_key=max_running_per_key or 0,
        isolation=isolation or "",
        network=network or "",
        readable_objects=readable_objects,
        limits=limits_message(parse_limits(asked)) if asked else None,
        retention_s=retention,
        resreq=resources_message(parse_resources(resreq)) if resreq is not None else None,
    )
    settings = settings_of(ctx)
    with open_api(settings) as api:
        session = api.create_session(session_id or short_name(application), spec)
        if settings.output in ("table", "wide"):
            print(f"Session <{session.metadata.id}> was created.")
        else:
            show_one(session, session_kind(api.unit()), settings.output)


def short_name(prefix: str) -> str:
    """The prefix and six random letters or digits."""
    return f"{prefix}-{''.join(_LETTERS[byte % len(_LETTERS)] for byte in os.urandom(6))}"


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise click.UsageError(f"{file} can't be read: {error.strerror}") from None

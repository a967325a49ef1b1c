"""flmctl create."""

from __future__ import annotations

import os
import string
from pathlib import Path

import click
import msgspec

from flame.cli import completing
from flame.cli.options import all_options, settings_of
from flame.model.isolation import LEVELS
from flame.model.network import FORM as NETWORK

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
@click.option(
    "--tenant", metavar="NAME", default="", help="Whose share it uses (default).", shell_complete=completing.tenants
)
@click.option("-p", "--priority", type=click.IntRange(0, 2**32 - 1), default=0, help="Larger goes first (0).")
@click.option("-r", "--resreq", metavar="TEXT", help="What one executor needs, such as cpu=1,mem=2g,gpu=1.")
@click.option("--id", "session_id", metavar="ID", help="The id (default: the application's name and six letters).")
@click.option("--min-instances", type=click.IntRange(0, 2**32 - 1), default=0, help="Executors to keep (0).")
@click.option("--max-instances", type=click.IntRange(1, 2**32 - 1), help="Executors at most (no limit).")
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
@click.option(
    "--max-running-per-key", type=click.IntRange(1, 2**32 - 1), metavar="N", help="Tasks of one key at a time (1)."
)
@click.option("--isolation", type=click.Choice(LEVELS), help="Its application's, or a stricter one.")
@click.option("--network", metavar=NETWORK, help="What its instances may reach.")
@click.option(
    "--limit",
    "limits",
    multiple=True,
    metavar="NAME=VALUE",
    help="What an instance may use: memory=256Mi, pids=64, cpu=0.5, disk=64Mi, wall=600, output=10Mi.",
)
@click.option("--common-data", metavar="TEXT", help="Data that every instance gets when it enters the session.")
@click.option(
    "--common-data-file", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="The same from a file."
)
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="A label of the session.")
@click.option(
    "--retention", type=click.IntRange(0, 2**32 - 1), metavar="SECONDS", help="Readable so long after it is closed."
)
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
    limits: tuple[str, ...],
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
    from flame.cli.objects.resources import requirement
    from flame.cli.objects.sessions import session_kind
    from flame.cli.output import show_one
    from flame.model.isolation import parse_limits
    from flame.model.resources import parse_resources
    from flame.proto import types_pb2 as ty

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
        limits=ty.Limits(**msgspec.structs.asdict(parse_limits(limits))) if limits else None,
        retention_s=retention,
        resreq=requirement(parse_resources(resreq)) if resreq is not None else None,
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

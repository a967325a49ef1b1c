"""flmadm status."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from flame.cli.options import Settings, output_option, settings_of
from flame.model.errors import FlameError

if TYPE_CHECKING:
    from flame.local.registry import ClusterRecord
    from flame.proto import frontend_pb2 as fe


@dataclass(frozen=True)
class Status:
    """What a running cluster says of itself; `problem` when it did not answer."""

    record: ClusterRecord
    info: fe.ClusterInfo | None = None
    nodes: int = 0
    executors: int = 0
    open_sessions: int = 0
    sessions: int = 0
    problem: str = ""

    @property
    def state(self) -> str:
        """One word for the table."""
        if self.info is None:
            return "NotResponding"
        return "ReadOnly" if self.info.read_only else "Running"


@click.command()
@click.option("--name", metavar="NAME", help="Only this one.")
@output_option
@click.pass_context
def status(ctx: click.Context, name: str | None) -> int:
    """Show the local clusters that run. The exit code is 4 when there is none."""
    from flame.cli.output import Column, Kind, show_list
    from flame.cli.times import span
    from flame.local.launch import running_cluster
    from flame.local.registry import running

    output = settings_of(ctx).output
    records = [running_cluster(name)] if name is not None else running()
    if not records and output in ("table", "wide"):
        print("No local cluster is running; start one with flmadm up --detach.")
        return 4
    kind = Kind[Status](
        columns=(
            Column("Name", lambda s: s.record.name),
            Column("State", lambda s: s.state),
            Column("Nodes", lambda s: s.nodes),
            Column("Executors", lambda s: s.executors),
            Column("Sessions", lambda s: f"{s.open_sessions} open of {s.sessions}"),
            Column("Up", lambda s: span(time.time() - s.record.started)),
            Column("Endpoint", lambda s: s.record.endpoint),
            Column("gRPC", lambda s: s.record.listen),
            Column("Cache", lambda s: s.record.cache or None, wide=True),
            Column("PID", lambda s: s.record.pid, wide=True),
            Column("Storage", lambda s: s.record.storage, wide=True),
            Column("Log", lambda s: s.record.log, wide=True),
        ),
        document=_document,
        name=lambda s: s.record.name,
        page=lambda s: [],
    )
    found = [_ask(record) for record in records]
    show_list(found, kind, output)
    return 0 if found and all(entry.info is not None for entry in found) else 4 if not found else 7


def _ask(record: ClusterRecord) -> Status:
    from flame.cli.api import open_api
    from flame.proto import types_pb2 as ty

    try:
        with open_api(Settings(endpoint=record.endpoint, timeout=5.0)) as api:
            sessions = list(api.sessions())
            return Status(
                record,
                api.cluster(),
                nodes=len(api.nodes()),
                executors=len(api.executors()),
                open_sessions=sum(entry.status.state == ty.SessionState.Open for entry in sessions),
                sessions=len(sessions),
            )
    except FlameError as error:
        return Status(record, problem=error.message)


def _document(entry: Status) -> dict[str, object]:
    record, info = entry.record, entry.info
    return {
        "name": record.name,
        "state": entry.state,
        "problem": entry.problem or (info.read_only_reason if info is not None else "") or None,
        "pid": record.pid,
        "endpoint": record.endpoint,
        "grpc": record.listen,
        "cache": record.cache or None,
        "storage": record.storage,
        "log": record.log,
        "data": record.data,
        "temporary": record.temporary,
        "version": record.version,
        "generation": info.generation if info is not None else None,
        "nodes": entry.nodes,
        "executors": entry.executors,
        "open_sessions": entry.open_sessions,
        "sessions": entry.sessions,
    }

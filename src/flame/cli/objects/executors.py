"""Executors on the screen."""

from __future__ import annotations

import time

from flame.cli.objects.resources import request_text, resources_document
from flame.cli.objects.states import executor_state, shim_name
from flame.cli.output import Column, Document, Kind
from flame.cli.times import local_time, span, utc_time
from flame.proto import types_pb2 as ty


def _document(executor: ty.Executor) -> Document:
    spec, status = executor.spec, executor.status
    return {
        "id": executor.metadata.id,
        "state": executor_state(executor),
        "session_id": status.session_id or None,
        "node": spec.node,
        "shim": shim_name(spec.shim),
        "resreq": resources_document(spec.resreq),
        "since": utc_time(status.since),
        "outstanding": status.outstanding,
        "pid": status.pid or None,
        "gpus": list(status.gpus),
        "gang": {
            "rank": status.gang.rank,
            "world_size": status.gang.world_size,
            "addresses": list(status.gang.addresses),
        }
        if status.HasField("gang")
        else None,
    }


def _page(executor: ty.Executor) -> list[tuple[str, object]]:
    spec, status = executor.spec, executor.status
    return [
        ("Executor", executor.metadata.id),
        ("State", f"{executor_state(executor)} since {local_time(status.since)}"),
        ("Session", status.session_id),
        ("Node", spec.node),
        ("Shim", shim_name(spec.shim)),
        ("Resources", request_text(spec.resreq)),
        ("GPUs", _gpus(executor)),
        ("Gang", _gang_text(status.gang) if status.HasField("gang") else None),
        ("Tasks", status.outstanding),
        ("Process", status.pid or None),
    ]


def _gpus(executor: ty.Executor) -> str:
    return ",".join(map(str, executor.status.gpus))


def _rank(executor: ty.Executor) -> str:
    gang = executor.status.gang
    return f"{gang.rank}/{gang.world_size}" if executor.status.HasField("gang") else ""


def _gang_text(gang: ty.Gang) -> str:
    members = [f"rank {rank} at {address}" for rank, address in enumerate(gang.addresses)]
    return "\n".join([f"rank {gang.rank} of {gang.world_size}", *members])


def _since(executor: ty.Executor) -> str:
    return span(time.time() - executor.status.since / 1000) if executor.status.since else "-"


EXECUTORS = Kind[ty.Executor](
    columns=(
        Column("ID", lambda e: e.metadata.id),
        Column("State", executor_state),
        Column("Session", lambda e: e.status.session_id),
        Column("Node", lambda e: e.spec.node),
        Column("Tasks", lambda e: e.status.outstanding, wide=True),
        Column("Since", _since, wide=True),
        Column("Process", lambda e: e.status.pid or None, wide=True),
        Column("Resources", lambda e: request_text(e.spec.resreq), wide=True),
        Column("GPUs", _gpus, wide=True),
        Column("Gang", _rank, wide=True),
    ),
    document=_document,
    name=lambda e: e.metadata.id,
    page=_page,
)

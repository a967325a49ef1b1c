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
        ("Tasks", status.outstanding),
        ("Process", status.pid or None),
    ]


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
    ),
    document=_document,
    name=lambda e: e.metadata.id,
    page=_page,
)

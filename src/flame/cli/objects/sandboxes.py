"""Sandboxes on the screen."""

from __future__ import annotations

import time

from flame.cli.objects.resources import limits_document, request_text, resources_document
from flame.cli.output import Column, Document, Kind
from flame.cli.times import local_time, span, utc_time
from flame.proto import types_pb2 as ty


def sandbox_state(session: ty.Session) -> str:
    """Closed, Starting (it waits for a place on a node) or Running."""
    if session.status.state == ty.SessionState.Closed:
        return "Closed"
    return "Running" if session.status.executors else "Starting"


def _document(session: ty.Session) -> Document:
    spec, status = session.spec, session.status
    return {
        "id": session.metadata.id,
        "state": sandbox_state(session),
        "isolation": spec.isolation or "none",
        "network": _network(session),
        "limits": limits_document(spec.limits),
        "resreq": resources_document(spec.resreq),
        "idle_timeout": spec.idle_timeout_s or None,
        "tenant": spec.tenant or None,
        "labels": dict(sorted(spec.labels.items())),
        "creation_time": utc_time(status.creation_time),
        "completion_time": utc_time(status.completion_time),
        "pending_reason": status.pending_reason or None,
    }


def _page(session: ty.Session) -> list[tuple[str, object]]:
    spec = session.spec
    return [
        ("Sandbox", session.metadata.id),
        ("State", sandbox_state(session)),
        ("Isolation", spec.isolation or "none"),
        ("Network", _network(session)),
        ("Limits", _limits(session)),
        ("Resources", request_text(spec.resreq)),
        ("Closed After", _idle(session)),
        ("Tenant", spec.tenant),
        ("Labels", _labels(session)),
        ("Creation Time", local_time(session.status.creation_time)),
        ("Completion Time", local_time(session.status.completion_time)),
        ("Waiting", session.status.pending_reason),
    ]


def _id(session: ty.Session) -> str:
    return session.metadata.id


def _network(session: ty.Session) -> str:
    return session.spec.network or ("none" if session.spec.isolation not in ("", "none") else "host")


def _idle(session: ty.Session) -> str:
    return f"{span(session.spec.idle_timeout_s)} idle" if session.spec.idle_timeout_s else ""


def _age(session: ty.Session) -> str:
    return span(time.time() - session.status.creation_time / 1000) if session.status.creation_time else ""


def _labels(session: ty.Session) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(session.spec.labels.items()))


def _limits(session: ty.Session) -> str:
    return ", ".join(f"{name}={value}" for name, value in limits_document(session.spec.limits).items())


SANDBOXES = Kind[ty.Session](
    columns=(
        Column("ID", _id),
        Column("State", sandbox_state),
        Column("Isolation", lambda s: s.spec.isolation or "none"),
        Column("Network", _network),
        Column("Closed After", _idle),
        Column("Created", lambda s: local_time(s.status.creation_time)),
        Column("Age", _age, wide=True),
        Column("Tenant", lambda s: s.spec.tenant, wide=True),
        Column("Resources", lambda s: request_text(s.spec.resreq), wide=True),
        Column("Limits", _limits, wide=True),
        Column("Labels", _labels, wide=True),
        Column("Waiting", lambda s: s.status.pending_reason, wide=True),
    ),
    document=_document,
    name=_id,
    page=_page,
)

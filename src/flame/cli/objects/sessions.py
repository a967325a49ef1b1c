"""Sessions on the screen."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from flame.cli.objects.events import event_document, event_lines
from flame.cli.objects.resources import (
    limits_document,
    limits_text,
    request_text,
    resources_document,
    used_text,
)
from flame.cli.objects.states import session_state
from flame.cli.objects.tasks import TASKS
from flame.cli.output import Column, Document, Kind, bytes_document
from flame.cli.times import local_time, span, utc_time
from flame.proto import types_pb2 as ty
from flame.proto.values import resources_of


def session_kind(unit: ty.ResourceRequirement) -> Kind[ty.Session]:
    """Sessions of a cluster with this unit request."""

    def slots(session: ty.Session) -> int:
        return resources_of(session.spec.resreq).count_in(resources_of(unit))

    def document(session: ty.Session) -> Document:
        spec, status = session.spec, session.status
        return {
            "id": session.metadata.id,
            "application": spec.application,
            "state": session_state(session),
            "slots": slots(session),
            "resreq": resources_document(spec.resreq),
            "priority": spec.priority,
            "min_instances": spec.min_instances,
            "max_instances": spec.max_instances if spec.HasField("max_instances") else None,
            "tenant": spec.tenant or None,
            "labels": dict(spec.labels),
            "gang": spec.gang,
            "topology": spec.topology or None,
            "on_member_loss": spec.on_member_loss or None,
            "selector": dict(sorted(spec.selector.items())),
            "tolerations": list(spec.tolerations),
            "prefer_nodes": list(spec.prefer_nodes),
            "max_running_per_key": spec.max_running_per_key or 1,
            **_apart(spec, limits_document(spec.limits)),
            **({"readable_objects": list(spec.readable_objects)} if spec.readable_objects else {}),
            "creation_time": utc_time(status.creation_time),
            "completion_time": utc_time(status.completion_time),
            "pending": status.pending,
            "running": status.running,
            "succeed": status.succeed,
            "failed": status.failed,
            "cancelled": status.cancelled,
            "executors": status.executors,
            "wanted": status.wanted,
            "pending_reason": status.pending_reason or None,
            "pending_since": utc_time(status.pending_since),
            "used": {
                "cpu_ms": status.cpu_ms,
                "peak_memory": status.peak_memory,
                "written": status.written,
                "sent": status.sent,
                "received": status.received,
            },
            "common_data": bytes_document(spec.common_data if spec.HasField("common_data") else None),
            "events": [event_document(event) for event in status.events],
        }

    def about(session: ty.Session) -> list[tuple[str, object]]:
        spec, status = session.spec, session.status
        most = spec.max_instances if spec.HasField("max_instances") else "unlimited"
        rows: list[tuple[str, object]] = [
            ("Session", session.metadata.id),
            ("Application", spec.application),
            ("State", session_state(session)),
            ("Resources", f"{request_text(spec.resreq)} ({slots(session)} slot{'' if slots(session) == 1 else 's'})"),
            ("Priority", spec.priority),
            ("Instances", f"{status.executors} now, {status.wanted} wanted, {spec.min_instances} to {most}"),
            ("Tenant", spec.tenant),
            ("Labels", _pairs(spec.labels)),
            *_placement(spec),
            *((name.capitalize(), value) for name, value in _apart(spec, limits_text(spec.limits)).items()),
            *([("Reads Objects", ", ".join(spec.readable_objects))] if spec.readable_objects else []),
            ("Creation Time", local_time(status.creation_time)),
            ("Completion Time", local_time(status.completion_time)),
            ("Tasks", counts_text(status)),
        ]
        used = used_text(status.cpu_ms, status, status.written)
        if used:
            rows.append(("Used", used))
        if status.pending_reason:
            rows.append(("Waiting", status.pending_reason))
        if status.pending_since:
            rows.append(("Waiting Since", f"{local_time(status.pending_since)} ({waiting(session)})"))
        rows.append(("Events", event_lines(status.events)))
        return rows

    return Kind[ty.Session](
        columns=(
            Column("ID", _id),
            Column("State", session_state),
            Column("App", lambda s: s.spec.application),
            Column("Slots", slots),
            Column("Priority", lambda s: s.spec.priority),
            Column("Pending", lambda s: s.status.pending),
            Column("Running", lambda s: s.status.running),
            Column("Succeed", lambda s: s.status.succeed),
            Column("Failed", lambda s: s.status.failed),
            Column("Created", lambda s: local_time(s.status.creation_time)),
            Column("Cancelled", lambda s: s.status.cancelled, wide=True),
            Column("Resources", lambda s: request_text(s.spec.resreq), wide=True),
            Column("Age", _age, wide=True),
            Column("Tenant", lambda s: s.spec.tenant, wide=True),
            Column("Executors", lambda s: s.status.executors, wide=True),
            Column("Wanted", lambda s: s.status.wanted, wide=True),
            Column("Waiting", waiting, wide=True),
            Column("Reason", lambda s: s.status.pending_reason, wide=True),
        ),
        document=document,
        name=_id,
        page=about,
    )


def with_tasks(kind: Kind[ty.Session], tasks: Sequence[ty.Task]) -> Kind[ty.Session]:
    """The same, with these tasks in the document."""

    def document(session: ty.Session) -> Document:
        return {**kind.document(session), "tasks": [TASKS.document(task) for task in tasks]}

    return replace(kind, document=document)


def counts_text(status: ty.SessionStatus) -> str:
    """The counters of a session in one line."""
    return (
        f"{status.pending} pending, {status.running} running, {status.succeed} succeed, "
        f"{status.failed} failed, {status.cancelled} cancelled"
    )


def waits(session: ty.Session) -> bool:
    """Whether it lacks executors that it could use."""
    status = session.status
    return bool(status.pending_reason or status.pending_since or status.executors < status.wanted)


def waiting(session: ty.Session) -> str:
    """How long it has waited for executors; empty when it does not, or when that is not known."""
    since = session.status.pending_since
    return span(time.time() - since / 1000) if since else ""


def listing_order(session: ty.Session) -> tuple[int, int, str]:
    """Open sessions first, then the oldest."""
    return (session.status.state, session.status.creation_time, session.metadata.id)


def _apart(spec: ty.SessionSpec, limits: object) -> dict[str, Any]:
    """What it asks for beside what its application does; nothing where it does not."""
    found = {"isolation": spec.isolation, "network": spec.network, "limits": limits}
    return {name: value for name, value in found.items() if value}


def _placement(spec: ty.SessionSpec) -> list[tuple[str, object]]:
    """Where its executors may go, as far as the session says something about it."""
    rows: list[tuple[str, object]] = []
    if spec.gang:
        where = f", {spec.topology}" if spec.topology else ""
        loss = "fails" if spec.on_member_loss == "fail" else "starts again"
        rows.append(("Gang", f"{spec.min_instances} together{where}; {loss} when it loses one"))
    if spec.selector:
        rows.append(("Selector", _pairs(spec.selector)))
    if spec.tolerations:
        rows.append(("Tolerations", ", ".join(spec.tolerations)))
    if spec.prefer_nodes:
        rows.append(("Prefers Nodes", ", ".join(spec.prefer_nodes)))
    if spec.max_running_per_key:
        rows.append(("Per Key", f"at most {spec.max_running_per_key} running"))
    return rows


def _pairs(labels: Mapping[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(labels.items()))


def _id(session: ty.Session) -> str:
    return session.metadata.id


def _age(session: ty.Session) -> str:
    return span(time.time() - session.status.creation_time / 1000) if session.status.creation_time else "-"

"""Tasks on the screen."""

from __future__ import annotations

import time

from flame.cli.objects.events import event_document, event_lines
from flame.cli.objects.resources import used_text
from flame.cli.objects.states import TERMINAL, task_state
from flame.cli.output import Column, Document, Kind, bytes_document
from flame.cli.times import local_time, span, utc_time
from flame.proto import types_pb2 as ty


def _document(task: ty.Task) -> Document:
    spec, status = task.spec, task.status
    document: Document = {
        "id": int(task.metadata.id),
        "session_id": spec.session_id,
        "state": task_state(status.state),
        "attempt": status.attempt,
        "executor_id": status.executor_id or None,
        "creation_time": utc_time(status.creation_time),
        "completion_time": utc_time(status.completion_time),
        "input": bytes_document(spec.input if spec.HasField("input") else None),
        "output": bytes_document(spec.output if spec.HasField("output") else None),
        "events": [event_document(event) for event in status.events],
    }
    if status.peak_memory:
        document["cpu_us"], document["peak_memory"] = status.cpu_us, status.peak_memory
    if status.sent or status.received:
        document["sent"], document["received"] = status.sent, status.received
    if spec.HasField("options"):
        options = spec.options
        document["options"] = {
            "timeout_ms": options.timeout_ms,
            "max_retries": options.max_retries if options.HasField("max_retries") else None,
            "priority": options.priority,
            "idempotency_key": options.idempotency_key or None,
            "labels": dict(options.labels),
            "deadline_ms": options.deadline_ms,
            "retry_delay_ms": options.retry_delay_ms,
            "retry_max_delay_ms": options.retry_max_delay_ms,
            "key": options.key or None,
        }
    return document


def _page(task: ty.Task) -> list[tuple[str, object]]:
    spec, status = task.spec, task.status
    return [
        ("Task", task.metadata.id),
        ("Session", spec.session_id),
        ("State", task_state(status.state)),
        ("Attempt", status.attempt),
        ("Executor", status.executor_id),
        ("Creation Time", local_time(status.creation_time)),
        ("Completion Time", local_time(status.completion_time)),
        ("Input", payload_text(spec.input if spec.HasField("input") else None)),
        ("Output", payload_text(spec.output if spec.HasField("output") else None)),
        ("Used", used_text(status.cpu_us / 1000, status)),
        ("Events", event_lines(status.events)),
    ]


def payload_text(data: bytes | None, most: int = 200) -> str:
    """A payload for reading: its start as text, or how many bytes it has when it is none."""
    if data is None:
        return "-"
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return f"{len(data)} bytes (not text; -o json shows them)"
    shown = text.encode("unicode_escape", "replace").decode("ascii") if not text.isprintable() else text
    return shown if len(shown) <= most else f"{shown[:most]}... ({len(data)} bytes)"


def message_of(task: ty.Task) -> str:
    """Why a task failed or was cancelled: the last event that says so."""
    for event in reversed(task.status.events):
        if event.code in (ty.TaskState.Failed, ty.TaskState.Cancelled) and event.message:
            return event.message
    return ""


def _took(task: ty.Task) -> str:
    status = task.status
    end = status.completion_time / 1000 if status.state in TERMINAL else time.time()
    return span(end - status.creation_time / 1000) if status.creation_time else "-"


TASKS = Kind[ty.Task](
    columns=(
        Column("ID", lambda t: t.metadata.id),
        Column("State", lambda t: task_state(t.status.state)),
        Column("Attempt", lambda t: t.status.attempt),
        Column("Executor", lambda t: t.status.executor_id),
        Column("Created", lambda t: local_time(t.status.creation_time)),
        Column("Completed", lambda t: local_time(t.status.completion_time)),
        Column("Age", _took, wide=True),
        Column("Message", message_of, wide=True),
    ),
    document=_document,
    name=lambda t: t.metadata.id,
    page=_page,
)

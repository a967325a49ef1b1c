"""Recorded events of sessions and tasks."""

from __future__ import annotations

from collections.abc import Iterable

from flame.cli.output import Document
from flame.cli.times import local_time, utc_time
from flame.proto import types_pb2 as ty


def event_lines(events: Iterable[ty.Event]) -> str:
    """One line each, oldest first."""
    return "\n".join(f"{local_time(event.creation_time)}  {event.message} ({event.code})" for event in events)


def event_document(event: ty.Event) -> Document:
    return {"code": event.code, "message": event.message, "creation_time": utc_time(event.creation_time)}

"""Applications on the screen, and as the documents that `flmctl register` reads."""

from __future__ import annotations

import json
from typing import Any, cast

from flame.cli.objects.resources import limits_document, limits_text
from flame.cli.objects.states import application_state, shim_name
from flame.cli.output import Column, Document, Kind
from flame.cli.times import local_time, span, utc_time
from flame.model.specs import DEFAULT_DELAY_RELEASE, DEFAULT_MAX_INSTANCES
from flame.proto import types_pb2 as ty

_TEXTS = ("image", "description", "command", "working_directory", "url", "installer")


def _document(application: ty.Application) -> Document:
    spec = application.spec
    body: Document = {"shim": shim_name(spec.shim)}
    body.update({name: getattr(spec, name) for name in _TEXTS if spec.HasField(cast("Any", name))})
    if spec.labels:
        body["labels"] = list(spec.labels)
    if spec.arguments:
        body["arguments"] = list(spec.arguments)
    if spec.environments:
        body["environments"] = {entry.name: entry.value for entry in spec.environments}
    body["max_instances"] = _max_instances(spec)
    body["delay_release"] = _delay_release(spec)
    if spec.start_timeout_ms:
        body["start_timeout_ms"] = spec.start_timeout_ms
    if spec.warm_instances:
        body["warm_instances"] = spec.warm_instances
    body.update({name: getattr(spec, name) for name in ("isolation", "network") if getattr(spec, name)})
    limits = limits_document(spec.limits)
    if limits:
        body["limits"] = limits
    if spec.readable_objects:
        body["readable_objects"] = list(spec.readable_objects)
    schema = _schema(spec)
    if schema:
        body["schema"] = schema
    return {
        "metadata": {"name": application.metadata.name},
        "spec": body,
        "status": {
            "state": application_state(application),
            "creation_time": utc_time(application.status.creation_time),
        },
    }


def _page(application: ty.Application) -> list[tuple[str, object]]:
    spec = application.spec
    delay = _delay_release(spec)
    schema = _schema(spec)
    return [
        ("Name", application.metadata.name),
        ("State", application_state(application)),
        ("Description", spec.description),
        ("Shim", shim_name(spec.shim)),
        ("Image", spec.image),
        ("URL", spec.url),
        ("Installer", spec.installer),
        ("Labels", ", ".join(spec.labels)),
        ("Command", spec.command),
        ("Arguments", "\n".join(spec.arguments)),
        ("Environments", "\n".join(f"{entry.name}: {entry.value}" for entry in spec.environments)),
        ("WorkingDir", spec.working_directory),
        ("Max Instances", _max_instances(spec)),
        ("Delay Release", span(delay)),
        ("Warm Instances", f"{spec.warm_instances} on each node"),
        ("Isolation", spec.isolation or "none"),
        ("Network", spec.network),
        ("Limits", limits_text(spec.limits)),
        ("Reads Objects", ", ".join(spec.readable_objects)),
        ("Created", local_time(application.status.creation_time)),
        ("Schema", "\n".join(f"{part}: {_schema_type(text)}" for part, text in schema.items())),
    ]


def _max_instances(spec: ty.ApplicationSpec) -> int:
    return spec.max_instances if spec.HasField("max_instances") else DEFAULT_MAX_INSTANCES


def _delay_release(spec: ty.ApplicationSpec) -> int:
    return spec.delay_release if spec.HasField("delay_release") else DEFAULT_DELAY_RELEASE


def _schema(spec: ty.ApplicationSpec) -> dict[str, str]:
    parts = {"input": spec.schema.input, "output": spec.schema.output, "common_data": spec.schema.common_data}
    return {part: text for part, text in parts.items() if text}


def _schema_type(text: str) -> str:
    """The `type` of a JSON Schema; the text itself when it has none."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    kind: object = cast("dict[str, object]", value).get("type") if isinstance(value, dict) else None
    return str(kind) if kind else text


APPLICATIONS = Kind[ty.Application](
    columns=(
        Column("Name", lambda a: a.metadata.name),
        Column("State", application_state),
        Column("Shim", lambda a: shim_name(a.spec.shim)),
        Column("Tags", lambda a: ", ".join(a.spec.labels)),
        Column("Created", lambda a: local_time(a.status.creation_time)),
        Column("Command", lambda a: a.spec.command),
        Column("Delay", lambda a: span(_delay_release(a.spec)), wide=True),
        Column("Max", lambda a: _max_instances(a.spec), wide=True),
        Column("Description", lambda a: a.spec.description, wide=True),
    ),
    document=_document,
    name=lambda a: a.metadata.name,
    page=_page,
)

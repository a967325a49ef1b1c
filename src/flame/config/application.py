"""Application documents: what `flmctl register` and `update` read, and `flmctl view -o yaml` writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from msgspec.structs import astuple

from flame.config.document import Section, parse_documents
from flame.config.executors import SHIMS
from flame.model.errors import InvalidArgumentError
from flame.model.isolation import LEVELS, NO_LIMITS, Limits
from flame.model.network import is_list, joined, parse
from flame.model.object_keys import check_readable
from flame.model.specs import DEFAULT_DELAY_RELEASE, DEFAULT_MAX_INSTANCES, ApplicationSchema, ApplicationSpec


class ApplicationDocument(NamedTuple):
    """One application to be registered."""

    name: str
    spec: ApplicationSpec


def parse_applications(file: Path, text: str) -> list[ApplicationDocument]:
    """All applications of a file with one or more YAML documents. Raises InvalidConfigError; then none is returned."""
    applications: dict[str, ApplicationDocument] = {}
    for section in parse_documents(file, text):
        application = _application(section)
        if application.name in applications:
            raise section.error("", f"the file names the application {application.name!r} twice")
        applications[application.name] = application
    return list(applications.values())


def _application(root: Section) -> ApplicationDocument:
    metadata = root.section_or_empty("metadata")
    name = metadata.required("name")
    spec = root.section_or_empty("spec")
    # What `flmctl view -o yaml` adds, so that its output can be registered again.
    status = root.section_or_empty("status")
    status.text("state")
    status.text("creation_time")
    document = ApplicationDocument(
        name,
        ApplicationSpec(
            shim=SHIMS[spec.choice("shim", tuple(SHIMS), "host")],
            description=spec.text("description"),
            labels=spec.texts("labels"),
            image=spec.text("image"),
            command=spec.text("command"),
            arguments=spec.texts("arguments"),
            environments=spec.mapping("environments"),
            working_directory=spec.text("working_directory"),
            max_instances=spec.integer("max_instances", DEFAULT_MAX_INSTANCES, maximum=2**32 - 1),
            delay_release=spec.integer("delay_release", DEFAULT_DELAY_RELEASE, maximum=2**63 - 1),
            schema=_schema(spec.section("schema")),
            url=spec.text("url"),
            installer=spec.text("installer"),
            start_timeout_ms=spec.integer("start_timeout_ms", 0, maximum=2**32 - 1),
            warm_instances=spec.integer("warm_instances", 0, maximum=2**32 - 1),
            isolation=spec.choice("isolation", ("", *LEVELS), ""),
            limits=_limits(spec.section("limits")),
            network=_network(spec),
            readable_objects=_readable_objects(spec),
        ),
    )
    root.finish()
    return document


def _network(spec: Section) -> str:
    """A word, or a list."""
    try:
        network = joined(spec.text_or_texts("network"))
        if is_list(network):
            parse(network)
    except InvalidArgumentError as error:
        raise spec.error("network", error.message, error.remedy) from None
    return network


def _readable_objects(spec: Section) -> tuple[str, ...]:
    named = spec.texts("readable_objects")
    try:
        check_readable(named)
    except InvalidArgumentError as error:
        raise spec.error("readable_objects", error.message.removeprefix("readable_objects: "), error.remedy) from None
    return named


def _limits(section: Section | None) -> Limits:
    """`cpu` is in cores and `wall` in seconds there, both with fractions."""
    if section is None:
        return NO_LIMITS
    limits = Limits(
        memory=section.size("memory", 0),
        pids=section.integer("pids", 0, maximum=2**32 - 1),
        cpu_millis=round(section.number("cpu", 0, maximum=4e6) * 1000),
        disk=section.size("disk", 0),
        wall_ms=round(section.number("wall", 0, maximum=4e6) * 1000),
        output=section.size("output", 0),
    )
    for name, value in zip(("memory", "pids", "cpu", "disk", "wall", "output"), astuple(limits), strict=True):
        text = section.text(name)
        if text is not None and not value:  # it would mean that there is no limit
            raise section.error(name, f"{text}: nothing would start", "leave it out")
    return limits


def _schema(section: Section | None) -> ApplicationSchema | None:
    if section is None:
        return None
    texts: dict[str, str | None] = {}
    for part in ("input", "output", "common_data"):
        text = section.text(part)
        if text is not None:
            try:
                json.loads(text)
            except ValueError as error:
                raise section.error(part, f"is not JSON text: {error}") from None
        texts[part] = text
    schema = ApplicationSchema(**texts)
    return None if schema == ApplicationSchema() else schema

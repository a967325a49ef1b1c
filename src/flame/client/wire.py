"""Between the SDK's values and the messages of `flame.v1`. Absent and empty stay different."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

from google.protobuf.message import Message
from msgspec.structs import asdict

from flame.client.values import (
    Application,
    ApplicationAttributes,
    ApplicationSchema,
    ClusterInfo,
    Event,
    Executor,
    Explanation,
    Located,
    LogChunk,
    Node,
    Reason,
    ResourceRequirement,
    SessionAttributes,
    SessionUpdate,
    Task,
    Tenant,
    TenantQuota,
)
from flame.model.errors import InvalidArgumentError
from flame.model.isolation import Limits
from flame.model.network import joined
from flame.model.specs import TaskOptions
from flame.model.states import ApplicationState, ExecutorState, NodeState, SessionState, Shim, TaskState
from flame.model.task_options import check_options, check_per_key
from flame.proto import frontend_pb2 as fe
from flame.proto import types_pb2 as ty
from flame.proto import values

M = TypeVar("M", bound=Message)


def time_of(milliseconds: int) -> datetime:
    """Unix milliseconds as an aware time in UTC."""
    return datetime.fromtimestamp(milliseconds / 1000, tz=UTC)


def time_or_none(milliseconds: int) -> datetime | None:
    return time_of(milliseconds) if milliseconds else None


def _optional(message: Message, name: str) -> Any:
    return getattr(message, name) if message.HasField(name) else None


def _filled(kind: type[M], **values: Any) -> M:
    """A message with these fields. Raises ValueError that names the one that can't be what it is."""
    try:
        return kind(**values)
    except (ValueError, TypeError):
        for name, value in values.items():
            try:
                kind(**{name: value})
            except (ValueError, TypeError) as error:
                raise ValueError(f"{name} can't be {reprlib.repr(value)} ({error})") from None
        raise


def events_of(events: Iterable[ty.Event]) -> list[Event]:
    return [Event(event.code, _optional(event, "message"), time_of(event.creation_time)) for event in events]


# --- resources and options -------------------------------------------------------------------------------------------


def resources_to(amounts: ResourceRequirement | str | Any) -> ty.ResourceRequirement:
    """Also takes text, and any object with cpu, memory and gpu. Raises InvalidArgumentError."""
    if isinstance(amounts, str):
        try:
            amounts = ResourceRequirement.from_string(amounts)
        except ValueError as error:
            raise InvalidArgumentError(str(error)) from error
    try:
        return ty.ResourceRequirement(cpu=amounts.cpu, memory=amounts.memory, gpu=amounts.gpu)
    except (ValueError, TypeError, AttributeError) as error:
        raise InvalidArgumentError(f"invalid resources {amounts!r}: {error}") from error


def resources_from(message: ty.ResourceRequirement) -> ResourceRequirement:
    return ResourceRequirement(message.cpu, message.memory, message.gpu)


def limits_to(limits: Limits | None) -> ty.Limits | None:
    """Raises ValueError."""
    if limits is None:
        return None
    if not isinstance(limits, Limits):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"limits can't be {reprlib.repr(limits)}; write flame.Limits(memory=..., pids=...)")
    for name, value in asdict(limits).items():
        fits = value is not None
        try:
            ty.Limits(**{name: value})
        except (ValueError, TypeError):
            fits = False
        if not fits:
            raise ValueError(f"limits.{name} can't be {value!r}, only a whole number that is not too large")
    return values.limits_message(limits)


def options_to(options: TaskOptions) -> ty.TaskOptions:
    """Raises InvalidArgumentError."""
    try:
        check_options(options)
        return values.options_message(options)
    except (ValueError, TypeError) as error:
        raise InvalidArgumentError(f"invalid task options: {error}") from error


# --- applications ----------------------------------------------------------------------------------------------------


def application_to(attrs: ApplicationAttributes | Mapping[str, Any]) -> ty.ApplicationSpec:
    """The wire form of attributes, which may also be a dict of them. Raises InvalidArgumentError."""
    if not isinstance(attrs, ApplicationAttributes):
        known = [field.name for field in fields(ApplicationAttributes)]
        unknown = sorted(attrs.keys() - set(known))
        if unknown:
            from flame.config.document import nearest

            raise InvalidArgumentError(
                f"unknown attributes of an application: {', '.join(unknown)}", remedy=nearest(unknown[0], known)
            )
        attrs = ApplicationAttributes(**attrs)
    for name in ("labels", "arguments", "readable_objects"):
        _check_texts(attrs, name)
    if not isinstance(attrs.environments or {}, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidArgumentError(f"environments must be a mapping, not {attrs.environments!r}")
    try:
        spec = _filled(
            ty.ApplicationSpec,
            shim=ty.Shim.Name(attrs.shim or Shim.HOST),
            image=attrs.image,
            description=attrs.description,
            labels=attrs.labels or (),
            command=attrs.command,
            arguments=attrs.arguments or (),
            environments=[ty.Environment(name=k, value=v) for k, v in (attrs.environments or {}).items()],
            working_directory=attrs.working_directory,
            max_instances=attrs.max_instances,
            delay_release=attrs.delay_release,
            url=attrs.url,
            installer=attrs.installer,
            start_timeout_ms=round((attrs.start_timeout or 0) * 1000),
            warm_instances=attrs.warm_instances,
            isolation=attrs.isolation,
            limits=limits_to(attrs.limits),
            network=joined(attrs.network),
            readable_objects=attrs.readable_objects,
        )
        schema = attrs.schema
        if schema is not None and (schema.input or schema.output or schema.common_data):
            spec.schema.CopyFrom(
                ty.ApplicationSchema(
                    input=schema.input or None, output=schema.output or None, common_data=schema.common_data or None
                )
            )
    except (ValueError, TypeError, AttributeError) as error:
        raise InvalidArgumentError(f"invalid attributes of an application: {error}") from error
    return spec


def application_from(message: ty.Application) -> Application:
    spec = message.spec
    schema = None
    if spec.HasField("schema"):
        schema = ApplicationSchema(
            _optional(spec.schema, "input"), _optional(spec.schema, "output"), _optional(spec.schema, "common_data")
        )
    return Application(
        id=message.metadata.id,
        name=message.metadata.name,
        state=ApplicationState(message.status.state),
        creation_time=time_of(message.status.creation_time),
        shim=Shim(spec.shim),
        image=_optional(spec, "image"),
        description=_optional(spec, "description"),
        labels=list(spec.labels),
        command=_optional(spec, "command"),
        arguments=list(spec.arguments),
        environments={variable.name: variable.value for variable in spec.environments},
        working_directory=_optional(spec, "working_directory"),
        max_instances=_optional(spec, "max_instances"),
        delay_release=_optional(spec, "delay_release"),
        schema=schema,
        url=_optional(spec, "url"),
        installer=_optional(spec, "installer"),
        start_timeout=spec.start_timeout_ms / 1000 if spec.start_timeout_ms else None,
        warm_instances=spec.warm_instances,
        isolation=spec.isolation,
        limits=values.limits_of(spec.limits) if spec.HasField("limits") else None,
        network=spec.network,
        readable_objects=tuple(spec.readable_objects),
    )


# --- sessions --------------------------------------------------------------------------------------------------------


def _place_of(item: str | Located) -> str:
    """A node's name, host or address; of a reference to an object, the host of the cache that holds it."""
    if isinstance(item, str):
        return item
    host = urlsplit(item.endpoint).hostname
    if not host:
        raise ValueError(f"prefer_nodes: {item!r} names no host")
    return host


def _check_texts(attrs: object, name: str) -> None:
    if isinstance(getattr(attrs, name), str):  # its letters would be taken one by one
        raise InvalidArgumentError(f"{name} must be a list of texts, not {getattr(attrs, name)!r}")


def session_to(attrs: SessionAttributes) -> ty.SessionSpec:
    """Raises InvalidArgumentError."""
    data: Any = attrs.common_data
    if data is not None and not isinstance(data, (bytes, bytearray, memoryview)):
        raise InvalidArgumentError(f"common_data must be bytes, not {type(data).__name__}")
    for name in ("tolerations", "prefer_nodes", "readable_objects"):
        _check_texts(attrs, name)
    try:
        check_per_key(attrs.max_running_per_key)
        spec = _filled(
            ty.SessionSpec,
            application=attrs.application,
            common_data=None if data is None else bytes(cast("bytes", data)),
            min_instances=attrs.min_instances,
            max_instances=attrs.max_instances,
            batch_size=1,
            priority=attrs.priority,
            labels=attrs.labels,
            retention_s=attrs.retention,
            max_running_per_key=attrs.max_running_per_key,
            tenant=attrs.tenant,
            gang=attrs.gang,
            topology=attrs.topology,
            on_member_loss=attrs.on_member_loss,
            selector=attrs.selector,
            tolerations=attrs.tolerations,
            prefer_nodes=[_place_of(item) for item in attrs.prefer_nodes],
            isolation=attrs.isolation,
            limits=limits_to(attrs.limits),
            network=joined(attrs.network),
            idle_timeout_s=attrs.idle_timeout,
            readable_objects=attrs.readable_objects,
        )
    except (ValueError, TypeError) as error:
        raise InvalidArgumentError(f"invalid attributes of a session: {error}") from error
    if attrs.resreq is not None:
        spec.resreq.CopyFrom(resources_to(attrs.resreq))
    if attrs.task_defaults is not None:
        spec.task_defaults.CopyFrom(options_to(attrs.task_defaults))
    return spec


def update_from(message: fe.SessionUpdate) -> SessionUpdate:
    status = message.session.status
    return SessionUpdate(
        session_id=message.session.metadata.id,
        state=SessionState(status.state),
        pending=status.pending,
        running=status.running,
        succeed=status.succeed,
        failed=status.failed,
        cancelled=status.cancelled,
        executors=status.executors,
        pending_reason=status.pending_reason,
        events=events_of(status.events),
        tasks=[(str(change.task_id), TaskState(change.state), change.attempt) for change in message.tasks],
        pending_since=time_or_none(status.pending_since),
        wanted=status.wanted,
    )


# --- tasks -----------------------------------------------------------------------------------------------------------


def task_from(message: ty.Task) -> Task:
    status, spec = message.status, message.spec
    return Task(
        id=message.metadata.id,
        session_id=spec.session_id,
        state=TaskState(status.state),
        creation_time=time_of(status.creation_time),
        input=_optional(spec, "input"),
        output=_optional(spec, "output"),
        completion_time=time_of(status.completion_time) if status.HasField("completion_time") else None,
        events=events_of(status.events),
        attempt=status.attempt,
        executor_id=status.executor_id,
        cpu_seconds=status.cpu_us / 1e6,
        peak_memory=status.peak_memory,
        sent=status.sent,
        received=status.received,
    )


# --- the cluster -----------------------------------------------------------------------------------------------------


def node_from(message: ty.Node) -> Node:
    status = message.status
    return Node(
        name=message.metadata.name,
        hostname=message.spec.hostname,
        state=NodeState(status.state),
        capacity=resources_from(status.capacity),
        allocated=resources_from(status.allocated),
        arch=status.info.arch,
        os=status.info.os,
        addresses=[address.address for address in status.addresses],
        last_heartbeat=time_or_none(status.last_heartbeat_time * 1000),
        labels=dict(message.spec.labels),
        taints=list(message.spec.taints),
        max_executors=message.spec.max_executors,
        executors=status.executors,
        cordoned=status.cordoned,
        draining=status.draining,
        message=message,
    )


def executor_from(message: ty.Executor) -> Executor:
    status = message.status
    return Executor(
        id=message.metadata.id,
        node=message.spec.node,
        state=ExecutorState(status.state),
        session_id=_optional(status, "session_id"),
        resreq=resources_from(message.spec.resreq),
        shim=Shim(message.spec.shim),
        since=time_or_none(status.since),
        outstanding=status.outstanding,
        pid=status.pid,
        gpus=list(status.gpus),
        gang=values.gang_of(status.gang) if status.HasField("gang") else None,
        message=message,
    )


def tenant_to(
    spec: ty.TenantSpec,
    *,
    parent: str | None = None,
    weight: float | None = None,
    guarantee: ResourceRequirement | str | None = None,
    quota: TenantQuota | None = None,
    description: str | None = None,
) -> ty.TenantSpec:
    """The spec with what is given; None leaves it as it is. Raises InvalidArgumentError."""
    if weight is not None and not weight > 0:  # on the wire, 0 means that none was given
        raise InvalidArgumentError(f"weight {weight} of a tenant is not over 0")
    made = ty.TenantSpec()
    made.CopyFrom(spec)
    try:
        for name, value in (("parent", parent), ("weight", weight), ("description", description)):
            if value is not None:
                setattr(made, name, value)
        if quota is not None:
            limits = {name: value for name, value in vars(quota).items() if value is not None}
            made.quota.CopyFrom(ty.TenantQuota(**limits))
    except (ValueError, TypeError) as error:
        raise InvalidArgumentError(f"invalid attributes of a tenant: {error}") from error
    if guarantee is not None:
        made.guarantee.CopyFrom(resources_to(guarantee))
    return made


def tenant_from(message: ty.Tenant) -> Tenant:
    spec, status = message.spec, message.status
    limits: dict[str, int | None] = {each.name: _optional(spec.quota, each.name) for each in fields(TenantQuota)}
    return Tenant(
        name=message.metadata.name,
        parent=spec.parent,
        weight=spec.weight or 1.0,
        guarantee=resources_from(spec.guarantee),
        quota=TenantQuota(**limits),
        description=spec.description,
        creation_time=time_of(status.creation_time),
        used=resources_from(status.used),
        share=status.share,
        fair_share=status.fair_share,
        sessions=status.sessions,
        pending=status.pending,
        executors=status.executors,
        wanted=status.wanted,
        message=message,
    )


def cluster_from(message: fe.ClusterInfo) -> ClusterInfo:
    return ClusterInfo(
        name=message.name,
        version=message.version,
        generation=message.generation,
        start_time=time_of(message.start_time),
        unit=resources_from(message.unit),
        storage=message.storage,
        read_only=message.read_only,
        read_only_reason=message.read_only_reason,
        max_payload=message.max_payload,
        endpoint=message.endpoint,
        policies=list(message.policies),
    )


def log_from(message: fe.LogChunk) -> LogChunk:
    return LogChunk(message.executor_id, message.stream, message.offset, message.data, message.truncated)


def explanation_from(message: fe.Explanation) -> Explanation:
    return Explanation(
        summary=message.summary,
        reasons=[
            Reason(reason.rule, reason.object, reason.message, reason.remedy, time_or_none(reason.since))
            for reason in message.reasons
        ],
        story=events_of(message.story),
    )

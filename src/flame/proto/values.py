"""Values of the model as messages, and back: those that both ends of a wire have. Nothing here decides or waits."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import msgspec

from flame.model.errors import InvalidArgumentError
from flame.model.isolation import NO_LIMITS, Limits
from flame.model.resources import Resources
from flame.model.specs import (
    DEFAULT_DELAY_RELEASE,
    DEFAULT_MAX_INSTANCES,
    NO_OPTIONS,
    ApplicationSchema,
    ApplicationSpec,
    Gang,
    TaskOptions,
)
from flame.model.states import Shim
from flame.proto import types_pb2


def number(value: IntEnum) -> Any:
    """An enum's number; the generated stubs want classes of their own that do not exist at run time."""
    return int(value)


def resources_of(message: types_pb2.ResourceRequirement) -> Resources:
    return Resources(message.cpu, message.memory, message.gpu)


def resources_message(resources: Resources) -> types_pb2.ResourceRequirement:
    return types_pb2.ResourceRequirement(cpu=resources.cpu, memory=resources.memory, gpu=resources.gpu)


def limits_of(message: types_pb2.Limits) -> Limits:
    limits = Limits(**{name: getattr(message, name) for name in Limits.__struct_fields__})
    return limits if limits != NO_LIMITS else NO_LIMITS


def limits_message(limits: Limits) -> types_pb2.Limits | None:
    """None for no limits: they are left out."""
    return types_pb2.Limits(**msgspec.structs.asdict(limits)) if limits != NO_LIMITS else None


def options_of(message: types_pb2.TaskOptions) -> TaskOptions:
    options = TaskOptions(
        message.timeout_ms,
        message.max_retries if message.HasField("max_retries") else None,
        message.priority,
        message.idempotency_key,
        dict(message.labels),
        message.deadline_ms,
        message.retry_delay_ms,
        message.retry_max_delay_ms,
        message.key,
    )
    return options if options != NO_OPTIONS else NO_OPTIONS


def options_message(options: TaskOptions) -> types_pb2.TaskOptions:
    return types_pb2.TaskOptions(
        timeout_ms=options.timeout_ms,
        max_retries=options.max_retries,
        priority=options.priority,
        idempotency_key=options.idempotency_key,
        labels=options.labels,
        deadline_ms=options.deadline_ms,
        retry_delay_ms=options.retry_delay_ms,
        retry_max_delay_ms=options.retry_max_delay_ms,
        key=options.key,
    )


def gang_of(message: types_pb2.Gang) -> Gang:
    return Gang(message.rank, message.world_size, tuple(message.addresses))


def gang_message(gang: Gang | None) -> types_pb2.Gang | None:
    """None for an executor that is no member of one."""
    if gang is None:
        return None
    return types_pb2.Gang(rank=gang.rank, world_size=gang.world_size, addresses=gang.addresses)


def shim_of(number: int) -> Shim:
    """Raises InvalidArgumentError for a number that is no shim."""
    try:
        return Shim(number)
    except ValueError:
        raise InvalidArgumentError(f"unknown shim {number}") from None


def application_spec_of(message: types_pb2.ApplicationSpec) -> ApplicationSpec:
    """Raises InvalidArgumentError for an unknown shim."""
    schema = message.schema
    return ApplicationSpec(
        shim=shim_of(message.shim),
        description=message.description if message.HasField("description") else None,
        labels=tuple(message.labels),
        image=message.image if message.HasField("image") else None,
        command=message.command if message.HasField("command") else None,
        arguments=tuple(message.arguments),
        environments={item.name: item.value for item in message.environments},
        working_directory=message.working_directory or None,
        max_instances=message.max_instances if message.HasField("max_instances") else DEFAULT_MAX_INSTANCES,
        delay_release=message.delay_release if message.HasField("delay_release") else DEFAULT_DELAY_RELEASE,
        schema=ApplicationSchema(
            schema.input if schema.HasField("input") else None,
            schema.output if schema.HasField("output") else None,
            schema.common_data if schema.HasField("common_data") else None,
        )
        if message.HasField("schema")
        else None,
        url=message.url if message.HasField("url") else None,
        installer=message.installer if message.HasField("installer") else None,
        start_timeout_ms=message.start_timeout_ms,
        warm_instances=message.warm_instances,
        isolation=message.isolation,
        limits=limits_of(message.limits),
        network=message.network,
        readable_objects=tuple(message.readable_objects),
    )


def application_spec_message(spec: ApplicationSpec) -> types_pb2.ApplicationSpec:
    schema = spec.schema
    return types_pb2.ApplicationSpec(
        shim=number(spec.shim),
        description=spec.description,
        labels=spec.labels,
        image=spec.image,
        command=spec.command,
        arguments=spec.arguments,
        environments=[types_pb2.Environment(name=name, value=value) for name, value in spec.environments.items()],
        working_directory=spec.working_directory,
        max_instances=spec.max_instances,
        delay_release=spec.delay_release,
        schema=types_pb2.ApplicationSchema(input=schema.input, output=schema.output, common_data=schema.common_data)
        if schema is not None
        else None,
        url=spec.url,
        installer=spec.installer,
        start_timeout_ms=spec.start_timeout_ms,
        warm_instances=spec.warm_instances,
        isolation=spec.isolation,
        limits=limits_message(spec.limits),
        network=spec.network,
        readable_objects=spec.readable_objects,
    )

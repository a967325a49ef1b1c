"""Resource requests on the screen."""

from __future__ import annotations

from typing import Any

from flame.cli.memory import human_memory
from flame.cli.output import Document
from flame.model.resources import format_size
from flame.proto import types_pb2 as ty
from flame.proto.values import resources_of


def request_text(message: ty.ResourceRequirement) -> str:
    """In the grammar that -r accepts."""
    return str(resources_of(message))


def amount_text(message: ty.ResourceRequirement) -> str:
    """For reading: `4 cpu, 7.5Gi, 1 gpu`."""
    gpus = f", {message.gpu} gpu" if message.gpu else ""
    return f"{message.cpu} cpu, {human_memory(message.memory)}{gpus}"


def resources_document(message: ty.ResourceRequirement) -> Document:
    """For programs: memory in bytes."""
    return {"cpu": message.cpu, "memory": message.memory, "gpu": message.gpu}


def limits_document(message: ty.Limits) -> dict[str, Any]:
    """Those that are set, as application documents write them: bytes, cores, seconds."""
    found: dict[str, Any] = {
        "memory": message.memory,
        "pids": message.pids,
        "cpu": message.cpu_millis / 1000,
        "disk": message.disk,
        "wall": message.wall_ms / 1000,
        "output": message.output,
    }
    return {name: value for name, value in found.items() if value}


def used_text(cpu_ms: float, status: ty.SessionStatus | ty.TaskStatus, written: int | None = None) -> str:
    """What something used, in words; empty when nobody counted."""
    if not (status.peak_memory or status.sent or status.received):
        return ""
    spent = f"{cpu_ms:.1f} ms" if cpu_ms < 1000 else f"{cpu_ms / 1000:.1f} s"
    text = f"{spent} of processor time, {status.peak_memory >> 20} MiB of memory at most"
    if written is not None:
        text += f", {written} bytes written"
    if status.sent or status.received:
        text += f", {status.sent} bytes sent and {status.received} received"
    return text


def limits_text(message: ty.Limits) -> str:
    """Those that are set, in the grammar that --limit accepts."""
    sizes = ("memory", "disk", "output")
    found = limits_document(message).items()
    return ", ".join(f"{name}={format_size(value) if name in sizes else f'{value:g}'}" for name, value in found)

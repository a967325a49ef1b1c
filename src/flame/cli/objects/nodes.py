"""Nodes on the screen."""

from __future__ import annotations

import time

from flame.cli.memory import human_memory
from flame.cli.objects.resources import amount_text, resources_document
from flame.cli.objects.states import node_state, node_status
from flame.cli.output import Column, Document, Kind
from flame.cli.times import local_time, span, utc_time
from flame.proto import types_pb2 as ty


def _document(node: ty.Node) -> Document:
    status = node.status
    return {
        "name": node.metadata.name,
        "hostname": node.spec.hostname,
        "state": node_state(node),
        "cordoned": status.cordoned,
        "draining": status.draining,
        "labels": dict(sorted(node.spec.labels.items())),
        "taints": list(node.spec.taints),
        "executors": status.executors,
        "max_executors": node.spec.max_executors or None,
        "capacity": resources_document(status.capacity),
        "allocatable": resources_document(status.allocatable),
        "allocated": resources_document(status.allocated),
        "arch": status.info.arch,
        "os": status.info.os,
        "addresses": [{"type": entry.type, "address": entry.address} for entry in status.addresses],
        "last_heartbeat": utc_time(status.last_heartbeat_time * 1000),
    }


def _page(node: ty.Node) -> list[tuple[str, object]]:
    status = node.status
    return [
        ("Name", node.metadata.name),
        ("Hostname", node.spec.hostname),
        ("Status", node_status(node)),
        ("Capacity", amount_text(status.capacity)),
        ("Allocatable", amount_text(status.allocatable)),
        ("Allocated", amount_text(status.allocated)),
        ("Executors", f"{status.executors}, at most {most}" if (most := node.spec.max_executors) else status.executors),
        ("Labels", "\n".join(_labels(node))),
        ("Taints", "\n".join(node.spec.taints)),
        ("Arch", status.info.arch),
        ("OS", status.info.os),
        ("Addresses", "\n".join(f"{entry.type}: {entry.address}" for entry in status.addresses)),
        ("Heartbeat", local_time(status.last_heartbeat_time * 1000)),
    ]


def _labels(node: ty.Node) -> list[str]:
    return [f"{key}={value}" for key, value in sorted(node.spec.labels.items())]


def _executors(node: ty.Node) -> str:
    most = node.spec.max_executors
    return f"{node.status.executors}/{most}" if most else str(node.status.executors)


def _heard(node: ty.Node) -> str:
    last = node.status.last_heartbeat_time
    return f"{span(time.time() - last)} ago" if last else "-"


NODES = Kind[ty.Node](
    columns=(
        Column("NAME", lambda n: n.metadata.name),
        Column("HOSTNAME", lambda n: n.spec.hostname),
        Column("STATUS", node_status),
        Column("CPU", lambda n: n.status.capacity.cpu),
        Column("MEMORY", lambda n: human_memory(n.status.capacity.memory)),
        Column("GPU", lambda n: n.status.capacity.gpu),
        Column("ARCH", lambda n: n.status.info.arch),
        Column("OS", lambda n: n.status.info.os),
        Column("EXECUTORS", _executors),
        Column("ALLOCATED", lambda n: amount_text(n.status.allocated), wide=True),
        Column("HEARTBEAT", _heard, wide=True),
        Column("TAINTS", lambda n: ",".join(n.spec.taints), wide=True),
        Column("LABELS", lambda n: ",".join(_labels(n)), wide=True),
    ),
    document=_document,
    name=lambda n: n.metadata.name,
    page=_page,
)

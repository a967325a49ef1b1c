"""What can be read from the engine about the cluster: its nodes, executors and tenants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from flame.engine.executors import Node
from flame.engine.tenant_rules import find
from flame.model.resources import Resources
from flame.model.specs import Gang
from flame.model.states import ExecutorState, NodeState, Shim
from flame.model.tenants import TenantSpec
from flame.scheduler.groups import dominant

if TYPE_CHECKING:
    from flame.engine.cluster import Cluster
    from flame.engine.tenant_tree import Tenant


class ExecutorView(msgspec.Struct, gc=False):
    id: str
    channel: int
    node: str
    session_id: str
    application: str
    resreq: Resources
    shim: Shim
    state: ExecutorState
    since: int
    outstanding: int
    pid: int
    gpus: Sequence[int]  # indexes on its node
    gang: Gang | None


class NodeView(msgspec.Struct, gc=False):
    """One node. Of one that is marked and was away since the session manager's start only name and marks are known."""

    name: str
    hostname: str
    state: NodeState
    capacity: Resources
    allocated: Resources
    arch: str
    os: str
    addresses: Sequence[tuple[str, str]]
    last_heartbeat: int
    labels: dict[str, str]
    taints: Sequence[str]
    max_executors: int  # 0 = as many as fit
    cordoned: bool  # gets no new executors
    draining: bool  # and those it has leave
    executors: int  # that hold a place on it


class TenantView(msgspec.Struct, gc=False):
    """One tenant with those below it. Shares are of the cluster, 0 to 1; `pending` tasks have not ended; `wanted` are
    executors that its sessions could use further."""

    name: str
    spec: TenantSpec
    created: int  # 0 = it is there from the beginning
    used: Resources
    share: float
    fair_share: float
    sessions: int  # open ones
    pending: int
    executors: int
    wanted: int


class TenantMeasure(msgspec.Struct, gc=False):
    """What is cheap to tell of a tenant, however many sessions wait."""

    name: str
    used: Resources
    share: float
    sessions: int
    pending: int


def executors(cluster: Cluster, session_id: str = "", node: str = "") -> list[ExecutorView]:
    views: list[ExecutorView] = []
    for executor in cluster.executors.values():
        if (session_id and executor.session.id != session_id) or (node and executor.node.name != node):
            continue
        name = executor.session.spec.application
        known = cluster.applications.get(name)
        views.append(
            ExecutorView(
                executor.id,
                executor.channel,
                executor.node.name,
                executor.session.id,
                name,
                executor.resreq,
                known.spec.shim if known is not None else Shim.HOST,
                executor.state,
                executor.since,
                sum(1 for attempt in executor.outstanding.values() if attempt),
                executor.pid,
                executor.gpus,
                executor.gang,
            )
        )
    return sorted(views, key=lambda view: view.channel)


def node_view(cluster: Cluster, name: str) -> NodeView:
    """A node that is known, or marked."""
    node = cluster.nodes.get(name) or Node(name)
    mark = cluster.marks.get(name)
    return NodeView(
        name,
        node.hostname,
        node.state,
        node.capacity,
        node.allocated,
        node.arch,
        node.os,
        node.addresses,
        node.heartbeat,
        node.labels,
        node.taints,
        node.max_executors,
        mark is not None,
        mark is not None and mark.mark == "drain",
        len(node.executors) + len(node.leaving),
    )


def nodes(cluster: Cluster) -> list[NodeView]:
    """All that are known, also those that are only marked."""
    return [node_view(cluster, name) for name in sorted({*cluster.nodes, *cluster.marks})]


def tenant_view(cluster: Cluster, found: Tenant) -> TenantView:
    usage = cluster.scheduler.usage(found.name)
    return TenantView(
        found.name,
        found.spec,
        found.created,
        usage.used,
        usage.share,
        usage.fair_share,
        found.sessions,
        found.pending,
        usage.executors,
        usage.wanted,
    )


def tenant(cluster: Cluster, name: str) -> TenantView:
    return tenant_view(cluster, find(cluster, name))


def tenants(cluster: Cluster) -> list[TenantView]:
    """All tenants, each followed by those below it."""
    ordered = sorted(cluster.tenants.values(), key=lambda one: [above.name for above in reversed(one.path)])
    return [tenant_view(cluster, found) for found in ordered]


def tenant_measures(cluster: Cluster, most: int) -> list[TenantMeasure]:
    """Of the first `most` tenants by time of creation."""
    total = cluster.scheduler.books.total
    ordered = sorted(cluster.tenants.values(), key=lambda one: (one.created, one.name))[:most]
    groups = cluster.scheduler.tree.groups
    return [
        TenantMeasure(
            one.name, groups[one.name].used, dominant(groups[one.name].used, total), one.sessions, one.pending
        )
        for one in ordered
    ]

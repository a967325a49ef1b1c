"""Between the values of the model and the messages of the contract: nodes, executors and tenants.

What a node says of itself is checked here, once: a number that can't be ends its connection, not the session manager.
"""

from __future__ import annotations

from flame.engine import cluster_views
from flame.engine.events import Held, NodeJoined
from flame.model.errors import ProtocolError
from flame.model.resources import Resources
from flame.model.specs import Gang
from flame.model.states import ExecutorState
from flame.model.tenants import NO_QUOTA, Quota, TenantSpec
from flame.proto import link_pb2, types_pb2
from flame.proto.values import gang_message, gang_of, number, resources_message, resources_of

MAX_AMOUNT = 2**63 - 1
MAX_GPUS = 4096  # of one node
MAX_LABELS = 256  # of one node, and as many taints
MAX_LABEL = 256  # characters

# --- nodes -----------------------------------------------------------------------------------------------------------


def node_message(view: cluster_views.NodeView) -> types_pb2.Node:
    return types_pb2.Node(
        metadata=types_pb2.Metadata(id=view.name, name=view.name),
        spec=types_pb2.NodeSpec(
            hostname=view.hostname, labels=view.labels, taints=view.taints, max_executors=view.max_executors
        ),
        status=types_pb2.NodeStatus(
            state=number(view.state),
            capacity=resources_message(view.capacity),
            allocatable=resources_message(view.capacity),
            info=types_pb2.NodeInfo(arch=view.arch, os=view.os),
            addresses=[types_pb2.NodeAddress(type=kind, address=address) for kind, address in view.addresses],
            last_heartbeat_time=view.last_heartbeat // 1000,
            allocated=resources_message(view.allocated),
            cordoned=view.cordoned,
            draining=view.draining,
            executors=view.executors,
        ),
    )


def node_joined(name: str, hello: link_pb2.NodeHello) -> NodeJoined:
    """Raises ProtocolError when columns do not match, a state is unknown, or a number can't be."""
    spec, status = hello.node.spec, hello.node.status
    return NodeJoined(
        name,
        hello.boot_id,
        spec.hostname or name,
        capacity_of(status.capacity),
        status.info.arch,
        status.info.os,
        [(item.type, item.address) for item in status.addresses],
        [_held(item) for item in hello.executors],
        _labels(spec),
        _taints(spec),
        spec.max_executors,
    )


def capacity_of(message: types_pb2.ResourceRequirement) -> Resources:
    """Raises ProtocolError when no node can have so much."""
    capacity = resources_of(message)
    if max(capacity.cpu, capacity.memory) > MAX_AMOUNT or not 0 <= capacity.gpu <= MAX_GPUS:
        raise ProtocolError(
            f"no node has a capacity of {capacity}", remedy=f"amounts go up to 2^63-1, GPUs up to {MAX_GPUS}"
        )
    return capacity


def _labels(spec: types_pb2.NodeSpec) -> dict[str, str]:
    labels = dict(spec.labels)
    wrong = next((key for key, value in labels.items() if not key or max(len(key), len(value)) > MAX_LABEL), None)
    if wrong is not None or len(labels) > MAX_LABELS:
        what = f"{len(labels)} labels" if wrong is None else f"the label {wrong[:40]!r}"
        raise ProtocolError(
            f"a node can't have {what}", remedy=f"up to {MAX_LABELS} of 1 to {MAX_LABEL} characters and such values"
        )
    return labels


def _taints(spec: types_pb2.NodeSpec) -> tuple[str, ...]:
    taints = tuple(spec.taints)
    wrong = next((taint for taint in taints if not taint.split("=", 1)[0] or len(taint) > 2 * MAX_LABEL), None)
    if wrong is not None or len(taints) > MAX_LABELS:
        what = f"{len(taints)} taints" if wrong is None else f"the taint {wrong[:40]!r}"
        raise ProtocolError(f"a node can't have {what}", remedy=f"up to {MAX_LABELS}, written as key or key=value")
    return taints


# --- executors -------------------------------------------------------------------------------------------------------


def executor_message(view: cluster_views.ExecutorView) -> types_pb2.Executor:
    return types_pb2.Executor(
        metadata=types_pb2.Metadata(id=view.id, name=view.id),
        spec=types_pb2.ExecutorSpec(node=view.node, resreq=resources_message(view.resreq), shim=number(view.shim)),
        status=types_pb2.ExecutorStatus(
            state=number(view.state),
            session_id=view.session_id or None,
            since=view.since,
            outstanding=view.outstanding,
            pid=view.pid,
            gpus=view.gpus,
            gang=gang_message(view.gang),
        ),
    )


def _held(item: link_pb2.HeldExecutor) -> Held:
    if item.attempts and len(item.attempts) != len(item.task_ids):
        raise ProtocolError(
            f"executor {item.executor_id!r} has {len(item.task_ids)} tasks and {len(item.attempts)} attempts"
        )
    gpus = tuple(item.gpus)
    if len(set(gpus)) != len(gpus) or max(gpus, default=0) >= MAX_GPUS:
        raise ProtocolError(f"executor {item.executor_id!r} can't hold the GPUs {list(gpus[:8])}")
    return Held(
        item.executor_id,
        item.channel,
        item.session_id,
        capacity_of(item.resreq),
        executor_state_of(item.state),
        max(1, item.concurrency),
        list(item.task_ids),
        list(item.attempts),
        item.pid,
        gpus,
        _gang(item) if item.HasField("gang") else None,
    )


def _gang(item: link_pb2.HeldExecutor) -> Gang:
    gang = item.gang
    addresses = tuple(gang.addresses)
    fits = gang.rank < gang.world_size and len(addresses) in (0, gang.world_size)
    if not fits or not all(_port_of(address).isdigit() for address in addresses):
        raise ProtocolError(
            f"executor {item.executor_id!r} can't be member {gang.rank} of {gang.world_size} "
            f"at the addresses {', '.join(addresses[:4])!r}"
        )
    return gang_of(gang)


def _port_of(address: str) -> str:
    port = address.rpartition(":")[2]
    return port if port.isascii() and len(port) <= 5 else ""


def executor_state_of(code: int) -> ExecutorState:
    """Raises ProtocolError for a number that is no state."""
    try:
        return ExecutorState(code)
    except ValueError:
        raise ProtocolError(f"unknown executor state {code}") from None


# --- tenants ---------------------------------------------------------------------------------------------------------


def tenant_spec_of(message: types_pb2.TenantSpec) -> TenantSpec:
    """As it was sent, a weight of 0 as 1; the engine looks whether it can be."""
    quota = message.quota
    limits = Quota(
        cpu=quota.cpu if quota.HasField("cpu") else None,
        memory=quota.memory if quota.HasField("memory") else None,
        gpu=quota.gpu if quota.HasField("gpu") else None,
        sessions=quota.sessions if quota.HasField("sessions") else None,
        pending=quota.pending if quota.HasField("pending") else None,
    )
    return TenantSpec(
        parent=message.parent,
        weight=message.weight or 1.0,
        guarantee=resources_of(message.guarantee),
        quota=limits if limits != NO_QUOTA else NO_QUOTA,
        description=message.description,
    )


def tenant_spec_message(spec: TenantSpec) -> types_pb2.TenantSpec:
    quota = spec.quota
    return types_pb2.TenantSpec(
        parent=spec.parent,
        weight=spec.weight,
        guarantee=resources_message(spec.guarantee),
        quota=types_pb2.TenantQuota(
            cpu=quota.cpu, memory=quota.memory, gpu=quota.gpu, sessions=quota.sessions, pending=quota.pending
        ),
        description=spec.description,
    )


def tenant_message(view: cluster_views.TenantView) -> types_pb2.Tenant:
    return types_pb2.Tenant(
        metadata=types_pb2.Metadata(id=view.name, name=view.name),
        spec=tenant_spec_message(view.spec),
        status=types_pb2.TenantStatus(
            used=resources_message(view.used),
            share=view.share,
            fair_share=view.fair_share,
            sessions=view.sessions,
            pending=view.pending,
            executors=view.executors,
            wanted=view.wanted,
            creation_time=view.created,
        ),
    )

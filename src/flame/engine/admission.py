"""What a session may ask for: everything that could never work is refused here, with the offending value, and never
reaches a scheduling pass."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

from flame.engine import tenants
from flame.engine.tenant_rules import find
from flame.model import isolation
from flame.model.errors import ExhaustedError, FlameError, InvalidArgumentError, NotFoundError, PermissionDeniedError
from flame.model.resources import Resources
from flame.model.specs import TOPOLOGIES, SessionSpec
from flame.model.task_options import check_defaults, check_per_key
from flame.model.tenants import DEFAULT_TENANT

if TYPE_CHECKING:
    from flame.engine.cluster import Cluster
    from flame.engine.sessions import Session

MAX_AMOUNT = 2**63 - 1
MAX_INSTANCES = 2**31 - 1
MAX_LABEL = 256  # characters
MAX_ENTRIES = 1000
MEMBER_LOSS = ("", "restart", "fail")


def check_session(cluster: Cluster, spec: SessionSpec) -> Resources:
    """The size of one executor. Raises NotFoundError, InvalidArgumentError, or ExhaustedError for a used up quota."""
    if spec.application not in cluster.applications:
        near = get_close_matches(spec.application, cluster.applications, 1)
        remedy = f"did you mean {near[0]}? Else register it first" if near else "register it first"
        raise NotFoundError(f"application <{spec.application}> not found", remedy=remedy)
    resreq = spec.resreq if spec.resreq is not None else cluster.settings.resreq
    _check_size(resreq)
    _check_instances(spec)
    application = cluster.applications[spec.application].spec
    isolation.check_together(application, spec)
    isolation.check_doors(application, spec, cluster.settings.doors)
    _check_placement(cluster, spec)
    _check_gang(cluster, isolation.placed(application, spec), resreq)
    _check_tenant(cluster, spec)
    return resreq


def why_barred(cluster: Cluster, session: Session) -> str:
    """Why a session that was opened under other settings of the session manager gets no executors under these; empty =
    it gets them."""
    application = cluster.applications.get(session.spec.application)
    if application is None:
        return ""
    try:
        isolation.check_doors(application.spec, session.spec, cluster.settings.doors)
    except PermissionDeniedError as error:
        return error.message
    return ""


def why_full(cluster: Cluster, session: Session, more: int) -> FlameError | None:
    """The error that refuses so many further tasks, None = there is room for them. Costs the depth of the tree."""
    most = cluster.settings.max_pending
    if most and session.pending + more > most:
        what = "submit again when some have run" if more <= most else f"submit at most {most} at once"
        return ExhaustedError(
            f"session <{session.id}> has {session.pending} pending tasks, {more} more are over its limit of {most}",
            remedy=f"{what}, or raise cluster.limits.max_pending",
            retryable=more <= most,
        )
    return tenants.check_pending(session, more)


def _check_tenant(cluster: Cluster, spec: SessionSpec) -> None:
    tenant = find(cluster, spec.tenant or DEFAULT_TENANT)
    if tenant.children:
        raise InvalidArgumentError(
            f"tenant {tenant.name} has tenants below it: sessions belong to one of those",
            remedy=f"name one of {', '.join(sorted(tenant.children)[:5])}",
        )
    tenants.check_sessions(tenant)


def _check_size(resreq: Resources) -> None:
    if min(resreq.cpu, resreq.memory, resreq.gpu) < 0:
        raise InvalidArgumentError(f"resreq {resreq} is negative")
    if max(resreq.cpu, resreq.memory, resreq.gpu) > MAX_AMOUNT:
        raise InvalidArgumentError(f"resreq {resreq} is over 2^63-1")
    if resreq == Resources():
        raise InvalidArgumentError(
            "resreq asks for nothing: no limit would hold for it", remedy="ask for cpu, memory or GPUs, or leave it out"
        )


def _check_instances(spec: SessionSpec) -> None:
    if not 0 <= spec.min_instances <= MAX_INSTANCES:
        raise InvalidArgumentError(f"min_instances {spec.min_instances} is not between 0 and {MAX_INSTANCES}")
    if spec.max_instances is not None and spec.min_instances > spec.max_instances:
        raise InvalidArgumentError(f"min_instances {spec.min_instances} is over max_instances {spec.max_instances}")
    if spec.max_instances == 0:
        raise InvalidArgumentError("max_instances 0 would never run a task", remedy="leave it out for no limit")
    check_per_key(spec.max_running_per_key)
    check_defaults(spec.task_defaults)


def _check_gang(cluster: Cluster, spec: SessionSpec, resreq: Resources) -> None:
    if not spec.gang:
        for field in ("topology", "on_member_loss"):
            if getattr(spec, field):
                raise InvalidArgumentError(f"{field} {getattr(spec, field)!r} is for gangs", remedy="set gang as well")
        return
    if not cluster.scheduler.policies.gangs:
        raise InvalidArgumentError("gangs are switched off", remedy="add gang to cluster.policies")
    if spec.min_instances < 1:
        raise InvalidArgumentError("a gang needs min_instances, the number of its members", remedy="set min_instances")
    if spec.max_instances is not None and spec.max_instances != spec.min_instances:
        raise InvalidArgumentError(
            f"a gang has min_instances members; max_instances {spec.max_instances} differs from {spec.min_instances}",
            remedy="leave max_instances out",
        )
    if spec.topology not in TOPOLOGIES and not (spec.topology.startswith("same:") and len(spec.topology) > 5):
        raise InvalidArgumentError(
            f"unknown topology {spec.topology!r}", remedy="write same-node, spread or same:LABEL, or leave it out"
        )
    if spec.on_member_loss not in MEMBER_LOSS:
        raise InvalidArgumentError(f"unknown on_member_loss {spec.on_member_loss!r}", remedy="write restart or fail")
    no = cluster.scheduler.impossible_gang(spec, resreq)
    if no is not None:
        raise InvalidArgumentError(no.message, remedy=no.remedy)


def _check_placement(cluster: Cluster, spec: SessionSpec) -> None:
    for label, value in spec.selector.items():
        if not label or len(label) > MAX_LABEL or len(value) > MAX_LABEL:
            raise InvalidArgumentError(f"selector label {label[:40]!r} is empty or over {MAX_LABEL} characters")
    for field in ("tolerations", "prefer_nodes"):
        entries = getattr(spec, field)
        wrong = next((entry for entry in entries if not entry or len(entry) > 2 * MAX_LABEL), None)
        if wrong is not None or len(entries) > MAX_ENTRIES:
            what = f"{len(entries)} entries" if wrong is None else f"{wrong[:40]!r}"
            raise InvalidArgumentError(
                f"{field} can't have {what}", remedy=f"up to {MAX_ENTRIES}, of 1 to {2 * MAX_LABEL} characters"
            )
    if not cluster.nodes:
        return  # they may not have joined yet
    known = {label for node in cluster.nodes.values() for label in node.labels}
    wanted = [*spec.selector]
    if spec.topology.startswith("same:") and spec.topology != "same:":
        wanted.append(spec.topology[5:])
    for label in wanted:
        if label not in known:
            near = get_close_matches(label, known, 1)
            remedy = f"did you mean {near[0]!r}?" if near else f"known labels: {', '.join(sorted(known)) or 'none'}"
            raise InvalidArgumentError(f"no node has the label {label!r}", remedy=remedy)

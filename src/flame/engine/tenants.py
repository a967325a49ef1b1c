"""Tenants: the tree of those who share the cluster, how it changes, and what its tenants have.

Sessions belong to leaves. The counts of a tenant include the tenants below it, and each session knows who counts it
(`Session.tenants`), so that a submission and an end cost the depth of the tree and no search.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flame.engine import cluster_views
from flame.engine.effects import RecordKind
from flame.engine.records import NameMeta, TenantMeta
from flame.engine.tenant_rules import find, plural, why_not
from flame.engine.tenant_tree import Tenant
from flame.model.errors import (
    ExhaustedError,
    FlameError,
    InvalidArgumentError,
    InvalidStateError,
    ReadOnlyError,
)
from flame.model.tenants import DEFAULT_TENANT

if TYPE_CHECKING:
    from flame.engine.cluster import Cluster
    from flame.engine.events import DeleteTenant, SetTenant
    from flame.engine.sessions import Session
    from flame.engine.turn import Draft


# --- changes -----------------------------------------------------------------------------------------------------


def on_set(cluster: Cluster, draft: Draft, event: SetTenant) -> None:
    """Create a tenant or replace its spec. A lower quota takes nothing away: it only keeps more from coming."""
    error = why_not(cluster, event)
    if error is not None:
        draft.refuse(event.ticket, error)
        return
    known = cluster.tenants.get(event.name)
    if known is None or known.spec != event.spec:
        meta = TenantMeta(event.name, event.spec, draft.now_ms if known is None else known.created)
        draft.record(RecordKind.TENANT, "", meta)
        apply(cluster, meta)
    draft.reply(event.ticket, cluster_views.tenant_view(cluster, cluster.tenants[event.name]))


def on_delete(cluster: Cluster, draft: Draft, event: DeleteTenant) -> None:
    """Closed sessions do not keep a tenant: they only go on to show its name."""
    try:
        tenant = find(cluster, event.name)
        if cluster.read_only:
            raise ReadOnlyError(f"the journal can't be written: {cluster.read_only}", remedy="free the disk first")
        if event.name == DEFAULT_TENANT:
            raise InvalidArgumentError(f"tenant {DEFAULT_TENANT} exists always", remedy="it may be updated")
        if tenant.children:
            names = ", ".join(sorted(tenant.children)[:5])
            raise InvalidStateError(
                f"tenant {event.name} has {plural(len(tenant.children), 'tenant')} below it: {names}",
                remedy="delete or move those first",
            )
        if tenant.sessions:
            raise InvalidStateError(
                f"tenant {event.name} has {plural(tenant.sessions, 'open session')}", remedy="close them first"
            )
    except FlameError as error:
        draft.refuse(event.ticket, error)
        return
    view = cluster_views.tenant_view(cluster, tenant)
    draft.record(RecordKind.TENANT_GONE, "", NameMeta(event.name))
    forget(cluster, event.name)
    draft.reply(event.ticket, view)


def apply(cluster: Cluster, meta: TenantMeta) -> None:
    """A tenant is there, or has another spec; the same at run time and at replay."""
    tenant = cluster.tenants.get(meta.name)
    if tenant is None:
        tenant = cluster.tenants[meta.name] = Tenant(meta.name, meta.spec, meta.created)
        _hang(cluster, tenant, "", meta.spec.parent)
    else:
        before, tenant.spec = tenant.spec.parent, meta.spec
        if before != meta.spec.parent:
            moved = [session for session in cluster.sessions.values() if tenant in session.tenants]
            for session in moved:
                count_out(session)
            _hang(cluster, tenant, before, meta.spec.parent)
            for session in moved:
                count_in(cluster, session)
    cluster.scheduler.put_tenant(meta.name, meta.spec)


def forget(cluster: Cluster, name: str) -> None:
    """A tenant without children and sessions is gone; the same at run time and at replay."""
    tenant = cluster.tenants.pop(name, None)
    if tenant is not None:
        if tenant.spec.parent:
            cluster.tenants[tenant.spec.parent].children.discard(name)
        cluster.scheduler.drop_tenant(name)


def _hang(cluster: Cluster, tenant: Tenant, before: str, parent: str) -> None:
    """Put the tenant, with all below it, under another parent."""
    if before:
        cluster.tenants[before].children.discard(tenant.name)
    if parent:
        cluster.tenants[parent].children.add(tenant.name)
    _walk(cluster, tenant)


def _walk(cluster: Cluster, tenant: Tenant) -> None:
    above = cluster.tenants[tenant.spec.parent].path if tenant.spec.parent else ()
    tenant.path = (tenant, *above)
    for name in tenant.children:
        _walk(cluster, cluster.tenants[name])


# --- sessions and tasks of a tenant ------------------------------------------------------------------------------


def of_session(cluster: Cluster, session: Session) -> Tenant:
    """Whose session it is. A tenant that is unknown, as in a journal from before there were any, is the default one."""
    return cluster.tenants.get(session.spec.tenant) or cluster.tenants[DEFAULT_TENANT]


def count_in(cluster: Cluster, session: Session) -> None:
    """The session is open: it and its tasks count from now on."""
    session.tenants = of_session(cluster, session).path
    for one in session.tenants:
        one.sessions += 1
        one.pending += session.pending + session.running


def count_out(session: Session) -> None:
    """The session is closed."""
    for one in session.tenants:
        one.sessions -= 1
        one.pending -= session.pending + session.running
    session.tenants = ()


def check_sessions(tenant: Tenant) -> None:
    """Raises ExhaustedError when one more session would be over a quota."""
    for one in tenant.path:
        most = one.spec.quota.sessions
        if most is not None and one.sessions >= most:
            raise ExhaustedError(
                f"tenant {one.name} has {plural(one.sessions, 'open session')}, its quota is {most}",
                remedy=f"close one, or raise the quota: flmctl tenant update {one.name}",
            )


def check_pending(session: Session, more: int) -> FlameError | None:
    """The error that refuses so many further tasks, None = the quotas have room for them."""
    for one in session.tenants:
        most = one.spec.quota.pending
        if most is not None and one.pending + more > most:
            return ExhaustedError(
                f"tenant {one.name} has {plural(one.pending, 'task')} that have not ended, {more} more would be over "
                f"its quota of {most} pending",
                remedy=f"{_less(more, most)}, or raise the quota: flmctl tenant update {one.name}",
                retryable=more <= most,
            )
    return None


def _less(more: int, most: int) -> str:
    return "submit again when some have ended" if more <= most else f"submit at most {most} at once"

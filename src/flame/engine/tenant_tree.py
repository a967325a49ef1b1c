"""Tenants, as they hang below each other."""

from __future__ import annotations

from flame.model.tenants import DEFAULT_TENANT, TenantSpec


class Tenant:
    """One tenant. `sessions` are open ones, `pending` tasks that have not ended; both of it and those below it.

    Invariants: `path` is this tenant and those above it, the top one last; one with `children` has no own sessions.
    """

    __slots__ = ("children", "created", "name", "path", "pending", "sessions", "spec")

    def __init__(self, name: str, spec: TenantSpec, created: int) -> None:
        self.name = name
        self.spec = spec
        self.created = created
        self.children: set[str] = set()
        self.path: tuple[Tenant, ...] = (self,)
        self.sessions = 0
        self.pending = 0


def first_tenants() -> dict[str, Tenant]:
    """Those of a cluster in which nobody made any."""
    return {DEFAULT_TENANT: Tenant(DEFAULT_TENANT, TenantSpec(), 0)}

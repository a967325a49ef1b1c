"""Who shares the cluster: a tree of tenants, each with a weight, a guaranteed share and a quota."""

from __future__ import annotations

import msgspec

from flame.model.resources import Resources

DEFAULT_TENANT = "default"  # exists always; of sessions that name none
MAX_WEIGHT = 1_000_000.0


class Quota(msgspec.Struct, frozen=True, omit_defaults=True):
    """Limits that are never exceeded by a tenant and those below it. None = not limited.

    cpu in cores, memory in bytes, gpu in devices; `sessions` are open ones, `pending` tasks that have not ended.
    """

    cpu: int | None = None
    memory: int | None = None
    gpu: int | None = None
    sessions: int | None = None
    pending: int | None = None


NO_QUOTA = Quota()


class TenantSpec(msgspec.Struct, frozen=True, omit_defaults=True):
    """One tenant. `parent` empty = it stands at the top. `weight` counts among siblings, 0 < weight <= MAX_WEIGHT.

    `guarantee` is taken back from whoever borrowed it as soon as the tenant's sessions can use it.
    """

    parent: str = ""
    weight: float = 1.0
    guarantee: Resources = Resources()
    quota: Quota = NO_QUOTA
    description: str = ""

"""Fair shares: tenants, then the sessions of a tenant, grow evenly by their dominant resource."""

from __future__ import annotations

from flame.scheduler.policy import Policy


class Drf(Policy):
    """Hierarchical dominant-resource fairness over the tree of tenants (Bhattacharya et al., "Hierarchical Scheduling
    for Diverse Datacenter Workloads", SoCC 2013). The tree itself is the scheduler's; this switches it on."""

    name = "drf"
    fair = True

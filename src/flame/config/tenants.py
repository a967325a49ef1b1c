"""The section `cluster.tenants`: who shares the cluster, by name, with further tenants below each.

tenants:
  research:
    weight: 2
    guarantee: cpu=4,mem=8g
    quota: {cpu: 16, sessions: 100}
    tenants:
      vision: {weight: 3}
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from flame.config.document import Section
from flame.model.resources import Resources, format_size
from flame.model.tenants import DEFAULT_TENANT, MAX_WEIGHT, Quota, TenantSpec

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_NAMES = "use up to 128 letters, digits, '-', '_', '.', and begin with none of '-' and '.'"
_MOST = 2**63 - 1


def read_tenants(section: Section) -> tuple[tuple[str, TenantSpec], ...]:
    """All tenants, parents before their children. Raises InvalidConfigError."""
    places: dict[str, str] = {}
    return tuple(_below(section, "", places))


def _below(section: Section, parent: str, places: dict[str, str]) -> Iterator[tuple[str, TenantSpec]]:
    """The tenants of one mapping, each followed by its own; `places` says where each name stands."""
    for name in section.names():
        if not _NAME.fullmatch(name):
            raise section.error(name, f"{name!r} is no name for a tenant", _NAMES)
        if name in places:
            raise section.error(name, f"there is a tenant {name!r} already, at {places[name]}")
        places[name] = section.where(name)
        tenant = section.section(name)
        assert tenant is not None
        yield name, _spec(tenant, parent)
        below = tenant.section_or_empty("tenants")
        if name == DEFAULT_TENANT and below.names():
            raise tenant.error("tenants", f"{name} has no others below it: it takes the sessions that name none")
        yield from _below(below, name, places)


def _spec(section: Section, parent: str) -> TenantSpec:
    quota = section.section_or_empty("quota")
    spec = TenantSpec(
        parent=parent,
        weight=section.number("weight", 1.0, positive=True, maximum=MAX_WEIGHT),
        guarantee=section.resources("guarantee") or Resources(),
        quota=Quota(
            cpu=quota.integer("cpu", maximum=_MOST),
            memory=quota.size("memory"),
            gpu=quota.integer("gpu", maximum=_MOST),
            sessions=quota.integer("sessions", maximum=_MOST),
            pending=quota.integer("pending", maximum=_MOST),
        ),
        description=section.text("description", ""),
    )
    for key, most, sure in (
        ("cpu", spec.quota.cpu, spec.guarantee.cpu),
        ("memory", spec.quota.memory, spec.guarantee.memory),
        ("gpu", spec.quota.gpu, spec.guarantee.gpu),
    ):
        if most is not None and most < sure:
            text = f"{most} is less than the guarantee of {sure}"
            if key == "memory":
                text = f"{format_size(most)} is less than the guarantee of {format_size(sure)}"
            raise quota.error(key, text, "a tenant may use at least what it is guaranteed")
    return spec

"""What may be asked of a tenant: everything that could never work is refused here, with the offending value."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING

from flame.model.errors import (
    AlreadyExistsError,
    FlameError,
    InvalidArgumentError,
    InvalidStateError,
    NotFoundError,
    ReadOnlyError,
)
from flame.model.resources import Resources, format_size
from flame.model.tenants import DEFAULT_TENANT, MAX_WEIGHT, TenantSpec

if TYPE_CHECKING:
    from flame.engine.cluster import Cluster
    from flame.engine.events import SetTenant
    from flame.engine.tenant_tree import Tenant

MAX_NAME = 128
MAX_DEPTH = 16
MAX_AMOUNT = 2**63 - 1
MAX_DESCRIPTION = 4096
_ALLOWED = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")
_FIELDS = ("cpu", "memory", "gpu")


def find(cluster: Cluster, name: str) -> Tenant:
    """Raises NotFoundError, with the name that may have been meant."""
    tenant = cluster.tenants.get(name)
    if tenant is None:
        near = get_close_matches(name, cluster.tenants, 1)
        remedy = f"did you mean {near[0]}?" if near else "flmctl tenant list shows them"
        raise NotFoundError(f"tenant <{name[:MAX_NAME]}> not found", remedy=remedy)
    return tenant


def why_not(cluster: Cluster, event: SetTenant) -> FlameError | None:
    """Why the change is refused. Guarantees of configured tenants are not added up: a parent comes before its children,
    and they may fit together only when all of them are there (see `unkept`)."""
    name, spec = event.name, event.spec
    try:
        check_name(name)
        _check_values(name, spec)
        known = cluster.tenants.get(name)
        if cluster.read_only:
            raise ReadOnlyError(f"the journal can't be written: {cluster.read_only}", remedy="free the disk first")
        if not event.configured:
            if event.create and known is not None:
                raise AlreadyExistsError(f"tenant {name} already exists", remedy="update it, or choose another name")
            if not event.create:
                find(cluster, name)
        if spec.parent:
            _check_parent(cluster, name, spec.parent)
        if not event.configured:
            for text in unkept({**{one.name: one.spec for one in cluster.tenants.values()}, name: spec}, name):
                raise InvalidArgumentError(text, remedy="lower the guarantees below it, or raise its own amounts")
    except FlameError as error:
        return error
    return None


def check_name(name: str) -> None:
    """Raises InvalidArgumentError."""
    problem = ""
    if not name:
        problem = "is empty"
    elif len(name) > MAX_NAME:
        problem = f"is longer than {MAX_NAME} characters"
    elif name[0] in ".-":
        problem = f"begins with {name[0]!r}"
    else:
        wrong = next((char for char in name if char not in _ALLOWED), None)
        problem = f"holds {wrong!r}" if wrong is not None else ""
    if problem:
        raise InvalidArgumentError(f"tenant name {name[:40]!r} {problem}", remedy="use letters, digits, '-', '_', '.'")


def _check_values(name: str, spec: TenantSpec) -> None:
    if not (math.isfinite(spec.weight) and 0 < spec.weight <= MAX_WEIGHT):
        raise InvalidArgumentError(
            f"weight {spec.weight} of tenant {name} is not above 0 and up to {MAX_WEIGHT:.0f}",
            remedy="weights compare siblings: 2 gets twice the share of 1",
        )
    if len(spec.description) > MAX_DESCRIPTION:
        raise InvalidArgumentError(
            f"the description of tenant {name} has over {MAX_DESCRIPTION} characters", remedy="shorten it"
        )
    amounts = [(f"guarantee {field}", getattr(spec.guarantee, field)) for field in _FIELDS]
    amounts += [(f"quota {field}", getattr(spec.quota, field)) for field in (*_FIELDS, "sessions", "pending")]
    for what, value in amounts:
        if value is not None and not 0 <= value <= MAX_AMOUNT:
            raise InvalidArgumentError(
                f"{what} {value} of tenant {name} is not between 0 and 2^63-1",
                remedy="leave out what is not limited or guaranteed",
            )
    for field in _FIELDS:
        sure, most = getattr(spec.guarantee, field), getattr(spec.quota, field)
        if most is not None and most < sure:
            raise InvalidArgumentError(
                f"quota of {_amount(field, most)} of tenant {name} is below its guarantee of {_amount(field, sure)}",
                remedy="raise the quota, or lower the guarantee",
            )


def _check_parent(cluster: Cluster, name: str, parent: str) -> None:
    above = find(cluster, parent)
    line = [one.name for one in above.path]
    if name in line:
        loop = " < ".join([name, *line[: line.index(name) + 1]])
        raise InvalidArgumentError(f"tenant {name} can't be below itself: {loop}", remedy="choose another parent")
    if parent == DEFAULT_TENANT:
        raise InvalidArgumentError(
            f"tenant {DEFAULT_TENANT} has no others below it: it takes the sessions that name none",
            remedy="choose another parent",
        )
    depth = len(line) + _height(cluster, name)
    if depth > MAX_DEPTH:
        raise InvalidArgumentError(
            f"tenant {name} below {parent} would make a tree of {depth} levels, the limit is {MAX_DEPTH}",
            remedy="choose a parent further up",
        )
    if above.sessions and not above.children:
        raise InvalidStateError(
            f"tenant {parent} has {plural(above.sessions, 'open session')} of its own; "
            "sessions belong to tenants without others below them",
            remedy="close them, or choose another parent",
        )


def _height(cluster: Cluster, name: str) -> int:
    """Levels of the tree from this tenant down."""
    tenant = cluster.tenants.get(name)
    return 1 + max((_height(cluster, child) for child in tenant.children), default=0) if tenant is not None else 1


def unkept(specs: Mapping[str, TenantSpec], name: str = "") -> Iterator[str]:
    """What guarantees promise and can't keep, as texts: more below a tenant than it is guaranteed, or may use, itself.
    For `name` and those above it, or for all."""
    children: dict[str, list[str]] = {}
    for child, spec in specs.items():
        children.setdefault(spec.parent, []).append(child)

    def promised(one: str) -> Resources:
        below = _sum_of(children.get(one, ()))
        return Resources(*(max(getattr(specs[one].guarantee, field), getattr(below, field)) for field in _FIELDS))

    def _sum_of(names: Sequence[str]) -> Resources:
        return sum((promised(child) for child in names), Resources())

    looked_at = list(specs)
    if name:
        looked_at = [name]
        while specs[looked_at[-1]].parent:
            looked_at.append(specs[looked_at[-1]].parent)
    for one in looked_at:
        below = _sum_of(children.get(one, ()))
        for field in _FIELDS:
            need, sure, most = (getattr(of, field) for of in (below, specs[one].guarantee, specs[one].quota))
            if most is not None and need > most:
                yield (
                    f"the tenants below {one} are guaranteed {_amount(field, need)} together, "
                    f"its quota is {_amount(field, most)}"
                )
            elif sure and need > sure:
                yield (
                    f"the tenants below {one} are guaranteed {_amount(field, need)} together, "
                    f"it is guaranteed {_amount(field, sure)} itself"
                )


def _amount(field: str, value: int) -> str:
    return f"{format_size(value)} memory" if field == "memory" else f"{value} {field}"


def plural(number: int, what: str) -> str:
    """A number of things, as `1 task`, `2 tasks`."""
    return f"{number} {what}{'' if number == 1 else 's'}"

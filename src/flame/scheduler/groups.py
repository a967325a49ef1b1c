"""The tree of tenants as the scheduler sees it: what each has, may have and deserves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from flame.model.resources import Resources
from flame.model.tenants import NO_QUOTA, Quota, TenantSpec
from flame.scheduler.givers import Givers

if TYPE_CHECKING:
    from flame.scheduler.books import Ask

NOTHING = Resources()
_FIELDS = ("cpu", "memory", "gpu")


class Limit:
    """Executors of one application in all its sessions: `used` until they are gone, `claimed` promised and not started
    yet, `coming` those that stay and those claimed."""

    __slots__ = ("claimed", "coming", "most", "name", "used")

    def __init__(self, name: str, most: int) -> None:
        self.name = name
        self.most = most
        self.used = 0
        self.claimed = 0
        self.coming = 0


def dominant(amount: Resources, total: Resources) -> float:
    """The largest of its shares of cpu, memory and GPUs (Ghodsi et al., "Dominant Resource Fairness", NSDI 2011).
    What the cluster has none of counts as one whole cluster for each unit."""
    share = amount.cpu / total.cpu if total.cpu else float(amount.cpu)
    memory = amount.memory / total.memory if total.memory else float(amount.memory)
    if memory > share:
        share = memory
    if amount.gpu:
        gpu = amount.gpu / total.gpu if total.gpu else float(amount.gpu)
        if gpu > share:
            share = gpu
    return share


class Group:
    """One tenant, or the root. Amounts include the tenants below it.

    `used`: executors until they are gone; `kept`: claims; `coming`: executors that stay, and claims.
    """

    __slots__ = (
        "asks",
        "children",
        "coming",
        "executors",
        "givers",
        "guarantee",
        "kept",
        "name",
        "parent",
        "quota",
        "sessions",
        "turn",
        "used",
        "weight",
    )

    def __init__(self, name: str, parent: Group | None) -> None:
        self.name = name
        self.parent = parent
        self.children: dict[str, Group] = {}
        self.weight = 1.0
        self.guarantee = NOTHING
        self.quota: Quota = NO_QUOTA
        self.used = NOTHING
        self.kept = NOTHING
        self.coming = NOTHING
        self.executors = 0  # that stay, and claims
        self.sessions = 0
        self.turn = 0  # number of the latest start of an executor here; among equals the smallest goes first
        self.asks: dict[str, Ask] = {}
        self.givers = Givers()

    def path(self) -> Iterator[Group]:
        """This tenant and those above it, the root last."""
        group: Group | None = self
        while group is not None:
            yield group
            group = group.parent

    def hold(self, size: Resources) -> None:
        for group in self.path():
            group.used += size
            group.coming += size
            group.executors += 1

    def release(self, size: Resources) -> None:
        for group in self.path():
            group.used -= size

    def expect(self, size: Resources, sign: int) -> None:
        """One executor more (1) or less (-1) will stay."""
        for group in self.path():
            group.coming = group.coming + size if sign > 0 else group.coming - size
            group.executors += sign

    def keep(self, size: Resources, sign: int) -> None:
        """A claim of this size begins (1) or ends (-1)."""
        for group in self.path():
            group.kept = group.kept + size if sign > 0 else group.kept - size

    def over_quota(self, base: Resources, size: Resources) -> str:
        """The resource of which `base + size` would be over the quota; empty = none."""
        quota = self.quota
        if quota is NO_QUOTA:
            return ""
        for field in _FIELDS:
            most = getattr(quota, field)
            if most is not None and getattr(size, field) and getattr(base, field) + getattr(size, field) > most:
                return field
        return ""

    def within_guarantee(self, amount: Resources) -> bool:
        """Whether this much is covered by the guarantee, in every resource that it names."""
        guarantee = self.guarantee
        if guarantee == NOTHING:
            return False
        return all(getattr(amount, f) <= getattr(guarantee, f) for f in _FIELDS if getattr(guarantee, f))

    def order(self, total: Resources) -> tuple[int, float, int, str]:
        """Among siblings the smallest goes first: who has not got the guarantee, then the smallest weighted share, then
        who was served longest ago."""
        if self.guarantee != NOTHING:
            parts = [
                getattr(self.coming, f) / getattr(self.guarantee, f) for f in _FIELDS if getattr(self.guarantee, f)
            ]
            if max(parts) < 1:
                return (0, max(parts), self.turn, self.name)
        return (1, dominant(self.coming, total) / self.weight, self.turn, self.name)

    def weighted(self, amount: Resources, total: Resources) -> float:
        return dominant(amount, total) / self.weight


class Tree:
    """All tenants by name, under one root."""

    def __init__(self) -> None:
        self.root = Group("", None)
        self.groups: dict[str, Group] = {}

    def put(self, name: str, spec: TenantSpec) -> Group:
        """Add the tenant, or give it another spec; its parent must be there."""
        parent = self.groups[spec.parent] if spec.parent else self.root
        group = self.groups.get(name)
        if group is None:
            group = self.groups[name] = Group(name, parent)
            parent.children[name] = group
        elif group.parent is not parent:
            self._move(group, parent)
        group.weight = spec.weight
        group.guarantee = spec.guarantee
        group.quota = spec.quota
        return group

    def _move(self, group: Group, parent: Group) -> None:
        assert group.parent is not None
        del group.parent.children[group.name]
        for above in group.parent.path():
            above.used -= group.used
            above.kept -= group.kept
            above.coming -= group.coming
            above.executors -= group.executors
            above.sessions -= group.sessions
        group.parent = parent
        parent.children[group.name] = group
        for above in parent.path():
            above.used += group.used
            above.kept += group.kept
            above.coming += group.coming
            above.executors += group.executors
            above.sessions += group.sessions

    def drop(self, name: str) -> None:
        """Forget a tenant without children and sessions."""
        group = self.groups.pop(name)
        assert group.parent is not None
        del group.parent.children[name]


def join(one: Group, other: Group) -> tuple[Group, Group]:
    """The two tenants, above (or equal to) these, that are siblings: where their paths to the root part."""
    mine = list(one.path())
    theirs = list(other.path())
    while len(mine) > 1 and len(theirs) > 1 and mine[-2] is theirs[-2]:
        mine.pop()
        theirs.pop()
    return (mine[-2] if len(mine) > 1 else mine[-1], theirs[-2] if len(theirs) > 1 else theirs[-1])

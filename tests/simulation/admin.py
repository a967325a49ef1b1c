"""The administrator of the simulation: tenants come, change, move and go; nodes are cordoned, drained, taken back."""

from __future__ import annotations

import msgspec

from flame.engine import events as ev
from flame.model.resources import Resources
from flame.model.tenants import NO_QUOTA, Quota, TenantSpec
from simulation.manager import Manager
from simulation.world import World

LEAST = 2  # cpus of any quota: what the largest executor or gang of the simulation needs


class Admin:
    """Says again what got lost with a manager that was killed before it was durable."""

    def __init__(self, world: World, manager: Manager) -> None:
        self.world = world
        self.manager = manager
        self.wanted = {name: self._spec(parent) for name, parent in (("dept", ""), ("team", "dept"), ("solo", ""))}

    def _spec(self, parent: str) -> TenantSpec:
        rng = self.world.random
        cpu = rng.choice([None, None, LEAST, LEAST + 1])
        guarantee = Resources(rng.choice([0, 0, 1, 2]), 0, 0)
        return TenantSpec(
            parent, rng.choice([0.5, 1.0, 3.0]), guarantee, Quota(cpu=cpu, pending=rng.choice([None, 60]))
        )

    def say(self) -> None:
        """Everything that is wanted and not so."""
        for name, spec in self.wanted.items():
            known = self.manager.engine.tenants.get(name) if self.manager.alive else None
            if known is None or known.spec != spec:
                self.manager.push(ev.SetTenant(0, name, spec, create=known is None))

    def change(self) -> None:
        """Another weight, quota and guarantee; the team may move."""
        name = self.world.random.choice(sorted(self.wanted))
        spec = self.wanted[name]
        parent = self.world.random.choice(["", "dept"]) if name == "team" else spec.parent
        self.wanted[name] = self._spec(parent)
        self.say()

    def guest(self) -> None:
        """A tenant joins and leaves; one that is in use does not."""
        self.manager.push(ev.SetTenant(0, "guest", self._spec("solo" if self.world.random.random() < 0.1 else "")))
        name = self.world.random.choice(["guest", "guest", "dept", "default", "nobody"])
        self.world.later(0, 300, lambda: self.manager.push(ev.DeleteTenant(0, name)))

    def mark(self, node: str) -> None:
        """A node is cordoned or drained, and taken back after a while."""
        rng = self.world.random
        self.manager.push(ev.MarkNode(0, node, rng.choice(["cordon", "drain"]), rng.randint(0, 200)))
        self.world.later(10, 900, lambda: self.manager.push(ev.MarkNode(0, node, "uncordon")))

    def heal(self) -> None:
        """Quotas and guarantees leave room for everybody, and every node takes executors."""
        for name, spec in self.wanted.items():
            self.wanted[name] = msgspec.structs.replace(spec, quota=NO_QUOTA, guarantee=Resources())
        self.say()
        for name in self.manager.engine.marks if self.manager.alive else ():
            self.manager.push(ev.MarkNode(0, name, "uncordon"))

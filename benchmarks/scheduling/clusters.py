"""A full cluster in the real scheduler: nodes, tenants and sessions that want twice of what there is."""

from __future__ import annotations

import random

import msgspec

from flame.model.resources import Resources
from flame.model.specs import SessionSpec
from flame.model.tenants import TenantSpec
from flame.scheduler.books import Holding
from flame.scheduler.policies import BUILT_IN
from flame.scheduler.scheduler import Plan, Scheduler

GIB = 1024**3
MIB = 1024**2
POLICIES = ("drf", "priority", "gang", "locality", "binpack")  # the default of `cluster.policies`
PER_NODE = 4  # executors that fit on a node
NODE = Resources(PER_NODE, 16 * GIB, 0)
ZONES = 4
WEIGHTS = (1.0, 2.0, 5.0)
START_MS = 1_000_000


class Size(msgspec.Struct, frozen=True):
    """How large the cluster is, and how different its sessions are: `shapes` sizes and selectors among them."""

    nodes: int
    sessions: int
    tenants: int = 10
    shapes: int = 4

    @property
    def want(self) -> int:
        """Executors that each session can use: together twice as many as fit, and two at least."""
        return max(2, 2 * PER_NODE * self.nodes // self.sessions)

    def spec(self, number: int, priority: int = 0) -> SessionSpec:
        """Of the session with this number; its tenant and its shape vary independently of each other."""
        shape = number // self.tenants % self.shapes
        resreq = Resources(1, 2 * GIB + shape * MIB, 0)
        selector = {"zone": f"z{shape % ZONES}"} if shape % 2 else {}
        tenant = f"t{number % self.tenants}"
        return SessionSpec("app", tenant=tenant, resreq=resreq, selector=selector, priority=priority)


class Cluster:
    """A scheduler that was told of everything, and what the engine would do with its plans."""

    def __init__(self, size: Size) -> None:
        self.size = size
        self.scheduler = Scheduler([BUILT_IN[name]() for name in POLICIES])
        self.random = random.Random(1)
        self.now = START_MS
        self.made = 0
        self.opened = 0
        self.joined = 0

    # --- telling -------------------------------------------------------------------------------------------------

    def join(self, name: str, *, takes: bool = True) -> None:
        """A node is there, or was cordoned."""
        labels = {"zone": f"z{int(name[1:]) % ZONES}"}
        self.scheduler.put_node(name, NODE, takes=takes, labels=labels)

    def add_nodes(self) -> None:
        """All nodes of the cluster, empty."""
        for _ in range(self.size.nodes):
            self.join(self.next_node())

    def next_node(self) -> str:
        """The name of a node that was not there yet."""
        self.joined += 1
        return f"n{self.joined:05}"

    def add_sessions(self) -> None:
        """All tenants and sessions, each with something to do."""
        for number in range(self.size.tenants):
            self.scheduler.put_tenant(f"t{number}", TenantSpec(weight=WEIGHTS[number % len(WEIGHTS)]))
        for _ in range(self.size.sessions):
            self.open(self.size.want)

    def open(
        self,
        want: int,
        priority: int = 0,
        *,
        gang: int = 0,
        number: int | None = None,
        name: str = "",
        topology: str = "",
    ) -> str:
        """A session like number `number` (default: the next one); answers its name."""
        self.opened += 1
        spec = self.size.spec(self.opened if number is None else number, priority)
        if gang:
            spec = msgspec.structs.replace(spec, gang=True, min_instances=gang, topology=topology)
        name = name or f"s{self.opened:06}"
        assert spec.resreq is not None
        self.scheduler.open_session(name, spec, spec.resreq, self.now)
        self.scheduler.wants(name, gang or want, self.now)
        return name

    def close(self, session: str) -> None:
        """The session is closed and its executors are told to leave, as the engine does it."""
        for channel in self.scheduler.books.asks[session].holdings:
            self.scheduler.leaving(channel)
        self.scheduler.close_session(session)

    # --- deciding ------------------------------------------------------------------------------------------------

    def load(self, channel: int) -> int:
        """Every executor holds one task, but those without work none."""
        holding = self.scheduler.books.holdings.get(channel)
        return 0 if holding is None or holding.idle_since else 1

    def channel(self) -> int:
        """A number for a new executor."""
        self.made += 1
        return self.made

    def decide(self) -> Plan:
        """One pass."""
        return self.scheduler.decide(self.now, self.load, self.channel)

    def settle(self, *, patient: bool = False) -> None:
        """Who was told to leave is gone, and passes are made until none of them changes anything; `patient`: and none
        is asked for at a later time."""
        for _ in range(10_000):
            self.now += 1
            gone = [h.channel for h in self.scheduler.books.holdings.values() if h.leaving]
            for channel in gone:
                self.scheduler.freed(channel)
            plan = self.decide()
            if not gone and not plan.starts and not plan.stops and not plan.more:
                if not (patient and plan.again):
                    return
                self.now = plan.again
        raise AssertionError("the passes do not come to an end")

    # --- choosing ------------------------------------------------------------------------------------------------

    def holding(self) -> Holding:
        """Any executor."""
        return self.random.choice([h for h in self.scheduler.books.holdings.values() if not h.leaving])

    def session(self) -> str:
        """Any session."""
        return self.random.choice(list(self.scheduler.books.asks))

    def node(self) -> str:
        """Any node."""
        return self.random.choice(list(self.scheduler.books.places))


def full(size: Size) -> Cluster:
    """A cluster of this size in which every executor runs that fits."""
    cluster = Cluster(size)
    cluster.add_nodes()
    cluster.add_sessions()
    cluster.settle(patient=True)
    return cluster

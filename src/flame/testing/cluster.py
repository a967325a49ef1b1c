"""A cluster without machines: the real scheduler, pretended nodes and executors, and books of its own to check every
plan against. Scenarios, properties and the suite for policies run in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import count

import msgspec

from flame.model.resources import Resources
from flame.model.specs import DEFAULT_MAX_INSTANCES, UNIT, SessionSpec
from flame.model.tenants import DEFAULT_TENANT, TenantSpec
from flame.scheduler.gangs import SAME, SAME_NODE, SPREAD
from flame.scheduler.policy import Policy
from flame.scheduler.reasons import No
from flame.scheduler.scheduler import Plan, Scheduler, Start, Stop

START_MS = 1_000_000


class Node(msgspec.Struct):
    """A pretended node."""

    capacity: Resources
    labels: dict[str, str] = {}
    taints: tuple[str, ...] = ()
    limit: int = 0
    ready: bool = True
    cordoned: bool = False


class Executor(msgspec.Struct):
    """A pretended executor. `told`: it was asked to leave; `passed`: the number of the pass that started it."""

    channel: int
    session: str
    node: str
    resreq: Resources
    tenant: str
    application: str
    rank: int = 0
    world: int = 1
    told: bool = False
    idle: bool = False
    load: int = 1
    passed: int = 0


class Session(msgspec.Struct):
    """What was opened."""

    spec: SessionSpec
    resreq: Resources
    want: int = 0


class Cluster:
    """Tell it what happens, let passes run, ask who holds what. `prompt`: who is told to leave is gone at once."""

    def __init__(self, policies: Sequence[Policy], *, prompt: bool = True) -> None:
        self.scheduler = Scheduler(policies)
        self.prompt = prompt
        self.now = START_MS
        self.passes = 0
        self.nodes: dict[str, Node] = {}
        self.tenants: dict[str, TenantSpec] = {DEFAULT_TENANT: TenantSpec()}
        self.applications: dict[str, int] = {}
        self.sessions: dict[str, Session] = {}
        self.executors: dict[int, Executor] = {}
        self._channels = count(1)

    # --- nodes and tenants -------------------------------------------------------------------------------------------

    def node(
        self,
        name: str,
        capacity: Resources,
        *,
        labels: Mapping[str, str] | None = None,
        taints: Sequence[str] = (),
        limit: int = 0,
    ) -> None:
        """A node joins, comes back, or has changed; it keeps its mark."""
        known = self.nodes.get(name)
        cordoned = known is not None and known.cordoned
        self.nodes[name] = Node(capacity, dict(labels or {}), tuple(taints), limit, cordoned=cordoned)
        self._publish(name)

    def away(self, name: str) -> None:
        """Its link is down; its executors may still run."""
        self.nodes[name].ready = False
        self._publish(name)

    def back(self, name: str) -> None:
        """Its link is up again."""
        self.nodes[name].ready = True
        self._publish(name)

    def lost(self, name: str) -> None:
        """The node is gone with everything on it."""
        for executor in [x for x in self.executors.values() if x.node == name]:
            if executor.channel in self.executors:  # a gang goes as a whole
                self.gone(executor.channel)
        del self.nodes[name]
        self.scheduler.drop_node(name)

    def cordon(self, name: str, *, drain: bool = False, lift: bool = False) -> None:
        """It takes nothing new; `drain`: what runs there is told to leave, of a gang all members wherever they are;
        `lift`: it takes executors again."""
        self.nodes[name].cordoned = not lift
        self._publish(name)
        for executor in [x for x in self.executors.values() if x.node == name and drain]:
            for member in self.of(executor.session) if executor.world > 1 else [executor]:
                if not member.told:
                    self._told(member)
        self._leave()

    def _publish(self, name: str) -> None:
        node = self.nodes[name]
        self.scheduler.put_node(
            name,
            node.capacity,
            ready=node.ready,
            takes=not node.cordoned,
            labels=node.labels,
            taints=node.taints,
            limit=node.limit,
        )

    def tenant(self, name: str, spec: TenantSpec) -> None:
        """A tenant is there, or has another spec."""
        self.tenants[name] = spec
        self.scheduler.put_tenant(name, spec)

    def drop_tenant(self, name: str) -> None:
        """A tenant without children and sessions is gone."""
        del self.tenants[name]
        self.scheduler.drop_tenant(name)

    def above(self, tenant: str) -> Iterable[str]:
        """The tenant and those above it."""
        while tenant:
            yield tenant
            tenant = self.tenants[tenant].parent if tenant in self.tenants else ""

    # --- sessions and executors --------------------------------------------------------------------------------------

    def open(self, name: str, spec: SessionSpec | None = None, want: int = 0) -> None:
        """A session is open and could use so many executors."""
        spec = spec or SessionSpec("app")
        self.now += 1
        session = self.sessions[name] = Session(spec, spec.resreq or UNIT)
        most = self.applications.get(spec.application, DEFAULT_MAX_INSTANCES)
        self.scheduler.open_session(name, spec, session.resreq, self.now, most)
        self.want(name, want)

    def want(self, name: str, want: int) -> None:
        """It could use so many executors in all."""
        session = self.sessions[name]
        session.want = max(want, session.spec.min_instances)
        if session.spec.max_instances is not None:
            session.want = min(session.want, session.spec.max_instances)
        self.scheduler.wants(name, session.want, self.now)

    def close(self, name: str) -> None:
        """Its executors are told to leave, and it wants nothing any more."""
        del self.sessions[name]
        self.scheduler.close_session(name)
        for executor in self.of(name):
            if not executor.told:
                self._told(executor)
        self._leave()

    def idle(self, channel: int, idle: bool = True) -> None:
        """The executor has no work (any more), or has some again."""
        self.executors[channel].idle = idle
        self.executors[channel].load = 0 if idle else 1
        self.scheduler.idle(channel, self.now if idle else 0)

    def gone(self, channel: int) -> None:
        """The executor has ended. Of a gang the others are told to leave as well."""
        executor = self.executors.pop(channel)
        self.scheduler.freed(channel)
        if executor.world > 1 and not executor.told:
            for other in self.of(executor.session):
                if not other.told:
                    self._told(other)
            self._leave()

    def found(self, session: str, node: str) -> int:
        """An executor is there that no plan started."""
        known = self.sessions.get(session)
        resreq = known.resreq if known is not None else UNIT
        tenant = self._tenant(known.spec.tenant) if known is not None else ""
        application = known.spec.application if known is not None else ""
        channel = next(self._channels)
        self.executors[channel] = Executor(channel, session, node, resreq, tenant, application, told=known is None)
        self.scheduler.took(channel, session, node, resreq)
        return channel

    def of(self, session: str) -> list[Executor]:
        """The session's executors, those that leave as well, the oldest first."""
        return [executor for executor in self.executors.values() if executor.session == session]

    def holds(self, session: str) -> Counter[str]:
        """On which nodes the session has how many executors that stay."""
        return Counter(executor.node for executor in self.of(session) if not executor.told)

    def _tenant(self, name: str) -> str:
        return name if name in self.tenants else DEFAULT_TENANT

    def _told(self, executor: Executor) -> None:
        executor.told = True
        self.scheduler.leaving(executor.channel)

    def _leave(self) -> None:
        if self.prompt:
            self.let_go()

    def let_go(self) -> None:
        """Everybody who was told to leave is gone."""
        for executor in [x for x in self.executors.values() if x.told]:
            self.executors.pop(executor.channel)
            self.scheduler.freed(executor.channel)

    # --- passes ------------------------------------------------------------------------------------------------------

    def step(self) -> Plan:
        """One pass. Raises AssertionError when its plan breaks a rule."""
        self.passes += 1
        plan = self.scheduler.decide(self.now, self._load, lambda: next(self._channels))
        before = set(self.executors)
        self._stop([stop for stop in plan.stops if stop.channel in before])
        for start in plan.starts:
            self._start(start, before)
        self._check_gangs(plan.starts)
        self._stop([stop for stop in plan.stops if stop.channel not in before])
        self.scheduler.validate()
        return plan

    def _stop(self, stops: Sequence[Stop]) -> None:
        for stop in stops:
            executor = self.executors[stop.channel]
            assert not executor.told, f"executor {stop.channel} of {executor.session} is told to leave twice"
            executor.told = True

    def settle(self, most: int = 1_000) -> list[Plan]:
        """Passes until nothing changes any more; raises AssertionError when `most` were not enough."""
        plans: list[Plan] = []
        while len(plans) < most:
            plan = self.step()
            plans.append(plan)
            leaving = [x for x in self.executors.values() if x.told] if self.prompt else []
            self._leave()
            if not (plan.starts or plan.stops or leaving or self.scheduler.dirty):
                return plans
        raise AssertionError(f"no rest after {most} passes: the last one was {plans[-1]}")

    def wait(self, milliseconds: int) -> None:
        """Time passes."""
        self.now += milliseconds
        self.scheduler.dirty = True

    def explain(self, session: str) -> list[No]:
        """Every rule that keeps the session from getting executors."""
        return self.scheduler.explain(session)

    def _load(self, channel: int) -> int:
        return self.executors[channel].load if channel in self.executors else 0

    # --- what every plan must keep to --------------------------------------------------------------------------------

    def _start(self, start: Start, before: set[int]) -> None:
        session, node = self.sessions[start.session], self.nodes[start.node]
        spec, size = session.spec, session.resreq
        label = f"executor {start.channel} of {start.session} on {start.node}"
        assert start.channel not in before, f"{label}: that channel is in use"
        assert node.ready, f"{label}: the node is away"
        assert not node.cordoned, f"{label}: the node is cordoned"
        there = [x for x in self.executors.values() if x.node == start.node]
        held = sum((x.resreq for x in there), Resources())
        assert (held + size).fits(node.capacity), f"{label}: {held} of {node.capacity} is used, it needs {size}"
        assert not node.limit or len(there) < node.limit, f"{label}: the node's limit is {node.limit}"
        assert all(node.labels.get(k) == v for k, v in spec.selector.items()), f"{label}: against its selector"
        tolerated = {*spec.tolerations}
        untold = [t for t in node.taints if t not in tolerated and t.split("=", 1)[0] not in tolerated]
        assert not untold, f"{label}: against the taints {untold}"
        tenant = self._tenant(spec.tenant)
        self.executors[start.channel] = Executor(
            start.channel, start.session, start.node, size, tenant, spec.application, start.rank, start.world,
            passed=self.passes,
        )  # fmt: skip
        staying = sum(self.holds(start.session).values())
        assert staying <= session.want, f"{label}: {staying} executors, it wants {session.want}"
        self._check_quotas(tenant, size, label)
        most = self.applications.get(spec.application, DEFAULT_MAX_INSTANCES)
        same = sum(1 for x in self.executors.values() if x.application == spec.application)
        assert same <= most, f"{label}: {same} executors of {spec.application}, at most {most}"

    def _check_quotas(self, tenant: str, size: Resources, label: str) -> None:
        for name in self.above(tenant):
            quota = self.tenants[name].quota
            mine = [x for x in self.executors.values() if name in self.above(x.tenant)]
            used = sum((x.resreq for x in mine), Resources())
            for field in ("cpu", "memory", "gpu"):
                most = getattr(quota, field)
                over = most is not None and getattr(size, field) and getattr(used, field) > most
                assert not over, f"{label}: tenant {name} has {getattr(used, field)} {field}, its quota is {most}"

    def _check_gangs(self, starts: Sequence[Start]) -> None:
        gangs: dict[str, list[Start]] = {}
        for start in starts:
            if self.sessions[start.session].spec.gang:
                gangs.setdefault(start.session, []).append(start)
        for name, members in gangs.items():
            spec = self.sessions[name].spec
            world = max(1, spec.min_instances)
            ranks = [(start.rank, start.world) for start in members]
            assert ranks == [(rank, world) for rank in range(world)], f"gang {name} of {world} starts as {ranks}"
            nodes = [start.node for start in members]
            if spec.topology == SAME_NODE:
                assert len(set(nodes)) == 1, f"gang {name} is on {nodes}"
            elif spec.topology == SPREAD:
                assert len(set(nodes)) == world, f"gang {name} is on {nodes}"
            elif spec.topology.startswith(SAME):
                values = {self.nodes[node].labels.get(spec.topology[len(SAME) :]) for node in nodes}
                assert len(values - {None}) == len(values) == 1, f"gang {name} is on {nodes}, {values}"

"""Taking back in large clusters: who is found to give, how much a pass takes at once, and who is tried first."""

from __future__ import annotations

from itertools import count

from flame.model.resources import Resources
from flame.model.specs import SessionSpec
from flame.model.tenants import TenantSpec
from flame.scheduler.policies import BUILT_IN
from flame.scheduler.scheduler import MOVES, Plan, Scheduler, Start
from flame.scheduler.sweep import FRUITLESS, RESUME_MS

GIB = 1024**3
UNIT = Resources(1, GIB, 0)


class Cluster:
    """A scheduler, and what the engine would do with its plans."""

    def __init__(self) -> None:
        self.scheduler = Scheduler([BUILT_IN[name]() for name in ("drf", "priority", "gang", "locality", "binpack")])
        self.channels = count(1)
        self.now = 1_000

    def node(self, name: str, cpu: int, zone: str = "a") -> None:
        self.scheduler.put_node(name, Resources(cpu, cpu * GIB, 0), labels={"zone": zone})

    def session(self, name: str, want: int, *, zone: str = "", tenant: str = "", priority: int = 0) -> None:
        selector = {"zone": zone} if zone else {}
        spec = SessionSpec("app", selector=selector, tenant=tenant, priority=priority)
        self.scheduler.open_session(name, spec, UNIT, self.now)
        self.scheduler.wants(name, want, self.now)

    def decide(self) -> Plan:
        self.now += 1
        plan = self.scheduler.decide(self.now, lambda _: 1, lambda: next(self.channels))
        self.scheduler.validate()
        return plan

    def victims(self, plan: Plan) -> list[str]:
        """The sessions that give."""
        holders = [self.scheduler.books.holdings[stop.channel].ask for stop in plan.stops]
        return [ask.session for ask in holders if ask is not None]

    def leave(self, plan: Plan) -> None:
        for stop in plan.stops:
            self.scheduler.freed(stop.channel)

    def sweep(self) -> list[Start]:
        """Passes as they are asked for, victims leaving at once, until none is asked for; answers what they started."""
        starts: list[Start] = []
        for _ in range(100):
            plan = self.decide()
            starts += plan.starts
            self.leave(plan)
            if not (plan.again or self.scheduler.dirty):
                return starts
            self.now = max(self.now, plan.again)
        raise AssertionError("there is no end to the passes")

    def have(self, name: str) -> int:
        return self.scheduler.books.asks[name].have


def crowd(cluster: Cluster, sessions: int) -> None:
    """Zone a full of sessions with two executors each, zone b with one session that has two."""
    for number in range(sessions):
        cluster.node(f"a{number}", 2, "a")
        cluster.session(f"a{number}", 2, zone="a")
    cluster.node("b", 2, "b")
    cluster.session("b", 2, zone="b")
    assert len(cluster.decide().starts) == 2 * sessions + 2


def test_who_has_executors_only_elsewhere_does_not_hide_the_one_that_can_give() -> None:
    cluster = Cluster()
    crowd(cluster, 300)
    cluster.session("asks", 1, zone="b")
    assert cluster.victims(cluster.decide()) == ["b"]


def test_a_session_on_a_node_that_gets_another_label_can_give_there() -> None:
    cluster = Cluster()
    crowd(cluster, 5)
    cluster.session("asks", 2, zone="b")
    first = cluster.decide()
    assert cluster.victims(first) == ["b"]  # its other one would be no less than it keeps
    cluster.leave(first)
    assert len(cluster.decide().starts) == 1
    cluster.session("more", 1, zone="b")
    assert cluster.decide().stops == []
    on_it = {h.ask.session for h in cluster.scheduler.books.places["a3"].holdings.values() if h.ask is not None}
    cluster.node("a3", 2, "b")
    (victim,) = cluster.victims(cluster.decide())
    assert victim in on_it


def test_executors_that_a_new_node_takes_do_not_change_who_gives_first() -> None:
    cluster = Cluster()
    cluster.node("one", 6)
    cluster.session("large", 4)
    cluster.session("small", 2)
    assert len(cluster.decide().starts) == 6
    for number in range(3):
        cluster.node(f"more{number}", 1)
    cluster.session("large2", 3)
    cluster.decide()
    cluster.session("asks", 1)
    assert cluster.victims(cluster.decide()) == ["large"]


def test_a_session_that_deserves_very_many_gets_them_in_several_passes() -> None:
    cluster = Cluster()
    for number in range(10):
        cluster.node(f"n{number}", 20)
    cluster.session("first", 200)
    assert len(cluster.decide().starts) == 200
    cluster.session("second", 200)
    passes = 0
    while (plan := cluster.decide()).stops:
        passes += 1
        assert len(plan.stops) <= MOVES
        assert cluster.scheduler.dirty == (len(plan.stops) == MOVES)
        cluster.leave(plan)
    assert passes == 4
    cluster.decide()
    assert (cluster.have("first"), cluster.have("second")) == (100, 100)


def test_a_session_that_has_just_come_is_tried_at_once_though_many_wait_in_vain() -> None:
    cluster = Cluster()
    tenants = FRUITLESS + 10
    for number in range(tenants):
        cluster.scheduler.put_tenant(f"t{number}", TenantSpec())
        cluster.node(f"n{number}", 1)
        cluster.session(f"s{number}", 2, tenant=f"t{number}")
    assert len(cluster.decide().starts) == tenants
    assert cluster.decide().stops == []  # everyone has the same, and would like more
    cluster.session("urgent", 1, tenant="t7", priority=5)
    assert cluster.victims(cluster.decide()) == ["s7"]


def test_who_was_tried_in_vain_is_tried_again_after_a_change() -> None:
    cluster = Cluster()
    tenants = 2 * FRUITLESS + 10
    for number in range(tenants):
        cluster.scheduler.put_tenant(f"t{number}", TenantSpec())
        cluster.node(f"n{number}", 1, f"z{number}")
        cluster.session(f"s{number}", 2, tenant=f"t{number}", zone=f"z{number}")
    assert len(cluster.decide().starts) == tenants
    cluster.sweep()
    for number in (1, tenants - 1):  # of the queues that are tried first and last
        cluster.scheduler.put_tenant(f"t{number}", TenantSpec(guarantee=Resources(2, 0, 0)))
        other = f"n{(number + 5) % tenants}"
        cluster.node(other, 1, f"z{number}")
        assert [start.session for start in cluster.sweep()] == [f"s{number}"]


def test_passes_come_to_an_end_when_nothing_changes() -> None:
    cluster = Cluster()
    for number in range(3 * FRUITLESS):
        cluster.scheduler.put_tenant(f"t{number}", TenantSpec())
        cluster.node(f"n{number}", 1)
        cluster.session(f"s{number}", 2, tenant=f"t{number}")
    cluster.decide()
    assert cluster.sweep() == []
    assert cluster.sweep() == []  # one that nothing gave a reason for ends as well


def test_who_was_tried_before_others_got_more_is_tried_again() -> None:
    cluster = Cluster()
    cluster.node("a", 2, "a")
    cluster.node("b", 2, "b")
    cluster.session("anywhere", 4)
    cluster.session("only-a", 4, zone="a")
    plan = cluster.decide()
    assert (cluster.have("anywhere"), cluster.have("only-a")) == (3, 1)
    assert cluster.now < plan.again <= cluster.now + RESUME_MS
    cluster.now = plan.again
    cluster.sweep()
    assert (cluster.have("anywhere"), cluster.have("only-a")) == (2, 2)

"""What the scheduler never does, whatever happens: random clusters, tenants, sessions and events."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flame.model.resources import Resources
from flame.model.specs import SessionSpec
from flame.model.tenants import Quota, TenantSpec
from flame.scheduler import gangs
from flame.scheduler.policies import BUILT_IN
from flame.scheduler.rooms import Shape
from flame.testing.cluster import Cluster

GIB = 1024**3
DEFAULT = ("drf", "priority", "gang", "locality", "binpack")
ORDERS = (DEFAULT, ("priority", "drf", "gang", "spread"), ("priority", "gang"), ("drf", "gang"), ())
EXAMPLES = settings(
    max_examples=int(os.environ.get("FLAME_EXAMPLES", "150")),
    deadline=None,
    derandomize="FLAME_EXAMPLES" not in os.environ,
    suppress_health_check=list(HealthCheck),
)

Op = tuple[int, int, int, int]


def make(order: int, *, prompt: bool = True) -> Cluster:
    return Cluster([BUILT_IN[name]() for name in ORDERS[order % len(ORDERS)]], prompt=prompt)


# --- random events ---------------------------------------------------------------------------------------------------


def _node(cluster: Cluster, a: int, b: int, c: int) -> None:
    labels = [{}, {"zone": "x"}, {"zone": "y"}, {"zone": "x", "disk": "ssd"}][c % 4]
    size = Resources(b % 9, (1 + c % 8) * 4 * GIB, a % 3 if b % 2 else 0)
    taints = ("gpu=only",) if c % 7 == 6 else ()
    cluster.node(f"n{a % 5}", size, labels=labels, taints=taints, limit=c % 4 if b % 3 == 0 else 0)


def _nodes(cluster: Cluster, a: int, b: int, c: int) -> None:
    names = sorted(cluster.nodes)
    if not names:
        return
    name = names[a % len(names)]
    what = (cluster.away, cluster.back, cluster.lost, cluster.cordon, lambda n: cluster.cordon(n, lift=True),
            lambda n: cluster.cordon(n, drain=True))  # fmt: skip
    what[b % 6](name)
    del c


def _open(cluster: Cluster, a: int, b: int, c: int) -> None:
    name = f"s{a % 8}"
    if name in cluster.sessions:
        cluster.close(name)
        return
    tenants = sorted(cluster.tenants)
    gang = c % 3 == 0
    least = 1 + b % 4 if gang else b % 3 if c % 5 == 0 else 0
    spec = SessionSpec(
        f"app{b % 2}",
        tenant=tenants[c % len(tenants)],
        priority=b % 3,
        resreq=Resources(1 + c % 3, (1 + b % 5) * GIB, 1 if c % 11 == 10 else 0),
        min_instances=least,
        max_instances=None if gang or b % 2 else least + 1 + c % 4,
        gang=gang,
        topology=("", "same-node", "spread", "same:zone")[a % 4] if gang else "",
        selector={"zone": "x"} if b % 7 == 6 else {},
        tolerations=("gpu",) if c % 4 == 3 else (),
        prefer_nodes=(f"n{b % 5}",) if c % 6 == 5 else (),
    )
    cluster.open(name, spec, want=b % 10)


def _want(cluster: Cluster, a: int, b: int, c: int) -> None:
    """More work: those that had none have some again."""
    names = sorted(cluster.sessions)
    if names:
        cluster.want(names[a % len(names)], (b + c) % 12)
        for executor in cluster.of(names[a % len(names)]):
            cluster.idle(executor.channel, idle=False)


def _executor(cluster: Cluster, a: int, b: int, c: int) -> None:
    """One has no work any more, so that its session wants fewer; or it ends."""
    channels = sorted(cluster.executors)
    if not channels:
        return
    executor = cluster.executors[channels[a % len(channels)]]
    if b % 3:
        cluster.gone(executor.channel)
    elif not executor.told and executor.session in cluster.sessions:
        cluster.idle(executor.channel)
        busy = sum(1 for other in cluster.of(executor.session) if not other.told and not other.idle)
        cluster.want(executor.session, busy)
    del c


def _tenant(cluster: Cluster, a: int, b: int, c: int) -> None:
    name = f"t{a % 4}"
    if b % 5 == 4:
        used = {session.spec.tenant for session in cluster.sessions.values()}
        children = {spec.parent for spec in cluster.tenants.values()}
        if name in cluster.tenants and name not in used | children:
            cluster.drop_tenant(name)
        return
    parents = [p for p in ("", "t0", "t1") if (p in cluster.tenants and name not in cluster.above(p)) or not p]
    quota = Quota(cpu=c % 9 if c % 2 else None, memory=(4 + c) * GIB if c % 3 == 0 else None)
    guarantee = (
        Resources(b % 4, 0, 0) if c % 5 < 2 and b % 4 <= (quota.cpu if quota.cpu is not None else 9) else Resources()
    )
    cluster.tenant(name, TenantSpec(parents[c % len(parents)], 1.0 + b, guarantee, quota))


def _time(cluster: Cluster, a: int, b: int, c: int) -> None:
    cluster.wait(a * 10 + b * 100)
    del c


def _found(cluster: Cluster, a: int, b: int, c: int) -> None:
    nodes, names = sorted(cluster.nodes), [*sorted(cluster.sessions), ""]
    plain = [name for name in names if not name or not cluster.sessions[name].spec.gang]
    if nodes:
        cluster.found(plain[b % len(plain)], nodes[a % len(nodes)])
    del c


def _pass(cluster: Cluster, a: int, b: int, c: int) -> None:
    cluster.step()
    if a % 3 == 0:
        cluster.let_go()
    del b, c


def _calm(cluster: Cluster, a: int, b: int, c: int) -> None:
    """Also while those that were told to leave are still there."""
    cluster.settle(100)
    del a, b, c


EVENTS: tuple[Callable[[Cluster, int, int, int], None], ...] = (
    _node, _node, _nodes, _open, _open, _open, _want, _executor, _executor, _tenant, _time, _found, _pass, _calm,
)  # fmt: skip
NUMBER = st.integers(0, 40)
OPS = st.lists(st.tuples(st.integers(0, len(EVENTS) - 1), NUMBER, NUMBER, NUMBER), min_size=10, max_size=120)


def play(cluster: Cluster, ops: Sequence[Op]) -> None:
    """Let it all happen; every plan is checked by the cluster's own books."""
    for kind, a, b, c in ops:
        EVENTS[kind](cluster, a, b, c)
        cluster.scheduler.validate()


# --- properties ------------------------------------------------------------------------------------------------------


@EXAMPLES
@given(order=st.integers(0, 4), ops=OPS)
def test_no_plan_breaks_a_rule_and_all_comes_to_rest(order: int, ops: list[Op]) -> None:
    cluster = make(order, prompt=False)
    play(cluster, ops)
    cluster.prompt = True
    cluster.let_go()
    cluster.step()  # what was promised before is kept, even if somebody came meanwhile who deserves it more
    cluster.let_go()
    plans = cluster.settle(100)
    fresh = {start.channel: number for number, plan in enumerate(plans) for start in plan.starts}
    churned = [
        (stop, fresh[stop.channel], number)
        for number, plan in enumerate(plans)
        for stop in plan.stops
        if stop.channel in fresh
    ]
    assert not churned, f"started and stopped again without an event in between: {churned}"
    idle_room_is_used(cluster)


def idle_room_is_used(cluster: Cluster) -> None:
    """No session lacks an executor that would have room, within all limits."""
    scheduler = cluster.scheduler
    assert not scheduler.books.claims, "somebody waits for room that nobody makes"
    for ask in scheduler.books.asks.values():
        if not ask.lacking or scheduler._limit(ask, ask.world):
            continue
        shape = ask.shape
        assert isinstance(shape, Shape)
        open_to_it = [p for p in scheduler.books.places.values() if scheduler.rooms.takes(shape, p)]
        if ask.gang:
            assert gangs._fill(ask, open_to_it) is None, f"gang {ask.session} fits"
        else:
            assert not open_to_it, f"{ask.session} lacks one, {open_to_it[0].name} has {open_to_it[0].free}"

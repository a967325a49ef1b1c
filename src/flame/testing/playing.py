"""Plays a scenario step by step and compares how each one ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from flame.scheduler.policy import Policy
from flame.scheduler.reasons import No
from flame.testing.cluster import Cluster, Executor
from flame.testing.scenarios import ExplainText, NodeText, Scenario, SessionText, Step, Then


def run(scenario: Scenario, policies: Mapping[str, Callable[[], Policy]] | None = None) -> Cluster:
    """Play it; `policies` are known by name beside the built-in ones. Raises AssertionError, naming the step."""
    cluster = Cluster(scenario.make_policies(policies or {}), prompt=scenario.prompt)
    cluster.applications.update(scenario.applications)
    for name, spec in scenario.tenants.items():
        cluster.tenant(name, spec)
    _join(cluster, scenario.nodes)
    _open(cluster, scenario.sessions)
    for step in scenario.steps:
        try:
            _play(cluster, step)
        except AssertionError as error:
            raise AssertionError(f"{step.line}: {error}") from error
        except KeyError as error:
            raise AssertionError(f"{step.line}: nothing is called {error}") from error
    return cluster


def _play(cluster: Cluster, step: Step) -> None:
    for kind, value in step.events:
        _EVENTS[kind](cluster, value)
        cluster.scheduler.validate()
    plans = cluster.settle() if step.passes == "calm" else [cluster.step() for _ in range(int(step.passes))]
    if step.then is not None:
        fresh = {start.channel for plan in plans for start in plan.starts}
        told = {stop.channel for plan in plans for stop in plan.stops}
        churned = sorted(fresh & told)
        assert step.then.restless or not churned, f"executors {churned} were started and told to leave in this step"
        _compare(cluster, step.then)


# --- events ----------------------------------------------------------------------------------------------------------


def _join(cluster: Cluster, nodes: Mapping[str, NodeText]) -> None:
    for name, node in nodes.items():
        cluster.node(name, node.capacity, labels=node.labels, taints=node.taints, limit=node.limit)


def _open(cluster: Cluster, sessions: Mapping[str, SessionText]) -> None:
    for name, session in sessions.items():
        cluster.open(name, session.spec, session.want)


def _want(cluster: Cluster, wants: Mapping[str, int]) -> None:
    for name, want in wants.items():
        cluster.want(name, want)


def _chosen(cluster: Cluster, which: Mapping[str, int | Mapping[str, int]]) -> list[Executor]:
    """`session: 2` = its two oldest that stay; `session: {n1: 2}` = those on that node."""
    found: list[Executor] = []
    for name, count in which.items():
        staying = [executor for executor in cluster.of(name) if not executor.told]
        wanted = {"": count} if isinstance(count, int) else count
        for node, number in wanted.items():
            there = [executor for executor in staying if node in ("", executor.node)]
            assert len(there) >= number, f"{name} has only {len(there)} executors {f'on {node}' if node else ''}"
            found.extend(there[:number])
    return found


def _gone(cluster: Cluster, which: Mapping[str, int | Mapping[str, int]]) -> None:
    for executor in _chosen(cluster, which):
        if executor.channel in cluster.executors:
            cluster.gone(executor.channel)


def _idle(cluster: Cluster, which: Mapping[str, int | Mapping[str, int]]) -> None:
    for executor in _chosen(cluster, which):
        cluster.idle(executor.channel)


def _busy(cluster: Cluster, which: Mapping[str, int | Mapping[str, int]]) -> None:
    for executor in _chosen(cluster, which):
        cluster.idle(executor.channel, idle=False)


def _load(cluster: Cluster, which: Mapping[str, int | Mapping[str, int]]) -> None:
    """How many tasks each executor of the session (on that node) holds."""
    for name, loads in which.items():
        by_node = {"": loads} if isinstance(loads, int) else loads
        for executor in cluster.of(name):
            executor.load = by_node.get(executor.node, by_node.get("", executor.load))


def _found(cluster: Cluster, which: Mapping[str, int | Mapping[str, int]]) -> None:
    for name, places in which.items():
        assert not isinstance(places, int), f"found: say on which node {name} was found"
        for node, number in places.items():
            for _ in range(number):
                cluster.found(name, node)


def _left(cluster: Cluster, names: list[str]) -> None:
    """Those of the sessions that were told to leave are gone."""
    for executor in list(cluster.executors.values()):
        if executor.told and executor.session in names:
            cluster.gone(executor.channel)


def _each(act: Callable[[Cluster, str], None]) -> Callable[[Cluster, list[str]], None]:
    def all_of_them(cluster: Cluster, names: list[str]) -> None:
        for name in names:
            act(cluster, name)

    return all_of_them


def _tenants(cluster: Cluster, specs: Mapping[str, object]) -> None:
    for name, spec in specs.items():
        cluster.tenant(name, spec)  # type: ignore[arg-type]


_EVENTS: dict[str, Callable[..., None]] = {
    "join": _join,
    "away": _each(Cluster.away),
    "back": _each(Cluster.back),
    "lost": _each(Cluster.lost),
    "cordon": _each(Cluster.cordon),
    "uncordon": _each(lambda cluster, name: cluster.cordon(name, lift=True)),
    "drain": _each(lambda cluster, name: cluster.cordon(name, drain=True)),
    "tenants": _tenants,
    "drop_tenants": _each(Cluster.drop_tenant),
    "open": _open,
    "close": _each(Cluster.close),
    "want": _want,
    "gone": _gone,
    "idle": _idle,
    "busy": _busy,
    "found": _found,
    "left": _left,
    "load": _load,
    "wait": Cluster.wait,
}

# --- the end of a step -----------------------------------------------------------------------------------------------


def _compare(cluster: Cluster, then: Then) -> None:
    for name, expected in then.holds.items():
        held = cluster.holds(name)
        if isinstance(expected, int):
            assert held.total() == expected, f"{name} holds {held.total()} executors {dict(held)}, not {expected}"
        else:
            assert dict(held) == expected, f"{name} holds {dict(held)}, not {expected}"
    for name, expected in then.nodes.items():
        there = Counter(x.session for x in cluster.executors.values() if x.node == name and not x.told)
        assert dict(there) == expected, f"on {name} are {dict(there)}, not {expected}"
    for name, expected in then.leaving.items():
        count = sum(1 for executor in cluster.of(name) if executor.told)
        assert count == expected, f"{count} executors of {name} are leaving, not {expected}"
    for name, expected in then.tenants.items():
        count = cluster.scheduler.usage(name).executors
        assert count == expected, f"tenant {name} has {count} executors, not {expected}"
    for name, expected in then.wants_more.items():
        lacks = cluster.scheduler.lacks(name)
        assert lacks == expected, f"{name} {'lacks executors' if lacks else 'lacks none'}"
    for name, expected in then.impossible.items():
        no = cluster.scheduler.impossible(name)
        text = no.message if no is not None else ""
        assert expected in text if expected else not text, f"impossible for {name}: {text!r}, not {expected!r}"
    for name, expected in then.explain.items():
        _explains(name, cluster.explain(name), expected)
    for name, expected in then.faults.items():
        text = cluster.scheduler.policies.faults.get(name, "")
        assert expected in text, f"policy {name} failed with {text!r}, not {expected!r}"
    if not then.faults:
        assert not cluster.scheduler.policies.faults, f"policies failed: {cluster.scheduler.policies.faults}"


def _explains(name: str, reasons: list[No], expected: ExplainText | None) -> None:
    said = [f"{no.rule} {no.object}: {no.message}" for no in reasons]
    if expected is None:
        assert not reasons, f"explain {name} says {said}, not nothing"
        return
    assert reasons, f"explain {name} says nothing"
    first = reasons[0]
    assert expected.first in first.message, f"explain {name} says first {first.message!r}, not {expected.first!r}"
    assert not expected.whole or expected.whole == first.message, f"explain {name}: {first.message!r}"
    assert not expected.rule or expected.rule == first.rule, f"explain {name}: the rule is {first.rule}: {said}"
    assert expected.help in first.remedy, f"explain {name} says {first.remedy!r} helps, not {expected.help!r}"
    for text in expected.any:
        assert any(text in one for one in said), f"explain {name} says {said}, not {text!r}"
    for node, text in expected.nodes.items():
        of_it = [no.message for no in reasons if no.rule == "node" and no.object == node]
        assert any(text in one for one in of_it), f"explain {name} says of {node} {of_it}, not {text!r}"

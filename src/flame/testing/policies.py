"""What every scheduling policy must do. Its tests subclass `PolicyConformance` and run under pytest."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from itertools import combinations, permutations
from typing import Any

from flame.model.resources import Resources
from flame.model.specs import SessionSpec
from flame.model.tenants import Quota, TenantSpec
from flame.scheduler.books import Ask, Place
from flame.scheduler.policies import BUILT_IN
from flame.scheduler.policy import Policies, Policy
from flame.testing.cluster import Cluster

GIB = 1024**3
MOST_CALLS = 200  # of functions, for one answer: it is asked for every node that changes
_PLAIN = (int, float, str, bytes, bool, type(None), Resources)


def odd_cluster(policies: list[Policy]) -> Cluster:
    """Nodes and sessions of every kind: empty, full, without capacity, tainted, away; tiny, absurd, alike."""
    cluster = Cluster(policies)
    cluster.tenant("a", TenantSpec(weight=1e6, guarantee=Resources(2, 0, 0)))
    cluster.tenant("b", TenantSpec(weight=1e-6, quota=Quota(cpu=0)))
    cluster.node("nothing", Resources())
    cluster.node("plain", Resources(4, 16 * GIB, 0))
    cluster.node("twin", Resources(4, 16 * GIB, 0))
    cluster.node("labelled", Resources(8, 64 * GIB, 2), labels={"zone": "a", "": ""}, taints=("gpu", "team=x"))
    cluster.node("no-memory", Resources(4, 0, 0))
    cluster.node("no-cpu", Resources(0, GIB, 8), labels={"zone": "b"})
    cluster.node("limited", Resources(64, 2**60, 0), limit=1)
    cluster.node("huge", Resources(2**62, 2**62, 2**62), labels={"zone": "a"})
    cluster.node("cordoned", Resources(4, 16 * GIB, 0))
    cluster.cordon("cordoned")
    cluster.node("away", Resources(4, 16 * GIB, 0))
    for name, spec in _sessions():
        cluster.open(name, spec, want=2)
    cluster.step()
    cluster.away("away")
    return cluster


def _sessions() -> Iterator[tuple[str, SessionSpec]]:
    small, gpu = Resources(1, GIB, 0), Resources(1, GIB, 1)
    yield "plain", SessionSpec("app", resreq=small)
    yield "alike", SessionSpec("app", resreq=small, labels={"team": "x"})
    yield "urgent", SessionSpec("app", resreq=small, priority=2**31 - 1)
    yield "patient", SessionSpec("app", resreq=small, priority=-(2**31))
    yield "of-a", SessionSpec("other", resreq=small, tenant="a", priority=1)
    yield "of-b", SessionSpec("other", resreq=small, tenant="b", priority=1)
    yield "gpu", SessionSpec("app", resreq=gpu, selector={"zone": "a"}, tolerations=("gpu", "team"))
    yield "gang", SessionSpec("app", resreq=small, gang=True, min_instances=2, topology="same:zone")
    yield "picky", SessionSpec("app", resreq=small, prefer_nodes=("twin", "gone", ""), max_instances=1)
    yield "absurd", SessionSpec("app", resreq=Resources(2**63 - 1, 2**63 - 1, 2**63 - 1))
    yield "only-memory", SessionSpec("app", resreq=Resources(0, 1, 0), labels={"": ""})


def facts(thing: Ask | Place) -> dict[str, Any]:
    """Everything that a policy could change of what it is given."""
    found: dict[str, Any] = {}
    for name in type(thing).__slots__:
        value = getattr(thing, name)
        if isinstance(value, _PLAIN):
            found[name] = value
        elif isinstance(value, dict | list | tuple | set):
            found[name] = list(value)  # type: ignore[arg-type]
        else:
            found[name] = id(value)
    return found


class PolicyConformance:
    """Subclass it, name the subclass `Test...` and define `make`, which gives a new object of the policy."""

    def make(self) -> Policy:
        """The policy."""
        raise TypeError(f"{type(self).__name__} defines no make()")

    def ask_everything(self, policy: Policy, cluster: Cluster) -> dict[tuple[str, ...], Any]:
        """All its answers, by the question and the names of what it was about."""
        asks, places = list(cluster.scheduler.books.asks.values()), list(cluster.scheduler.books.places.values())
        answers: dict[tuple[str, ...], Any] = {}
        for ask in asks:
            answers["rank", ask.session] = policy.rank(ask)
            answers["key", ask.session] = policy.key(ask)
            answers["prefer", ask.session] = policy.prefer(ask)
            for place in places:
                answers["allows", ask.session, place.name] = policy.allows(ask, place)
                answers["score", ask.session, place.name] = policy.score(ask, place)
            for other in asks:
                answers["yields", ask.session, other.session] = policy.yields(ask, other)
        return answers

    def test_it_has_a_name_of_its_own(self) -> None:
        policy = self.make()
        assert policy.name, "set `name`: cluster.policies needs it"
        assert policy.name == policy.name.strip().lower(), f"{policy.name!r} is not lower case"
        taken = BUILT_IN.get(policy.name)
        assert taken in (None, type(policy)), f"{policy.name!r} is the name of a policy that comes with Flame"

    def test_answers_are_of_the_right_type(self) -> None:
        cluster = odd_cluster([])
        asked = Policies([self.make()])
        for ask in cluster.scheduler.books.asks.values():
            for place in cluster.scheduler.books.places.values():
                asked.allows(ask, place)
                asked.score(ask, place)
            for other in cluster.scheduler.books.asks.values():
                asked.yields(ask, other)
            asked.rank(ask)
            asked.key(ask)
            asked.prefer(ask)
        assert not asked.faults, f"it failed on odd but legal nodes or sessions: {asked.faults}"

    def test_the_same_question_has_the_same_answer(self) -> None:
        cluster = odd_cluster([])
        policy = self.make()
        first = self.ask_everything(policy, cluster)
        assert self.ask_everything(policy, cluster) == first, "it remembers: answers differ the second time"
        assert self.ask_everything(self.make(), cluster) == first, "two objects of it differ"

    def test_it_changes_nothing(self) -> None:
        cluster = odd_cluster([])
        things = [*cluster.scheduler.books.asks.values(), *cluster.scheduler.books.places.values()]
        before = [facts(thing) for thing in things]
        self.ask_everything(self.make(), cluster)
        assert [facts(thing) for thing in things] == before

    def test_scores_are_between_0_and_1(self) -> None:
        answers = self.ask_everything(self.make(), odd_cluster([]))
        wrong = {
            question: answer for question, answer in answers.items() if question[0] == "score" and not 0 <= answer <= 1
        }
        assert not wrong

    def test_sessions_with_the_same_key_get_the_same_answers(self) -> None:
        """The scheduler asks for one of them and uses the answer for all."""
        cluster = odd_cluster([])
        policy = self.make()
        answers = self.ask_everything(policy, cluster)
        for one, other in combinations(cluster.scheduler.books.asks.values(), 2):
            if self._shape(policy, one) == self._shape(policy, other):
                for name in cluster.scheduler.books.places:
                    for hook in ("allows", "score"):
                        mine, theirs = answers[hook, one.session, name], answers[hook, other.session, name]
                        assert mine == theirs, (
                            f"{hook} differs for {one.session} and {other.session} on {name}: put into `key` "
                            "what it depends on"
                        )

    @staticmethod
    def _shape(policy: Policy, ask: Ask) -> tuple[object, ...]:
        return (ask.resreq, sorted(ask.selector.items()), sorted(ask.tolerations), policy.key(ask))

    def test_a_full_node_is_as_allowed_as_an_empty_one(self) -> None:
        """`allows` is asked once for each kind of session and node; whether there is room is not its question."""
        empty, full = odd_cluster([]), odd_cluster([])
        for place in full.scheduler.books.places.values():
            for _ in range(3):
                full.found("plain", place.name)
        policy = self.make()
        before, after = self.ask_everything(policy, empty), self.ask_everything(policy, full)
        for question, answer in before.items():
            assert question[0] != "allows" or after[question] == answer, f"{question}: {answer!r}, {after[question]!r}"

    def test_nobody_yields_in_a_circle(self) -> None:
        """Else executors would go to and fro between them."""
        cluster = odd_cluster([])
        policy = self.make()
        asks = list(cluster.scheduler.books.asks.values())
        for ask in asks:
            assert not policy.yields(ask, ask), f"{ask.session} yields to itself"
        for one, other in combinations(asks, 2):
            both = policy.yields(one, other) and policy.yields(other, one)
            assert not both, f"{one.session} and {other.session} yield to each other"
        for a, b, c in permutations(asks, 3):
            circle = policy.yields(a, b) and policy.yields(b, c) and policy.yields(c, a)
            assert not circle, f"{a.session}, {b.session} and {c.session} yield in a circle"

    def test_an_answer_takes_few_steps(self) -> None:
        """Counted in calls of functions, so that the machine does not matter."""
        cluster = odd_cluster([])
        policy = self.make()
        ask, other = cluster.scheduler.books.asks["plain"], cluster.scheduler.books.asks["urgent"]
        place = cluster.scheduler.books.places["plain"]
        questions: list[tuple[str, Callable[[], object]]] = [
            ("rank", lambda: policy.rank(ask)),
            ("key", lambda: policy.key(ask)),
            ("prefer", lambda: policy.prefer(ask)),
            ("allows", lambda: policy.allows(ask, place)),
            ("score", lambda: policy.score(ask, place)),
            ("yields", lambda: policy.yields(ask, other)),
        ]
        for name, question in questions:
            calls = _count_calls(question)
            assert calls <= MOST_CALLS, f"{name} makes {calls} calls for one answer, at most {MOST_CALLS} will do"

    def test_it_works_in_a_cluster(self) -> None:
        """With the usual policies behind it: all that is wanted and fits runs, comes to rest, and no rule is broken."""
        policy = self.make()
        others = [made for made in (BUILT_IN["drf"](), BUILT_IN["gang"]()) if made.name != policy.name]
        cluster = odd_cluster([policy, *others])
        cluster.settle()
        assert cluster.executors, "nothing runs"
        for channel in list(cluster.executors)[::2]:
            if channel in cluster.executors:
                cluster.gone(channel)
        cluster.back("away")
        cluster.cordon("cordoned", lift=True)
        cluster.close("urgent")
        cluster.lost("plain")
        cluster.settle()
        cluster.open("late", SessionSpec("app", priority=1), want=5)
        cluster.settle()
        assert not cluster.scheduler.policies.faults
        for name in cluster.sessions:
            cluster.explain(name)


def _count_calls(question: Callable[[], object]) -> int:
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        question()
    finally:
        sys.setprofile(before)
    return calls

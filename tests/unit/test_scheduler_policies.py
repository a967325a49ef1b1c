"""All policies pass the suite for policies; the suite finds what is wrong with a bad one; a bad one stops nothing."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import count
from typing import Any

import pytest

from flame.model.resources import Resources
from flame.scheduler.books import Ask, Place
from flame.scheduler.policies import BUILT_IN, Binpack, Drf, Gang, Locality, Priority, Spread
from flame.scheduler.policy import Policy
from flame.testing.cluster import Cluster
from flame.testing.policies import PolicyConformance, odd_cluster

GIB = 1024**3


class TestBinpack(PolicyConformance):
    def make(self) -> Policy:
        return Binpack()


class TestDrf(PolicyConformance):
    def make(self) -> Policy:
        return Drf()


class TestGang(PolicyConformance):
    def make(self) -> Policy:
        return Gang()


class TestLocality(PolicyConformance):
    def make(self) -> Policy:
        return Locality()


class TestPriority(PolicyConformance):
    def make(self) -> Policy:
        return Priority()


class TestSpread(PolicyConformance):
    def make(self) -> Policy:
        return Spread()


class OwnTeam(Policy):
    """An example of a third party's policy: the nodes of a team are for its sessions, which start there first."""

    name = "own-team"

    def key(self, ask: Ask) -> Hashable:
        return ask.labels.get("team", "")

    def allows(self, ask: Ask, place: Place) -> str:
        team = place.labels.get("team", "")
        return "" if team in ("", ask.labels.get("team", "")) else f"it belongs to team {team}"

    def score(self, ask: Ask, place: Place) -> float:
        return 1.0 if place.labels.get("team") == ask.labels.get("team") else 0.5


class TestOwnTeam(PolicyConformance):
    def make(self) -> Policy:
        return OwnTeam()


def test_the_suite_runs_against_every_policy_that_comes_with_flame() -> None:
    tested = {type(suite().make()) for suite in PolicyConformance.__subclasses__()}
    assert set(BUILT_IN.values()) <= tested


# --- the suite finds what is wrong -----------------------------------------------------------------------------------


class Bad(Policy):
    name = "bad"


class Nameless(Policy):
    pass


class Impostor(Policy):
    name = "drf"


class Partial(Bad):
    def score(self, ask: Ask, place: Place) -> float:
        return place.used.cpu / place.capacity.cpu


class Wordy(Bad):
    def allows(self, ask: Ask, place: Place) -> str:
        return True  # type: ignore[return-value]


class Forgetful(Bad):
    def __init__(self) -> None:
        self.asked = count()

    def rank(self, ask: Ask) -> float:
        return float(next(self.asked))


class Meddler(Bad):
    def allows(self, ask: Ask, place: Place) -> str:
        place.capacity += Resources(1, 0, 0)
        return ""


class Boaster(Bad):
    def score(self, ask: Ask, place: Place) -> float:
        return 100.0


class Keyless(Bad):
    def score(self, ask: Ask, place: Place) -> float:
        return 1.0 if ask.labels else 0.0


class Counter(Bad):
    def allows(self, ask: Ask, place: Place) -> str:
        return "it is full" if len(place.holdings) > 1 else ""


class Polite(Bad):
    def yields(self, victim: Ask, claimant: Ask) -> bool:
        return victim is not claimant


class Round(Bad):
    def yields(self, victim: Ask, claimant: Ask) -> bool:
        return (len(claimant.session) - len(victim.session)) % 3 == 1


class Raiser(Bad):
    def rank(self, ask: Ask) -> float:
        raise RuntimeError(ask.session)


class Slow(Bad):
    def rank(self, ask: Ask) -> float:
        return float(sum(abs(number) for number in range(1_000)))


@pytest.mark.parametrize(
    ("policy", "test"),
    [
        (Nameless, "test_it_has_a_name_of_its_own"),
        (Impostor, "test_it_has_a_name_of_its_own"),
        (Partial, "test_answers_are_of_the_right_type"),
        (Wordy, "test_answers_are_of_the_right_type"),
        (Forgetful, "test_the_same_question_has_the_same_answer"),
        (Meddler, "test_it_changes_nothing"),
        (Boaster, "test_scores_are_between_0_and_1"),
        (Keyless, "test_sessions_with_the_same_key_get_the_same_answers"),
        (Counter, "test_a_full_node_is_as_allowed_as_an_empty_one"),
        (Polite, "test_nobody_yields_in_a_circle"),
        (Round, "test_nobody_yields_in_a_circle"),
        (Slow, "test_an_answer_takes_few_steps"),
        (Raiser, "test_it_works_in_a_cluster"),
    ],
)
def test_the_suite_refuses(policy: type[Policy], test: str) -> None:
    class Suite(PolicyConformance):
        def make(self) -> Policy:
            return policy()

    with pytest.raises(AssertionError):
        getattr(Suite(), test)()


# --- a bad policy stops nothing --------------------------------------------------------------------------------------


def faulty(hook: str, answer: Any) -> Policy:
    """A policy whose answer to one question is wrong, or an exception to raise."""

    def reply(self: Policy, *given: object) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    return type("Faulty", (Bad,), {hook: reply})()


ANSWERS: Sequence[Any] = (
    RuntimeError("no idea"), float("nan"), None, "text", b"bytes", [1, [2]], [["n1"]], {}, object(), 1 + 2j, -1,
    float("inf"), 10**400,
)  # fmt: skip


@pytest.mark.parametrize("answer", ANSWERS, ids=[repr(answer)[:20] for answer in ANSWERS])
@pytest.mark.parametrize("hook", ["rank", "key", "prefer", "allows", "score", "yields"])
def test_whatever_a_policy_answers_no_pass_stops(hook: str, answer: Any) -> None:
    cluster = odd_cluster([faulty(hook, answer), Drf(), Priority(), Gang(), Binpack()])
    cluster.settle()
    vetoed = hook == "allows" and isinstance(answer, str)
    assert bool(cluster.executors) != vetoed
    for name in cluster.sessions:
        cluster.explain(name)
    for channel in list(cluster.executors):
        if channel in cluster.executors:
            cluster.gone(channel)
    cluster.settle()


@pytest.mark.parametrize("hook", ["rank", "key", "prefer", "allows", "score", "yields"])
def test_one_that_fails_is_named_and_the_others_still_count(hook: str) -> None:
    cluster = Cluster([faulty(hook, RuntimeError("no idea")), Drf(), Priority()])
    cluster.node("n1", Resources(2, 8 * GIB, 0))
    cluster.open("s", want=3)
    cluster.step()
    cluster.open("t", want=1)
    cluster.step()
    assert cluster.holds("s") == {"n1": 1}
    cluster.open("u", want=3)
    cluster.step()
    assert cluster.scheduler.policies.faults == {"bad": f"{hook}: RuntimeError: no idea"}
    assert ("policy", "bad") in [(no.rule, no.object) for no in cluster.explain("u")]

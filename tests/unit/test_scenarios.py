"""Every file of tests/scenarios is played against the scheduler; what is misspelt in one is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from flame.model.errors import InvalidConfigError
from flame.scheduler.books import Ask, Place
from flame.scheduler.policy import Policy
from flame.testing.playing import run
from flame.testing.scenarios import load

FILES = sorted((Path(__file__).parent.parent / "scenarios").glob("*.yaml"))


class Raising(Policy):
    name = "raising"

    def rank(self, ask: Ask) -> float:
        raise RuntimeError(f"no idea about {ask.session}")


class NotANumber(Policy):
    name = "not-a-number"

    def score(self, ask: Ask, place: Place) -> float:
        return float("nan")


class Wordy(Policy):
    name = "wordy"

    def score(self, ask: Ask, place: Place) -> float:
        return "very well"  # type: ignore[return-value]

    def prefer(self, ask: Ask) -> list[str]:
        return "n1"  # type: ignore[return-value]


FAULTY = {policy.name: policy for policy in (Raising, NotANumber, Wordy)}


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_scenario(path: Path) -> None:
    run(load(path), FAULTY)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("steps: []", "story is missing"),
        ("story: x\nsteps: []\nnode: {}", "unknown key 'node'; did you mean nodes?"),
        ("story: x\nsteps: []\nnodes: {n1: {cpus: 2}}", "nodes: n1: unknown key 'cpus'; did you mean cpu?"),
        ("story: x\nsteps: []\nsessions: {s: {wants: 2}}", "sessions: s: unknown key 'wants'; did you mean want?"),
        ("story: x\nsteps: []\ntenants: {t: {wait: 2}}", "tenants: t: unknown key 'wait'; did you mean weight?"),
        ("story: x\nsteps: [{opn: {s: {}}}]", "step 1: unknown key 'opn'; did you mean open?"),
        ("story: x\nsteps: [{then: {hold: {s: 1}}}]", "step 1: then: unknown key 'hold'; did you mean holds?"),
        ("story: x\nsteps: [{wait: soon}]", "step 1: wait: 'soon' is no time such as 50ms, 2s or 1m"),
        ("story: x\nsteps: [{want: {s: many}}]", "step 1: want: Expected `int`"),
        ("story: x\nsteps: [{passes: some}]", "step 1: passes: 'some' is neither calm nor a number"),
        ("story: x\nleaving: never\nsteps: []", "'never' is neither 'at once' nor 'when told'"),
        ("story: x\nsteps: 3", "steps: 3 is no list"),
    ],
)
def test_what_is_misspelt_is_refused_with_its_place(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(InvalidConfigError) as caught:
        load(path)
    assert words in str(caught.value)
    assert str(caught.value).startswith("bad.yaml")


def test_an_unknown_policy_is_refused_with_the_nearest_known_one(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("story: x\npolicies: [binpak]\nsteps: []")
    with pytest.raises(InvalidConfigError, match="did you mean binpack"):
        run(load(path))


@pytest.mark.parametrize(
    ("then", "words"),
    [
        ("holds: {s: 3}", "s holds 2 executors"),
        ("holds: {s: {n1: 1}}", "s holds {'n1': 2}, not {'n1': 1}"),
        ("nodes: {n1: {}}", "on n1 are {'s': 2}, not {}"),
        ("leaving: {s: 1}", "0 executors of s are leaving"),
        ("tenants: {default: 1}", "tenant default has 2 executors"),
        ("wants_more: {s: false}", "s lacks executors"),
        ("impossible: {s: GPU}", "impossible for s: ''"),
        ("explain: {s: GPU}", "explain s says first"),
        ("explain: {s: nothing}", "not nothing"),
        ("explain: {s: {any: [GPU]}}", "not 'GPU'"),
        ("explain: {s: {nodes: {n1: GPU}}}", "explain s says of n1"),
        ("faults: {drf: bad}", "policy drf failed with ''"),
        ("holds: {s: 2, t: 1}", "t holds 0"),
    ],
)
def test_an_end_that_is_not_as_written_fails_with_its_step(tmp_path: Path, then: str, words: str) -> None:
    path = tmp_path / "other.yaml"
    path.write_text(
        f"story: x\nnodes: {{n1: {{cpu: 2}}}}\nsessions: {{s: {{want: 9}}}}\nsteps: [{{}}, {{then: {{{then}}}}}]"
    )
    with pytest.raises(AssertionError) as caught:
        run(load(path))
    assert words in str(caught.value)
    assert "other.yaml: step 2" in str(caught.value)

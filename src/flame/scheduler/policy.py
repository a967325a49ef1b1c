"""What a scheduling policy is: a few questions that it may answer, each with a default of "no opinion".

Policies are asked in the order of `cluster.policies`; an earlier one weighs more. One that raises is named in the log
and in explanations, and is not asked again in that pass. What is never up to a policy: capacity, quotas, selectors,
taints and limits hold whatever the policies say.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from flame.scheduler.books import Ask, Place


class Policy:
    """Base of all policies; override what it has an opinion on. It may read what it is given and must not change it.

    The answers have to be functions of their arguments alone: the scheduler remembers them until a session or a node
    changes.
    """

    name = ""
    fair = False  # tenants and sessions share by dominant resource
    gangs = False  # sessions may ask for all or nothing

    def rank(self, ask: Ask) -> float:
        """Whose turn it is among the sessions of one tenant: smaller goes first."""
        del ask
        return 0.0

    def key(self, ask: Ask) -> Hashable:
        """What of the session, beside its size, selector and tolerations, `allows` and `score` depend on."""
        del ask
        return ()

    def prefer(self, ask: Ask) -> Sequence[str]:
        """Names of nodes to be tried before all others."""
        del ask
        return ()

    def allows(self, ask: Ask, place: Place) -> str:
        """Why the session may not use this node at all; empty = it may."""
        del ask, place
        return ""

    def score(self, ask: Ask, place: Place) -> float:
        """How well the node suits, 0 to 1; the largest wins."""
        del ask, place
        return 0.0

    def yields(self, victim: Ask, claimant: Ask) -> bool:
        """Whether `victim` has to give executors to `claimant`, a session of the same tenant that lacks some."""
        del victim, claimant
        return False


_HOOKS = ("rank", "key", "prefer", "allows", "score", "yields")


def _number(answer: Any) -> bool:
    return isinstance(answer, int | float) and answer == answer  # what is not a number differs from itself


def _text(answer: Any) -> bool:
    return isinstance(answer, str)


def _truth(answer: Any) -> bool:
    return isinstance(answer, bool)


def _names(answer: Any) -> bool:
    return isinstance(answer, list | tuple) and all(isinstance(name, str) for name in cast("Sequence[Any]", answer))


def _hashable(answer: Any) -> bool:
    hash(answer)  # raises when it is not
    return True


class Policies:
    """The policies of a cluster, asked safely. `faults` holds what each failed one said, by its name."""

    def __init__(self, policies: Sequence[Policy]) -> None:
        self.policies = list(policies)
        self.fair = any(policy.fair for policy in policies)
        self.gangs = any(policy.gangs for policy in policies)
        names = [policy.name for policy in policies]
        self.priority_first = "priority" in names and (
            "drf" not in names or names.index("priority") < names.index("drf")
        )
        self.faults: dict[str, str] = {}
        self._down: set[str] = set()  # raised in this pass
        self._told: dict[str, str] = {}
        self._hooks: dict[str, list[tuple[str, Callable[..., Any]]]] = {
            hook: [(p.name, getattr(p, hook)) for p in policies if getattr(type(p), hook) is not getattr(Policy, hook)]
            for hook in _HOOKS
        }

    def begin(self) -> None:
        """A new pass: every policy gets another chance. Its fault stands until it has answered that question."""
        self._down.clear()

    def news(self) -> list[tuple[str, str]]:
        """Faults (name, text) that were not answered here before."""
        fresh = [(name, text) for name, text in self.faults.items() if self._told.get(name) != text]
        self._told.update(self.faults)
        return fresh

    def _ask(self, hook: str, suits: Callable[[Any], bool], silent: Any, *arguments: Any) -> list[Any]:
        """The answers, `silent` for a policy that raised or answered what does not suit, so that those of one pass stay
        comparable."""
        answers: list[Any] = []
        for name, call in self._hooks[hook]:
            if name in self._down:
                answers.append(silent)
                continue
            try:
                answer = call(*arguments)
                if not suits(answer):
                    raise TypeError(f"{hook} answered {answer!r}")
            except Exception as error:  # whatever a third party's policy raises
                self._down.add(name)
                self.faults[name] = f"{hook}: {type(error).__name__}: {error}"
                answer = silent
            else:
                if self.faults and self.faults.get(name, "").startswith(f"{hook}:"):
                    del self.faults[name]
            answers.append(answer)
        return answers

    def rank(self, ask: Ask) -> tuple[float, ...]:
        hooks = self._hooks["rank"]
        return tuple(self._ask("rank", _number, 0.0, ask)) if hooks else ()

    def key(self, ask: Ask) -> tuple[Hashable, ...]:
        return tuple(self._ask("key", _hashable, (), ask)) if self._hooks["key"] else ()

    def prefer(self, ask: Ask) -> list[str]:
        if not self._hooks["prefer"]:
            return []
        return [name for names in self._ask("prefer", _names, (), ask) for name in names]

    def allows(self, ask: Ask, place: Place) -> str:
        if not self._hooks["allows"]:
            return ""
        return next((text for text in self._ask("allows", _text, "", ask, place) if text), "")

    def score(self, ask: Ask, place: Place) -> tuple[float, ...]:
        """Negated, so that the smallest is the best."""
        hooks = self._hooks["score"]
        if len(hooks) == 1 and not self._down and not self.faults:  # asked for every node that changed
            try:
                value = hooks[0][1](ask, place)
                if value.__class__ is float and value == value:  # not a number is not equal to itself
                    return (-value,)
            except Exception:  # asked again below, where it is noted
                pass
        return tuple(-value for value in self._ask("score", _number, 0.0, ask, place))

    def yields(self, victim: Ask, claimant: Ask) -> bool:
        """Whether one has to give way to the other; policies that say so both ways say nothing."""
        hooks = self._hooks["yields"]
        if not hooks:
            return False
        if len(hooks) == 1 and not self._down and not self.faults:  # asked for every session that might give
            call = hooks[0][1]
            try:
                one, other = call(victim, claimant), call(claimant, victim)
                if one.__class__ is bool and other.__class__ is bool:
                    return one and not other
            except Exception:  # asked again below, where it is noted
                pass
        return any(self._ask("yields", _truth, False, victim, claimant)) and not any(
            self._ask("yields", _truth, False, claimant, victim)
        )

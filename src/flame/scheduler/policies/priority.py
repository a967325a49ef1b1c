"""A session of higher priority goes first, and takes executors back from lower ones."""

from __future__ import annotations

from flame.scheduler.books import Ask
from flame.scheduler.policy import Policy


class Priority(Policy):
    """Before `drf` in the order it counts across tenants, after it inside each of them."""

    name = "priority"

    def rank(self, ask: Ask) -> float:
        return -float(ask.priority)

    def yields(self, victim: Ask, claimant: Ask) -> bool:
        return victim.priority < claimant.priority

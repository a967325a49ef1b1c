"""Executors go where their session's data is."""

from __future__ import annotations

from collections.abc import Sequence

from flame.scheduler.books import Ask
from flame.scheduler.policy import Policy


class Locality(Policy):
    """Tries the nodes that the session prefers before all others; they are a wish, not a condition."""

    name = "locality"

    def prefer(self, ask: Ask) -> Sequence[str]:
        return ask.prefer

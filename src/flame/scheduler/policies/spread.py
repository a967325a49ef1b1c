"""Use all nodes evenly, so that the loss of one takes little."""

from __future__ import annotations

from flame.scheduler.books import Ask, Place
from flame.scheduler.policies.binpack import fullness
from flame.scheduler.policy import Policy


class Spread(Policy):
    """Scores a node by how empty it is."""

    name = "spread"

    def score(self, ask: Ask, place: Place) -> float:
        del ask
        return 1.0 - fullness(place)

"""Fill one node before the next, so that large requests find a free one."""

from __future__ import annotations

from flame.scheduler.books import Ask, Place
from flame.scheduler.policy import Policy


def fullness(place: Place) -> float:
    """The used share of the node's scarcest resource, 0 to 1."""
    capacity, free = place.capacity, place.free
    least = free.cpu / capacity.cpu if capacity.cpu else 1.0
    if capacity.memory:
        memory = free.memory / capacity.memory
        if memory < least:
            least = memory
    if capacity.gpu:
        gpu = free.gpu / capacity.gpu
        if gpu < least:
            least = gpu
    return 1.0 - least


class Binpack(Policy):
    """Scores a node by how full it is; those with GPUs that the session does not need come last."""

    name = "binpack"

    def score(self, ask: Ask, place: Place) -> float:
        full = fullness(place)
        return full / 2 if place.capacity.gpu and not ask.resreq.gpu else 0.5 + full / 2

"""All or nothing: where the executors of a gang can start together, by its topology."""

from __future__ import annotations

from collections.abc import Iterable

from flame.model.resources import Resources
from flame.scheduler.books import Ask, Place
from flame.scheduler.rooms import Rooms, Shape

SAME_NODE = "same-node"
SPREAD = "spread"
SAME = "same:"


def times(size: Resources, count: int) -> Resources:
    """So much of it."""
    return Resources(size.cpu * count, size.memory * count, size.gpu * count)


def count_in(size: Resources, free: Resources) -> int:
    """How many of this size fit, at most 2^31."""
    pairs = ((size.cpu, free.cpu), (size.memory, free.memory), (size.gpu, free.gpu))
    return max(0, min([1 << 31, *(have // need for need, have in pairs if need)]))


def seats_on(place: Place, size: Resources) -> int:
    """How many executors of this size can start on the node now."""
    count = count_in(size, place.free)
    return min(count, place.limit - len(place.holdings) - place.seats) if place.limit else count


def seats(ask: Ask, rooms: Rooms, shape: Shape) -> list[Place] | None:
    """A place for each rank, or None when not all of them can start now."""
    return _fill(ask, rooms.walk(shape))


def most(ask: Ask, rooms: Rooms, shape: Shape) -> int:
    """How many of the gang's executors could start together now."""
    found = list(rooms.walk(shape))
    counts = [(place, 1 if ask.topology == SPREAD else seats_on(place, ask.resreq)) for place in found]
    if ask.topology == SAME_NODE:
        return max((count for _, count in counts), default=0)
    if ask.topology.startswith(SAME):
        sums: dict[str | None, int] = {}
        for place, count in counts:
            value = label_of(ask, place)
            sums[value] = sums.get(value, 0) + count
        return max((total for value, total in sums.items() if value is not None), default=0)
    return sum(count for _, count in counts)


def label_of(ask: Ask, place: Place) -> str | None:
    """The value of the label that all of the gang's nodes must share."""
    return place.labels.get(ask.topology[len(SAME) :])


def _fill(ask: Ask, places: Iterable[Place]) -> list[Place] | None:
    if ask.topology == SAME_NODE:
        return next(([place] * ask.world for place in places if seats_on(place, ask.resreq) >= ask.world), None)
    if not ask.topology.startswith(SAME):
        return _take(ask, places)
    by_value: dict[str, list[Place]] = {}
    for place in places:
        value = label_of(ask, place)
        if value is not None:
            chosen = by_value.setdefault(value, [])
            chosen.append(place)
    for chosen in by_value.values():
        found = _take(ask, chosen)
        if found is not None:
            return found
    return None


def _take(ask: Ask, places: Iterable[Place]) -> list[Place] | None:
    found: list[Place] = []
    for place in places:
        count = 1 if ask.topology == SPREAD else seats_on(place, ask.resreq)
        found.extend([place] * min(count, ask.world - len(found)))
        if len(found) == ask.world:
            return found
    return None

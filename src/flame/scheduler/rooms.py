"""Finding a node: requests of one shape share one heap of the nodes that take them, brought up to date on demand.

Sessions whose size, selector, tolerations and policy keys are equal are indistinguishable to a node; there are few
such *shapes*. A change of a node is one entry in a log; a shape reads on in that log when it is asked the next time.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from heapq import heapify, heappop, heappush

from flame.model.resources import Resources
from flame.scheduler.books import Ask, Books, Place
from flame.scheduler.policy import Policies

_SLACK = 64


class Shape:
    """All requests that are alike. `heap`: (scores, name of the node, its version then), the best node on top."""

    __slots__ = ("allowed", "domain", "heap", "key", "never", "position", "sample", "size", "users")

    def __init__(self, size: Resources, domain: Hashable, sample: Ask) -> None:
        self.key = (size, domain)
        self.domain = domain  # what it may use of the nodes; equal for equal answers of `why_not`
        self.sample = sample  # any session of this shape
        self.size = size
        self.heap: list[tuple[tuple[float, ...], str, int]] = []
        self.position = -1  # in the log; -1 = never read
        self.allowed: dict[str, str] = {}  # by node, why not; empty = yes
        self.users = 0
        self.never: tuple[int, object] | None = None  # (era, why no node could ever take it), see reasons.py


class Rooms:
    """The nodes, searched by shape."""

    def __init__(self, books: Books, policies: Policies) -> None:
        self.books = books
        self.policies = policies
        self.shapes: dict[Hashable, Shape] = {}
        self.era = 0  # grows when nodes come, go, or change their size or labels
        self.moved = 0  # grows when nodes with executors change their labels
        self._base = 0  # position of the first entry of the log
        self._log: list[Place] = books.touched

    def shape_of(self, ask: Ask) -> Shape:
        """The shape of this session's executors; call `forget` when the session goes."""
        domain = (frozenset(ask.selector.items()), frozenset(ask.tolerations), self.policies.key(ask))
        shape = self.shapes.get((ask.resreq, domain))
        if shape is None:
            shape = Shape(ask.resreq, domain, ask)
            self.shapes[shape.key] = shape
        shape.users += 1
        return shape

    def forget(self, shape: Shape) -> None:
        shape.users -= 1
        if not shape.users:
            self.shapes.pop(shape.key, None)

    def relabelled(self, name: str) -> None:
        """Labels, taints or the name's very existence changed: whether it is allowed has to be asked again."""
        self.era += 1
        place = self.books.places.get(name)
        if place is not None and place.holdings:
            self.moved += 1
        for shape in self.shapes.values():
            shape.allowed.pop(name, None)

    @property
    def end(self) -> int:
        """Grows with each change of the room on a node."""
        return self._base + len(self._log)

    # --- questions about one node ------------------------------------------------------------------------------------

    def why_not(self, shape: Shape, place: Place) -> str:
        """Why the shape may not use this node at all, full or empty; "" = it may."""
        text = shape.allowed.get(place.name)
        if text is None:
            text = _refusal(shape.sample, place) or self.policies.allows(shape.sample, place)
            shape.allowed[place.name] = text
        return text

    def takes(self, shape: Shape, place: Place) -> bool:
        """Whether one executor of this shape can start here now."""
        return place.takes(shape.size) and not self.why_not(shape, place)

    # --- search --------------------------------------------------------------------------------------------------

    def best(self, shape: Shape) -> Place | None:
        """The node that suits best and has room now."""
        self._catch_up(shape)
        heap = shape.heap
        places = self.books.places
        while heap:
            _, name, version = heap[0]
            place = places.get(name)
            if place is not None and place.version == version:
                return place
            heappop(heap)
        return None

    def best_for(self, ask: Ask, shape: Shape) -> Place | None:
        """As `best`, but the nodes that the policies prefer for this session come first."""
        for name in self.policies.prefer(ask):
            for place in self.books.named(name):
                if self.takes(shape, place):
                    return place
        return self.best(shape)

    def walk(self, shape: Shape) -> Iterator[Place]:
        """All nodes with room now, the best first."""
        self._catch_up(shape)
        heap = shape.heap.copy()
        places = self.books.places
        while heap:
            entry = heappop(heap)
            if self._valid(entry, places):
                yield places[entry[1]]

    def _catch_up(self, shape: Shape) -> None:
        end = self.end
        position = shape.position
        if position == end:
            return
        places = self.books.places
        if position < self._base or end - position > 2 * len(places) + _SLACK:
            shape.heap = [self._entry(shape, place) for place in places.values() if self.takes(shape, place)]
            heapify(shape.heap)
        else:
            changed = self._log[position - self._base :]
            for place in dict.fromkeys(changed) if len(changed) > 1 else changed:
                if self.takes(shape, place) and places.get(place.name) is place:
                    heappush(shape.heap, self._entry(shape, place))
            if len(shape.heap) > 3 * len(places) + _SLACK:
                shape.heap = [entry for entry in shape.heap if self._valid(entry, places)]
                heapify(shape.heap)
        shape.position = end
        self._trim()

    def _entry(self, shape: Shape, place: Place) -> tuple[tuple[float, ...], str, int]:
        return (self.policies.score(shape.sample, place), place.name, place.version)

    @staticmethod
    def _valid(entry: tuple[tuple[float, ...], str, int], places: Mapping[str, Place]) -> bool:
        place = places.get(entry[1])
        return place is not None and place.version == entry[2]

    def _trim(self) -> None:
        if len(self._log) > 4 * len(self.books.places) + 1024:
            self._base += len(self._log)
            self._log.clear()


def unlike(ask: Ask, place: Place) -> str:
    """The first label of its selector that this node has not, or has with another value; "" = it has all of them."""
    return next((label for label, value in ask.selector.items() if place.labels.get(label) != value), "")


def _refusal(ask: Ask, place: Place) -> str:
    label = unlike(ask, place)
    if label:
        have, value = place.labels.get(label), ask.selector[label]
        return f"label {label} is {have!r}, not {value!r}" if have is not None else f"it has no label {label}={value}"
    for taint in place.taints:
        if taint not in ask.tolerations and taint.split("=", 1)[0] not in ask.tolerations:
            return f"taint {taint} is not tolerated"
    return ""

"""Why a session gets no (further) executor: the rule that says no, for which node, and what would help."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from flame.model.isolation import is_ability
from flame.model.resources import Resources, format_size
from flame.scheduler.books import Ask, Books, Place
from flame.scheduler.gangs import SAME, SAME_NODE, SPREAD, count_in, label_of, most, times
from flame.scheduler.policy import Policies
from flame.scheduler.queues import Queue, Waiting
from flame.scheduler.rooms import Rooms, Shape, unlike

NODES = 10  # named one by one; of a larger cluster those with the most room
_FIELDS = ("cpu", "memory", "gpu")
# What helps where a label says that a node can't do something.
INSTALL = "ask for less, or install what is missing there: the log of its executor manager says what"


class No(msgspec.Struct, gc=False, frozen=True):
    """One rule that says no. `object`: what it says it about; `since` in Unix ms, 0 = not known."""

    rule: str
    object: str
    message: str
    remedy: str
    since: int = 0


class Reasons:
    """Explains the scheduler's state; changes nothing."""

    def __init__(self, books: Books, rooms: Rooms, waiting: Waiting, policies: Policies) -> None:
        self.books = books
        self.rooms = rooms
        self.waiting = waiting
        self.policies = policies

    def first(self, ask: Ask) -> No | None:
        """The first rule that says no, without what takes a look at other sessions; None = nothing is wanting."""
        return next(self._rules(ask, brief=True), None)

    def all(self, ask: Ask) -> list[No]:
        """Every rule that says no, then what each node says, then policies that failed."""
        found = list(self._rules(ask, brief=False))
        if ask.lacking:
            found.extend(self._nodes(ask))
        for name, text in self.policies.faults.items():
            found.append(
                No(
                    "policy",
                    name,
                    f"policy {name} failed and was skipped: {text}",
                    "mend it, or take it out of cluster.policies",
                )
            )
        return found

    def impossible(self, ask: Ask) -> No | None:
        """Why no node that is known could ever run it, were it empty; None = some could, or no node is known yet."""
        if not self.books.places:
            return None
        over = self._over_own_quota(ask)
        if over is not None or ask.gang:
            return over or self._no_node(ask)
        shape = ask.shape
        assert isinstance(shape, Shape)
        if shape.never is None or shape.never[0] != self.rooms.era:
            shape.never = (self.rooms.era, self._no_node(ask))
        no = shape.never[1]
        return msgspec.structs.replace(no, since=ask.since) if isinstance(no, No) else None

    # --- the rules in their order ---------------------------------------------------------------------------------

    def _rules(self, ask: Ask, *, brief: bool) -> Iterator[No]:
        if ask.claims and not ask.lacking:
            limit = None if ask.claims[0].waiting else self._quota(ask, brief) or self._application(ask)
            yield limit or self._promised(ask)
            return
        if not ask.lacking:
            return
        for no in (self._application(ask), self._quota(ask, brief), never := self.impossible(ask)):
            if no is not None:
                yield no
        if not any(place.ready for place in self.books.places.values()):
            remedy = "start an executor manager, or look at flmctl list -n"
            yield No("nodes", "cluster", "no node is ready", remedy, ask.since)
            return
        if ask.claims:
            yield self._promised(ask)
        elif never is None:
            yield self._room(ask, brief)

    def _application(self, ask: Ask) -> No | None:
        limit = ask.application
        if limit.coming + ask.world <= limit.most and limit.used + limit.claimed + ask.world <= limit.most:
            return None
        text = f"application {limit.name} has {limit.used} of at most {limit.most} executors"
        return No("application", limit.name, text, "raise its max_instances, or wait for its other sessions", ask.since)

    def _quota(self, ask: Ask, brief: bool) -> No | None:
        gain = times(ask.resreq, ask.world)
        for group in ask.group.path():
            field = group.over_quota(group.used + group.kept, gain)
            if field:
                most_of_it = getattr(group.quota, field)
                text = (
                    f"tenant {group.name} is at its quota of {_amount(field, most_of_it)} "
                    f"({_number(field, getattr(group.used, field))} used, {_number(field, getattr(gain, field))} "
                    f"needed){'' if brief else self._ahead(ask)}"
                )
                return No(
                    "quota", group.name, text, f"wait, or raise the quota: flmctl tenant update {group.name}", ask.since
                )
        return None

    def _over_own_quota(self, ask: Ask) -> No | None:
        gain = times(ask.resreq, ask.world)
        for group in ask.group.path():
            field = group.over_quota(Resources(), gain)
            if field:
                text = (
                    f"needs {_amount(field, getattr(gain, field))}; the quota of tenant {group.name} is "
                    f"{_number(field, getattr(group.quota, field))}"
                )
                return No("quota", group.name, text, "ask for less, or raise the quota", ask.since)
        return None

    def _no_node(self, ask: Ask) -> No | None:
        shape = ask.shape
        assert isinstance(shape, Shape)
        allowed = [place for place in self.books.places.values() if not self.rooms.why_not(shape, place)]
        if _seats_ever(ask, allowed) >= ask.world:
            return None
        if not allowed:
            first = next(iter(self.books.places.values()))
            text = f"no node may take it: on {first.name} {self.rooms.why_not(shape, first)}"
            remedy = "change selector or tolerations, or label a node"
            if is_ability(unlike(ask, first)):
                remedy = INSTALL
            return No("nodes", "cluster", text, remedy, ask.since)
        size = ask.resreq
        for field in _FIELDS:
            largest = max(getattr(place.capacity, field) for place in allowed)
            if getattr(size, field) > largest:
                text = f"needs {_amount(field, getattr(size, field))}; the largest node has {_number(field, largest)}"
                return No("capacity", "cluster", text, "ask for less in resreq, or add a larger node", ask.since)
        if ask.gang:
            text = (
                f"needs {ask.world} executors of {size} together{_where(ask)}; all nodes, were they empty, "
                f"have room for {_seats_ever(ask, allowed)}"
            )
            return No("gang", "cluster", text, "ask for a smaller gang, or add nodes", ask.since)
        return No(
            "capacity", "cluster", f"no node has all of {size} at once", "ask for less, or add a larger node", ask.since
        )

    def _promised(self, ask: Ask) -> No:
        claim = ask.claims[0]
        names = sorted({place.name for place in claim.seats})
        count = len(claim.waiting)
        who = "1 executor leaves" if count == 1 else f"{count} executors leave"
        text = f"room is being made on {', '.join(names)}: {who} for it"
        return No(
            "preemption", names[0], text, "wait until their running tasks end or their grace time is over", ask.since
        )

    def _room(self, ask: Ask, brief: bool) -> No:
        shape = ask.shape
        assert isinstance(shape, Shape)
        remedy = "wait for other sessions, lower their max_instances, or add a node"
        if ask.gang:
            text = f"needs {ask.world} executors of {ask.resreq} together{_where(ask)}"
            text += "" if brief else f"; {most(ask, self.rooms, shape)} fit now{self._ahead(ask)}"
            return No("gang", "cluster", text, remedy, ask.since)
        text = f"no node has {ask.resreq} free; {ask.coming} of {ask.want} wanted executors are there"
        return No("room", "cluster", text if brief else text + self._ahead(ask), remedy, ask.since)

    def _ahead(self, ask: Ask) -> str:
        """How many sessions of its queue come first."""
        queue = ask.lane
        if not isinstance(queue, Queue):
            return ""
        mine = self.waiting.rank(ask)
        count = sum(1 for other in queue.members.values() if other is not ask and self.waiting.rank(other) < mine)
        return f"; {count} session{'s' if count != 1 else ''} ahead" if count else ""

    def _nodes(self, ask: Ask) -> Iterator[No]:
        shape = ask.shape
        assert isinstance(shape, Shape)
        places = sorted(self.books.places.values(), key=lambda place: (-place.free.cpu, place.name))
        for place in places[:NODES]:
            text = self.rooms.why_not(shape, place) or self._full(ask, place)
            if text:
                yield No("node", place.name, text, "", ask.since)
        if len(places) > NODES:
            yield No("node", "others", f"{len(places) - NODES} nodes have less free than these", "", ask.since)

    def _full(self, ask: Ask, place: Place) -> str:
        if not place.ready:
            return "its link is down"
        if not place.open:
            return "it is cordoned"
        if not place.has_seat():
            return f"it runs {len(place.holdings)} executors, its limit is {place.limit}"
        for field in _FIELDS:
            need, free = getattr(ask.resreq, field), getattr(place.free, field)
            if need > getattr(place.capacity, field):
                return f"it has {_amount(field, getattr(place.capacity, field))} in all"
            if need > free:
                kept = place.seats and need <= getattr(place.capacity - place.used, field)
                more = " (the rest is kept for sessions that were promised it)" if kept else ""
                return f"{_number(field, max(0, free))} of {_amount(field, getattr(place.capacity, field))} free{more}"
        return ""


def _seats_ever(ask: Ask, places: Iterable[Place]) -> int:
    """How many of the executors that have to start together fit on these nodes, were they empty."""
    counts = [(place, _ever(ask, place)) for place in places]
    if not ask.gang or ask.topology == SAME_NODE:
        return max((count for _, count in counts), default=0)
    if ask.topology == SPREAD:
        return sum(1 for _, count in counts if count)
    if ask.topology.startswith(SAME):
        sums: dict[str, int] = {}
        for place, count in counts:
            value = label_of(ask, place)
            if value is not None:
                sums[value] = sums.get(value, 0) + count
        return max(sums.values(), default=0)
    return sum(count for _, count in counts)


def _ever(ask: Ask, place: Place) -> int:
    count = count_in(ask.resreq, place.capacity)
    return min(count, place.limit) if place.limit else count


def _where(ask: Ask) -> str:
    if ask.topology == SAME_NODE:
        return " on one node"
    if ask.topology == SPREAD:
        return " on different nodes"
    return f" on nodes with the same {ask.topology[len(SAME) :]}" if ask.topology.startswith(SAME) else ""


def _number(field: str, value: int) -> str:
    return format_size(value) if field == "memory" else str(value)


def _amount(field: str, value: int) -> str:
    unit = ("GPU" if value == 1 else "GPUs") if field == "gpu" else field
    return f"{_number(field, value)} {unit}"

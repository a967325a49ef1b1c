"""Taking executors back for sessions that deserve them more, with the least harm.

Who may take from whom: an idle executor goes to anybody who lacks one, when it has idled for a moment (one between two
tasks of a client that waits for each is not idle) or when that session has waited for long. Within a tenant a policy
may say that one session yields to another (priority). Between tenants, one whose guarantee is not met takes what others
borrowed; else, as between equal sessions, only if afterwards the giver still has no less than the taker (by weighted
dominant share). Each rule, once applied, forbids the way back, so that nothing is taken to and fro.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from heapq import heappop, heappush
from itertools import islice

from flame.model.resources import Resources
from flame.scheduler.books import NOTHING, Ask, Books, Claim, Holding, Place
from flame.scheduler.gangs import SAME, SAME_NODE, SPREAD, label_of, seats_on, times
from flame.scheduler.givers import Entry
from flame.scheduler.groups import Group, dominant, join
from flame.scheduler.queues import Waiting
from flame.scheduler.rooms import Rooms, Shape

ENOUGH = 8  # nodes with a solution to choose from
MOST = 128  # nodes to look at before giving up until something changes
IDLE_MS = 50  # an executor that has no work for so long is idle to others
IMPATIENT_MS = 1_000  # who has waited for so long takes any that has no work
_EPSILON = 1e-9

Load = Callable[[int], int]  # tasks that the executor of this channel holds


class Seat:
    """Room for one executor (or `count` of them), and who has to leave for it."""

    __slots__ = ("count", "harm", "leaving", "place")

    def __init__(self, place: Place, leaving: list[Holding], harm: tuple[float, ...], count: int) -> None:
        self.place = place
        self.leaving = leaving
        self.harm = harm
        self.count = count


class Reclaim:
    """One pass of taking back."""

    def __init__(self, books: Books, rooms: Rooms, waiting: Waiting, load: Load, now: int) -> None:
        self.now = now
        self.books = books
        self.rooms = rooms
        self.waiting = waiting
        self.policies = waiting.policies
        self.load = load
        self._shares: dict[Group, list[tuple[float, Group]]] = {}
        self._orders: dict[Ask, list[Holding]] = {}

    def claim(self, ask: Ask) -> tuple[Claim, list[Holding]] | None:
        """Promise the session its next executor (a gang: all of them); answers also who was made to leave."""
        told: list[Holding] = []
        seats = self._gang(ask, told) if ask.gang else self._one(ask, told)
        # With nobody leaving there is room, but a limit keeps the session from it until others of its own are gone.
        if seats is None or not any(leaving for _, leaving in seats) or not self._within_limits(ask, len(seats)):
            self._spare(told)
            return None
        self._shares.clear()
        return self.books.claim(ask, seats), told

    # --- one executor ------------------------------------------------------------------------------------------------

    def _one(self, ask: Ask, told: list[Holding]) -> list[tuple[Place, Sequence[Holding]]] | None:
        seat = self._find(ask, 1, lambda _: True)
        if seat is None:
            return None
        return [(seat.place, self._settle(seat, told))]

    def _settle(self, seat: Seat, told: list[Holding]) -> list[Holding]:
        """Make them leave; answers those whose room the seat needs."""
        for holding in seat.leaving:
            if not holding.leaving:
                self.books.leave(holding)
                self._recount(holding)
                told.append(holding)
        return [holding for holding in seat.leaving if holding.place is seat.place]

    def _spare(self, told: Sequence[Holding]) -> None:
        for holding in told:
            self.books.stay(holding)
            self._recount(holding)
        self._orders.clear()  # they were left out of these

    def _recount(self, holding: Holding) -> None:
        """Its session has one more or less: the next member of a gang has to find it among those that can give."""
        if holding.ask is not None:
            holding.ask.group.givers.changed(holding.ask)

    def _find(self, ask: Ask, count: int, suits: Callable[[Place], bool]) -> Seat | None:
        shape = ask.shape
        assert isinstance(shape, Shape)
        size = times(ask.resreq, count)
        best: Seat | None = None
        looked: set[str] = set()
        found = 0
        for place in self._candidates(ask):
            if place.name in looked:
                continue
            looked.add(place.name)
            if place.open and size.fits(place.capacity) and suits(place) and not self.rooms.why_not(shape, place):
                seat = self._seat(ask, place, size, count)
                if seat is not None:
                    found += 1
                    if best is None or seat.harm < best.harm:
                        best = seat
                    if not seat.harm[0] or found == ENOUGH:
                        break
            if len(looked) == MOST:
                break
        return best

    def _seat(self, ask: Ask, place: Place, size: Resources, count: int) -> Seat | None:
        """Who has to leave this node so that `size` fits. Changes nothing in the end."""
        chosen: list[Holding] = []
        left: list[Holding] = []
        freed = NOTHING

        def enough() -> bool:
            if place.limit:
                gone = sum(1 for holding in chosen if holding.place is place)
                waited = sum(1 for holding in place.holdings.values() if holding.claim is not None)
                if len(place.holdings) - gone - waited + place.seats + count > place.limit:
                    return False
            return size.fits(place.free + freed)

        for holding in place.holdings.values():  # on their way out already
            if holding.leaving and holding.claim is None and not enough():
                chosen.append(holding)
                freed += holding.resreq
        others = [h for h in place.holdings.values() if not h.leaving and h.ask is not None and h.ask is not ask]
        for holding in sorted(others, key=self._harm) if not enough() else ():
            unit = _unit(holding)
            if holding.leaving or not self.may_take(ask, holding, unit):
                continue
            for member in unit:
                self.books.leave(member)
                left.append(member)
                chosen.append(member)
                if member.place is place:
                    freed += member.resreq
            if enough():
                break
        good = enough()
        if good:
            for holding in [h for h in left[:-1] if h.ask is not None and not h.ask.gang]:
                freed -= holding.resreq
                chosen.remove(holding)
                if enough():
                    self.books.stay(holding)
                    left.remove(holding)
                else:
                    freed += holding.resreq
                    chosen.append(holding)
        harm = (float(sum(1 for h in left if not h.idle_since)), float(sum(self.load(h.channel) for h in left)))
        for holding in left:
            self.books.stay(holding)
        return Seat(place, chosen, harm, count) if good else None

    def _harm(self, holding: Holding) -> tuple[float, ...]:
        ask = holding.ask
        assert ask is not None
        if holding.idle_since:
            return (0.0, float(holding.idle_since))
        rich = -ask.group.weighted(ask.group.coming, self.waiting.total)
        yielding = [-value for value in self.policies.rank(ask)]
        return (1.0, rich, *yielding, float(self.load(holding.channel)), -float(holding.channel))

    # --- a gang ------------------------------------------------------------------------------------------------------

    def _gang(self, ask: Ask, told: list[Holding]) -> list[tuple[Place, Sequence[Holding]]] | None:
        if ask.topology == SAME_NODE:
            seat = self._find(ask, ask.world, lambda _: True)
            if seat is None:
                return None
            leaving = self._settle(seat, told)
            return [(seat.place, leaving), *((seat.place, ()) for _ in range(ask.world - 1))]
        if not ask.topology.startswith(SAME):
            return self._members(ask, told, lambda _: True)
        values = sorted({label_of(ask, place) or "" for place in self.books.places.values()} - {""})
        for value in values:
            begun = len(told)
            seats = self._members(ask, told, lambda place, value=value: label_of(ask, place) == value)
            if seats is not None:
                return seats
            self._spare(told[begun:])
            del told[begun:]
        return None

    def _members(
        self, ask: Ask, told: list[Holding], suits: Callable[[Place], bool]
    ) -> list[tuple[Place, Sequence[Holding]]] | None:
        """Seats one after the other, each kept while the next is looked for; free room first."""
        shape = ask.shape
        assert isinstance(shape, Shape)
        kept: list[tuple[Claim, Place, list[Holding]]] = []
        used: set[str] = set()
        spread = ask.topology == SPREAD
        for place in self.rooms.walk(shape):
            if not suits(place):
                continue
            for _ in range(min(1 if spread else seats_on(place, ask.resreq), ask.world - len(kept))):
                kept.append((self.books.claim(ask, [(place, ())]), place, []))
                used.add(place.name)
        while len(kept) < ask.world:
            seat = self._find(ask, 1, lambda place: suits(place) and not (spread and place.name in used))
            if seat is None:
                break
            leaving = self._settle(seat, told)
            kept.append((self.books.claim(ask, [(seat.place, leaving)]), seat.place, leaving))
            used.add(seat.place.name)
        for claim, _, _ in kept:
            self.books.drop(claim)
        return [(place, leaving) for _, place, leaving in kept] if len(kept) == ask.world else None

    # --- who may take from whom --------------------------------------------------------------------------------------

    def may_take(self, ask: Ask, holding: Holding, unit: Sequence[Holding]) -> bool:
        """Whether the session may take this executor (of a gang: all of it)."""
        victim = holding.ask
        if victim is None or victim is ask:
            return False
        if victim.have - len(unit) >= victim.floor and all(self._idles(ask, member) for member in unit):
            return True
        if ask.group is victim.group:
            return self._within(ask, victim, len(unit))
        loss = times(victim.resreq, len(unit)) if len(unit) > 1 else victim.resreq
        gain = times(ask.resreq, ask.world) if ask.gang else ask.resreq
        return self._between(ask, victim, loss, gain)

    def _idles(self, ask: Ask, holding: Holding) -> bool:
        since = holding.idle_since
        return since > 0 and (self.now - since >= IDLE_MS or (ask.since > 0 and self.now - ask.since >= IMPATIENT_MS))

    def _within(self, ask: Ask, victim: Ask, count: int) -> bool:
        if self.policies.yields(victim, ask):
            return True
        if not self.policies.fair or self.policies.yields(ask, victim) or victim.have - count < victim.floor:
            return False
        total = self.waiting.total
        left = dominant(victim.resreq, total) * (victim.coming - count)
        return left >= dominant(ask.resreq, total) * (ask.coming + ask.world) - _EPSILON

    def _between(self, ask: Ask, victim: Ask, loss: Resources, gain: Resources) -> bool:
        mine, theirs = join(ask.group, victim.group)
        for group in victim.group.path():
            if group.within_guarantee(group.coming):
                return False
            if group is theirs:
                break
        for group in ask.group.path():
            if group.within_guarantee(group.coming + gain):
                return True
            if group is mine:
                break
        if self.policies.priority_first:
            if self.policies.yields(victim, ask):
                return True
            if self.policies.yields(ask, victim):
                return False
        return self._fair(mine, theirs, loss, gain)

    def _fair(self, mine: Group, theirs: Group, loss: Resources, gain: Resources) -> bool:
        """Whether after the move the giver still has no less than the taker."""
        if not self.policies.fair:
            return False
        total = self.waiting.total
        left = theirs.weighted(theirs.coming - loss, total)
        return left >= mine.weighted(mine.coming + gain, total) - _EPSILON

    def _within_limits(self, ask: Ask, count: int) -> bool:
        """Whether quotas and the application's limit allow so many more, once those told to leave are gone."""
        if ask.application.coming + count > ask.application.most:
            return False
        gain = times(ask.resreq, count)
        return not any(group.over_quota(group.coming, gain) for group in ask.group.path())

    # --- where to look -----------------------------------------------------------------------------------------------

    def _candidates(self, ask: Ask) -> Iterator[Place]:
        """Nodes in the order in which they promise the least harm; some of them twice."""
        for holding in list(self.books.leaving.values())[:MOST]:
            yield holding.place
        for holding in list(self.books.idle.values())[:MOST]:
            if holding.ask is not ask:
                yield holding.place
        shape = ask.shape
        assert isinstance(shape, Shape)
        for victim in islice(self._victims(ask), MOST):
            for holding in self._by_load(victim):
                if not holding.leaving and not self.rooms.why_not(shape, holding.place):
                    yield holding.place

    def _by_load(self, victim: Ask) -> Iterator[Holding]:
        """Its executors in the order in which they are the least harm; worked out once in a pass."""
        order = self._orders.get(victim)
        if order is None:
            order = list(victim.holdings.values())
            order.sort(key=lambda holding: (-self.load(holding.channel), holding.channel))
            self._orders[victim] = order
        while order and order[-1].leaving:
            order.pop()
        return reversed(order)

    def _victims(self, ask: Ask) -> Iterator[Ask]:
        """Sessions that may have to give, the one with the weakest right first."""
        yield from self._rich(ask, ask.group)
        gain = times(ask.resreq, ask.world) if ask.gang else ask.resreq
        by_right = self.policies.priority_first
        group = ask.group
        while group.parent is not None:
            by_right = by_right or group.within_guarantee(group.coming + gain)
            mine = group.weighted(group.coming + gain, self.waiting.total)
            for theirs, other in self._by_share(group.parent):
                if not by_right and theirs < mine - _EPSILON:
                    break  # nor has any after it more than we would have
                if other is not group:
                    yield from self._inside(ask, other)
            group = group.parent

    def _inside(self, ask: Ask, group: Group) -> Iterator[Ask]:
        if not group.children:
            yield from self._rich(ask, group)
            return
        for _, child in self._by_share(group):
            yield from self._inside(ask, child)

    def _by_share(self, parent: Group) -> list[tuple[float, Group]]:
        """Its tenants with executors and their weighted shares, the largest first; kept until somebody was told to
        leave."""
        known = self._shares.get(parent)
        if known is None:
            total = self.waiting.total
            known = [
                (child.weighted(child.coming, total), child) for child in parent.children.values() if child.executors
            ]
            known.sort(key=lambda item: -item[0])
            self._shares[parent] = known
        return known

    def _rich(self, ask: Ask, group: Group) -> Iterator[Ask]:
        """Sessions of one tenant as long as they may have to give: who comes after one that need not has even less."""
        shape = ask.shape
        assert isinstance(shape, Shape)

        def suits(other: Ask) -> bool:
            return any(not self.rooms.why_not(shape, holding.place) for holding in other.holdings.values())

        epoch = (self.waiting.epoch, self.rooms.moved)
        heap = group.givers.heap(shape.domain, epoch, group.asks, self.waiting.richness, suits)
        kept: list[Entry] = []
        try:
            while heap:
                entry = heappop(heap)
                victim = group.asks.get(entry[1])
                if victim is None or victim.have != entry[2] or not victim.have:
                    continue
                kept.append(entry)
                if victim is ask:
                    continue
                holding = next((h for h in victim.holdings.values() if not h.leaving), None)
                if holding is None:
                    continue
                if not self.may_take(ask, holding, _unit(holding)) and victim.have > victim.floor:
                    return
                yield victim
        finally:
            for entry in kept:
                heappush(heap, entry)


def _unit(holding: Holding) -> list[Holding]:
    """What has to be taken together: a gang is of no use without one of its members."""
    ask = holding.ask
    if ask is None or not ask.gang:
        return [holding]
    return [other for other in ask.holdings.values() if not other.leaving]

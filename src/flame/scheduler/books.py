"""Who holds what: nodes, sessions, executors and claims, kept up to date by every change.

`used` counts all executors until they are gone; `coming` counts those that stay, and claims. Capacity and quotas are
checked against the first, shares against the second, so that what is on its way out is not taken twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flame.model.resources import Resources
from flame.scheduler.groups import Group, Limit

NOTHING = Resources()


class Place:
    """A node. Invariant: used <= capacity, unless that shrank; free = capacity - used - what claims keep free."""

    __slots__ = (
        "also",
        "capacity",
        "free",
        "holdings",
        "labels",
        "limit",
        "name",
        "open",
        "promised",
        "ready",
        "reserved",
        "seats",
        "taints",
        "used",
        "version",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.capacity = NOTHING
        self.used = NOTHING
        self.reserved = NOTHING  # by claims
        self.promised = NOTHING  # what executors hold that leave for these claims
        self.seats = 0  # executors that claims will start here
        self.free = NOTHING
        self.also: tuple[str, ...] = ()  # other names: its host, its addresses
        self.labels: Mapping[str, str] = {}
        self.taints: tuple[str, ...] = ()
        self.limit = 0  # executors, 0 = as many as fit
        self.ready = False  # its link is up
        self.open = False  # takes new executors
        self.holdings: dict[int, Holding] = {}
        self.version = 0

    def refresh(self) -> None:
        """Work out `free` again after a change."""
        free = self.capacity - self.used
        if self.seats:
            kept = self.reserved - self.promised
            free -= Resources(max(0, kept.cpu), max(0, kept.memory), max(0, kept.gpu))
        self.free = free

    def has_seat(self, count: int = 1) -> bool:
        """Whether the limit of executors lets `count` more in."""
        return not self.limit or len(self.holdings) + self.seats + count <= self.limit

    def takes(self, size: Resources) -> bool:
        """Whether an executor of this size can start here now."""
        return self.open and size.fits(self.free) and self.has_seat()


class Holding:
    """An executor in its place. `leaving`: it was told to end; `claim`: the claim that it makes room for.

    It counts for its tenant and application until it is gone, also when its session is forgotten before."""

    __slots__ = ("application", "ask", "channel", "claim", "group", "idle_since", "leaving", "place", "resreq")

    def __init__(self, channel: int, ask: Ask | None, place: Place, resreq: Resources) -> None:
        self.channel = channel
        self.ask = ask  # None: it belongs to no session any more
        self.group = ask.group if ask is not None else None
        self.application = ask.application if ask is not None else None
        self.place = place
        self.resreq = resreq
        self.leaving = False
        self.claim: Claim | None = None
        self.idle_since = 0  # without work since, Unix ms; 0 = it has some


class Ask:
    """What one open session wants. `want`: executors in all; `have`: those that stay."""

    __slots__ = (
        "application",
        "claims",
        "created",
        "floor",
        "gang",
        "group",
        "have",
        "holdings",
        "labels",
        "lane",
        "prefer",
        "priority",
        "promised",
        "resreq",
        "selector",
        "session",
        "shape",
        "since",
        "stamp",
        "tolerations",
        "topology",
        "turn",
        "want",
        "weight",
        "world",
    )

    def __init__(
        self,
        session: str,
        group: Group,
        application: Limit,
        resreq: Resources,
        *,
        priority: int = 0,
        created: int = 0,
        floor: int = 0,
        gang: bool = False,
        topology: str = "",
        labels: Mapping[str, str] | None = None,
        selector: Mapping[str, str] | None = None,
        tolerations: Sequence[str] = (),
        prefer: Sequence[str] = (),
    ) -> None:
        self.session = session
        self.group = group
        self.application = application
        self.resreq = resreq
        self.priority = priority
        self.created = created
        self.turn = created  # since then it waits for its turn among equals: opened, or got its latest executor
        self.floor = floor
        self.gang = gang
        self.world = max(1, floor) if gang else 1  # executors that start together
        self.topology = topology
        self.labels: Mapping[str, str] = labels or {}
        self.selector: Mapping[str, str] = selector or {}
        self.tolerations = tuple(tolerations)
        self.prefer = tuple(prefer)
        self.want = 0
        self.have = 0
        self.claims: list[Claim] = []
        self.promised = 0  # executors that its claims will start
        self.holdings: dict[int, Holding] = {}
        self.since = 0  # since when it lacks executors, Unix ms; 0 = it does not
        self.stamp = 0  # of its latest entry in the queue
        self.weight = 0.0  # dominant share of one executor
        self.shape: object = None
        self.lane: object = None

    @property
    def coming(self) -> int:
        """Executors that stay, and those that claims will start."""
        return self.have + self.promised

    @property
    def lacking(self) -> int:
        """Executors that it could use now beside those it has or was promised; a gang's come all at once."""
        coming = self.coming
        if self.gang:
            return self.world if self.want and not coming else 0
        return max(0, self.want - coming)


class Claim:
    """Room kept for a session until the executors in `waiting` are gone; then its executors start on `seats`."""

    __slots__ = ("ask", "seats", "waiting")

    def __init__(self, ask: Ask, seats: list[Place]) -> None:
        self.ask = ask
        self.seats = seats
        self.waiting: dict[int, Holding] = {}


class Books:
    """The accounts. Each change is told to `touched`, the list of places whose room changed."""

    def __init__(self) -> None:
        self.places: dict[str, Place] = {}
        self._also: dict[str, dict[str, Place]] = {}  # by another name of theirs
        self.asks: dict[str, Ask] = {}
        self.holdings: dict[int, Holding] = {}
        self.claims: dict[Claim, None] = {}
        self.idle: dict[int, Holding] = {}  # the longest idle first
        self.leaving: dict[int, Holding] = {}  # on their way out, and nobody was promised their room
        self.total = NOTHING  # capacity of the nodes that are ready
        self.touched: list[Place] = []
        self._version = 0  # of all places: one that comes back under its name must not look like the old one

    def touch(self, place: Place) -> None:
        """The room on this place changed."""
        place.refresh()
        self._version += 1
        place.version = self._version
        self.touched.append(place)

    def named(self, name: str) -> list[Place]:
        """The places that this is the name, the host or an address of."""
        place = self.places.get(name)
        return [place] if place is not None else list(self._also.get(name, {}).values())

    def rename(self, place: Place, also: Sequence[str]) -> None:
        """From now on these are its other names."""
        for name in place.also:
            known = self._also[name]
            del known[place.name]
            if not known:
                del self._also[name]
        place.also = tuple(dict.fromkeys(name for name in also if name and name != place.name))
        for name in place.also:
            self._also.setdefault(name, {})[place.name] = place

    # --- executors -----------------------------------------------------------------------------------------------

    def hold(self, channel: int, ask: Ask | None, place: Place, resreq: Resources) -> Holding:
        """An executor takes its place."""
        holding = Holding(channel, ask, place, resreq)
        self.holdings[channel] = holding
        place.holdings[channel] = holding
        place.used += resreq
        if ask is not None:
            ask.holdings[channel] = holding
            ask.have += 1
            ask.application.used += 1
            ask.application.coming += 1
            ask.group.hold(resreq)
        else:
            holding.leaving = True
            self.leaving[channel] = holding
        self.touch(place)
        return holding

    def leave(self, holding: Holding) -> None:
        """It was told to end: it does not count in its session's share any more."""
        if holding.leaving:
            return
        holding.leaving = True
        self.idle.pop(holding.channel, None)
        self.leaving[holding.channel] = holding
        if holding.ask is not None:
            holding.ask.have -= 1
            holding.ask.application.coming -= 1
            holding.ask.group.expect(holding.resreq, -1)

    def stay(self, holding: Holding) -> None:
        """Undo `leave`, of an executor that was not told yet."""
        holding.leaving = False
        self.leaving.pop(holding.channel, None)
        if holding.idle_since:
            self.idle[holding.channel] = holding
        if holding.ask is not None:
            holding.ask.have += 1
            holding.ask.application.coming += 1
            holding.ask.group.expect(holding.resreq, 1)

    def free(self, holding: Holding) -> None:
        """It is gone: its room is free."""
        self.leave(holding)
        place, ask = holding.place, holding.ask
        del self.holdings[holding.channel]
        self.leaving.pop(holding.channel, None)
        del place.holdings[holding.channel]
        place.used -= holding.resreq
        if ask is not None:
            del ask.holdings[holding.channel]
        if holding.group is not None and holding.application is not None:
            holding.application.used -= 1
            holding.group.release(holding.resreq)
        if holding.claim is not None:
            place.promised -= holding.resreq
            holding.claim.waiting.pop(holding.channel, None)
        self.touch(place)

    def orphan(self, holding: Holding) -> None:
        """Its session is forgotten; it keeps its room until it is gone."""
        self.leave(holding)
        if holding.ask is not None:
            del holding.ask.holdings[holding.channel]
            holding.ask = None

    # --- claims --------------------------------------------------------------------------------------------------

    def claim(self, ask: Ask, seats: Sequence[tuple[Place, Sequence[Holding]]]) -> Claim:
        """Keep room for one executor on each seat; the holdings beside it were made to leave for it."""
        made = Claim(ask, [place for place, _ in seats])
        self.claims[made] = None
        ask.claims.append(made)
        ask.promised += len(seats)
        ask.application.claimed += len(seats)
        ask.application.coming += len(seats)
        for place, leaving in seats:
            place.reserved += ask.resreq
            place.seats += 1
            ask.group.expect(ask.resreq, 1)
            ask.group.keep(ask.resreq, 1)
            for holding in leaving:
                made.waiting[holding.channel] = holding
                holding.claim = made
                self.leaving.pop(holding.channel, None)
                place.promised += holding.resreq
            self.touch(place)
        return made

    def drop(self, claim: Claim) -> None:
        """The claim is void, or its executors start now."""
        del self.claims[claim]
        claim.ask.claims.remove(claim)
        claim.ask.promised -= len(claim.seats)
        claim.ask.application.claimed -= len(claim.seats)
        claim.ask.application.coming -= len(claim.seats)
        for place in claim.seats:
            place.reserved -= claim.ask.resreq
            place.seats -= 1
            claim.ask.group.expect(claim.ask.resreq, -1)
            claim.ask.group.keep(claim.ask.resreq, -1)
        for holding in claim.waiting.values():
            holding.claim = None
            self.leaving[holding.channel] = holding
            holding.place.promised -= holding.resreq
            if holding.place not in claim.seats:
                self.touch(holding.place)
        for place in claim.seats:
            self.touch(place)

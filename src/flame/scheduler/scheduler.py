"""The scheduler: told of every change, asked for a plan. It reads no clock and does nothing by itself.

A pass does two things: executors start whose promised room is free now; then the sessions that deserve it most get
free room, or, where there is none, others are asked to leave for them (reclaim.py). Its work grows with what changed
and with the number of tenants and shapes that wait, not with sessions and nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from flame.model.resources import Resources
from flame.model.specs import SessionSpec
from flame.model.tenants import DEFAULT_TENANT, TenantSpec
from flame.scheduler import checks, gangs
from flame.scheduler.books import Ask, Books, Claim, Holding, Place
from flame.scheduler.groups import Group, Limit, Tree, dominant
from flame.scheduler.policy import Policies, Policy
from flame.scheduler.queues import Queue, Turns, Waiting
from flame.scheduler.reasons import No, Reasons
from flame.scheduler.reclaim import IDLE_MS, Load, Reclaim
from flame.scheduler.rooms import Rooms, Shape
from flame.scheduler.sweep import FRUITLESS, Sweep

MOVES = 32  # sessions for which a pass takes something back at most; the next one, a moment later, goes on


class Start(msgspec.Struct, gc=False):
    """An executor to start. `rank` and `world`: its number in a gang and the gang's size; world 1 = no gang."""

    session: str
    node: str
    channel: int
    rank: int = 0
    world: int = 1


class Stop(msgspec.Struct, gc=False):
    """An executor to stop for the session `to`: at once when it is idle, else after its running tasks."""

    channel: int
    idle: bool
    to: str


class Plan(msgspec.Struct, gc=False):
    """One pass. `more`: another one may decide more without any further change; `again`: so it may at this time, Unix
    ms, 0 = no."""

    starts: list[Start]
    stops: list[Stop]
    more: bool = False
    again: int = 0


class TenantUsage(msgspec.Struct, gc=False):
    """What a tenant and those below it have. `share` and `fair_share` of the cluster, 0 to 1; `wanted`: executors that
    their sessions could use further."""

    used: Resources
    share: float
    fair_share: float
    executors: int
    wanted: int


class Scheduler:
    """Who gets an executor where, and who gives one back."""

    def __init__(self, policies: Sequence[Policy]) -> None:
        self.policies = Policies(policies)
        self.books = Books()
        self.tree = Tree()
        self.tree.put(DEFAULT_TENANT, TenantSpec())
        self.rooms = Rooms(self.books, self.policies)
        self.waiting = Waiting(self.policies)
        self.applications: dict[str, Limit] = {}
        self.reasons = Reasons(self.books, self.rooms, self.waiting, self.policies)
        self.dirty = True  # something changed that may lead to another plan
        self._now = 0
        self._turn = 0  # starts until now
        self._sweep = Sweep(self.waiting)
        self._moves = 0  # grows with what changes except the room on nodes

    # --- tenants -------------------------------------------------------------------------------------------------

    def put_tenant(self, name: str, spec: TenantSpec) -> None:
        """A tenant is there, or has another spec; its parent must be known."""
        self.tree.put(name, spec)
        self._moves += 1
        self.dirty = True

    def drop_tenant(self, name: str) -> None:
        """A tenant without children and sessions is gone."""
        self.tree.drop(name)

    def usage(self, name: str) -> TenantUsage:
        """What the tenant has, deserves and wants."""
        group = self.tree.groups[name]
        mine = (queue for queue in self.waiting.queues.values() if group in queue.group.path())
        wanted = sum(ask.lacking for queue in mine for ask in queue.members.values())
        return TenantUsage(
            group.used, dominant(group.used, self.books.total), self._fair(group), group.executors, wanted
        )

    def _fair(self, group: Group) -> float:
        """Its weight's part of its parent's share, among siblings that have or want executors."""
        share = 1.0
        for one in group.path():
            if one.parent is not None:
                active = [c.weight for c in one.parent.children.values() if c is one or c.executors or c.sessions]
                share *= one.weight / sum(active)
        return share

    # --- nodes ---------------------------------------------------------------------------------------------------

    def put_node(
        self,
        name: str,
        capacity: Resources,
        *,
        ready: bool = True,
        takes: bool = True,
        labels: Mapping[str, str] | None = None,
        taints: Sequence[str] = (),
        limit: int = 0,
        also: Sequence[str] = (),
    ) -> None:
        """A node is there, or changed. `ready`: its link is up; `takes`: it is not cordoned; `limit` of executors;
        `also`: its host and addresses, under which sessions may prefer it."""
        place = self.books.places.get(name)
        if place is None:
            place = self.books.places[name] = Place(name)
            self.rooms.relabelled(name)
        self.dirty = True
        if place.ready:
            self.books.total -= place.capacity
        if ready:
            self.books.total += capacity
        self.books.rename(place, also)
        labels = dict(labels or {})
        if (place.labels, place.taints) != (labels, tuple(taints)):
            place.labels, place.taints = labels, tuple(taints)
            self.rooms.relabelled(name)
            self._void(place)
        if place.capacity != capacity or place.limit != limit:
            self.rooms.era += 1
        place.capacity = capacity
        place.ready = ready
        place.open = ready and takes
        place.limit = limit
        self.books.touch(place)
        if not place.open:
            self._void(place)

    def drop_node(self, name: str) -> None:
        """The node is lost; its executors must have been freed."""
        place = self.books.places.pop(name, None)
        if place is not None:
            self.dirty = True
            if place.ready:
                self.books.total -= place.capacity
            place.ready = place.open = False
            self.books.rename(place, ())
            self._void(place)
            self.books.touch(place)
            self.rooms.relabelled(name)

    def _void(self, place: Place) -> None:
        for claim in [claim for claim in self.books.claims if place in claim.seats]:
            self._drop(claim)

    # --- sessions ------------------------------------------------------------------------------------------------

    def open_session(
        self, session: str, spec: SessionSpec, resreq: Resources, created: int, most: int | None = None
    ) -> None:
        """A session is open; it wants nothing until `wants` is called. `most`: max_instances of its application."""
        limit = self.applications.get(spec.application)
        if limit is None:
            limit = self.applications[spec.application] = Limit(spec.application, 1 << 62 if most is None else most)
        elif most is not None:
            limit.most = most
        ask = self._ask(session, spec, resreq, created, limit)
        ask.shape = self.rooms.shape_of(ask)
        self.books.asks[session] = ask
        ask.group.asks[session] = ask
        for above in ask.group.path():
            above.sessions += 1

    def _ask(self, session: str, spec: SessionSpec, resreq: Resources, created: int, limit: Limit) -> Ask:
        # The edge refuses unknown tenants; a session of an older journal may name one all the same.
        group = self.tree.groups.get(spec.tenant) or self.tree.groups[DEFAULT_TENANT]
        return Ask(
            session,
            group,
            limit,
            resreq,
            priority=spec.priority,
            created=created,
            floor=spec.min_instances,
            gang=spec.gang,
            topology=spec.topology,
            labels=spec.labels,
            selector=spec.selector,
            tolerations=spec.tolerations,
            prefer=spec.prefer_nodes,
        )

    def close_session(self, session: str) -> None:
        """The session wants nothing any more; its executors keep their room until they are freed."""
        ask = self.books.asks.pop(session, None)
        if ask is None:
            return
        ask.want = 0
        for claim in list(ask.claims):
            self.books.drop(claim)
            self.dirty = True
        self.waiting.remove(ask)
        for holding in list(ask.holdings.values()):
            self.books.orphan(holding)
        del ask.group.asks[session]
        for above in ask.group.path():
            above.sessions -= 1
        assert isinstance(ask.shape, Shape)
        self.rooms.forget(ask.shape)

    def wants(self, session: str, want: int, now: int) -> None:
        """The session could use `want` executors in all, of which it has some."""
        ask = self.books.asks.get(session)
        if ask is None or ask.want == want:
            return
        ask.want = want
        while ask.claims and ask.coming > want:
            self.books.drop(ask.claims[-1])
            self.dirty = True
        self._now = now
        self._changed(ask)

    def lacks(self, session: str) -> bool:
        """Whether the session could use more executors than it has or was promised."""
        ask = self.books.asks.get(session)
        return ask is not None and ask.lane is not None

    def since(self, session: str) -> int:
        """Since when it lacks executors, Unix ms; 0 = it does not."""
        ask = self.books.asks.get(session)
        return ask.since if ask is not None else 0

    def why(self, session: str) -> No | None:
        """The first rule that keeps the session from getting executors, in short; cheap enough for long lists."""
        ask = self.books.asks.get(session)
        return self.reasons.first(ask) if ask is not None else None

    def explain(self, session: str) -> list[No]:
        """Every rule that does, and what each node says."""
        ask = self.books.asks.get(session)
        return self.reasons.all(ask) if ask is not None else []

    def impossible(self, session: str) -> No | None:
        """Why no known node could ever run it; None = some could."""
        ask = self.books.asks.get(session)
        return self.reasons.impossible(ask) if ask is not None else None

    def impossible_gang(self, spec: SessionSpec, resreq: Resources) -> No | None:
        """Why all nodes together could not hold such a gang; None = they could, or none is known yet."""
        ask = self._ask("", spec, resreq, 0, Limit(spec.application, 1 << 62))
        ask.shape = self.rooms.shape_of(ask)
        no = self.reasons.impossible(ask)
        assert isinstance(ask.shape, Shape)
        self.rooms.forget(ask.shape)
        return no

    def _changed(self, ask: Ask) -> None:
        """What it has or wants changed: its place in the queue and among those that can give."""
        self._moves += 1
        waited = ask.lane is not None
        self.waiting.update(ask)
        if ask.lane is not None and not waited:
            self.dirty = True
            self._sweep.renew(ask.lane)
        if ask.lane is None and not ask.claims:
            ask.since = 0
        elif not ask.since:  # also while it only waits for what it was promised
            ask.since = self._now
        ask.group.givers.changed(ask)

    # --- executors -----------------------------------------------------------------------------------------------

    def took(self, channel: int, session: str, node: str, resreq: Resources) -> None:
        """An executor is there that no plan started: found again on a node. `session` "" = it only keeps its room."""
        ask = self.books.asks.get(session)
        self.books.hold(channel, ask, self.books.places[node], resreq)
        if ask is not None:
            while ask.claims and ask.coming > ask.want:
                self.books.drop(ask.claims[-1])
            self._changed(ask)

    def leaving(self, channel: int) -> None:
        """The executor was told to end."""
        holding = self.books.holdings.get(channel)
        if holding is not None and not holding.leaving:
            self.books.leave(holding)
            if holding.ask is not None:
                self._changed(holding.ask)

    def freed(self, channel: int) -> None:
        """The executor is gone."""
        self.dirty = True
        holding = self.books.holdings.get(channel)
        if holding is not None:
            stayed = not holding.leaving
            self.books.free(holding)
            if holding.ask is not None and stayed:
                self._changed(holding.ask)

    def idle(self, channel: int, since: int) -> None:
        """The executor has had no work since then (Unix ms), 0 = it has some."""
        holding = self.books.holdings.get(channel)
        if holding is None:
            return
        self._moves += 1
        holding.idle_since = since
        if since and not holding.leaving:
            self.dirty = self.dirty or bool(self.waiting.queues)
            self.books.idle[channel] = holding
        else:
            self.books.idle.pop(channel, None)

    # --- the pass ------------------------------------------------------------------------------------------------

    def decide(self, now: int, load: Load, new_channel: Callable[[], int]) -> Plan:
        """One pass. The plan counts as carried out: its starts hold their room, its stops are on their way out.

        `load` answers how many tasks an executor holds, `new_channel` a number for a new one.
        """
        self._now = now
        self.dirty = False
        self.policies.begin()
        self.waiting.resize(self.books.total)
        plan = Plan([], [])
        self._redeem(plan, new_channel)
        if self.waiting.queues:
            hopeful = self._sweep.hopeful(self._changes())
            reclaim = Reclaim(self.books, self.rooms, self.waiting, load, now)
            if not self._allot(plan, hopeful, reclaim, new_channel):
                self._allot(plan, set(), reclaim, new_channel)
            plan.again = self._sweep.resume(self._changes(), now)
        for start in plan.starts:
            ask = self.books.asks[start.session]
            ask.since = now if ask.lane is not None or ask.claims else 0
        self.dirty = plan.more
        if self.waiting.queues and self.books.idle:
            youngest = next(reversed(self.books.idle.values())).idle_since + IDLE_MS
            if youngest > now and not now < plan.again < youngest:
                plan.again = youngest
        return plan

    def _redeem(self, plan: Plan, new_channel: Callable[[], int]) -> None:
        """Claims whose room is free now."""
        for claim in [claim for claim in self.books.claims if not claim.waiting]:
            ask = claim.ask
            if self._limit(ask, len(claim.seats), claimed=True) and not self._over(ask):
                continue  # kept until others of its tenant, which are on their way out, are gone
            self._drop(claim)
            size = ask.resreq
            counts: dict[Place, int] = {}
            for place in claim.seats:
                counts[place] = counts.get(place, 0) + 1
            fits = all(gangs.seats_on(place, size) >= n and place.open for place, n in counts.items())
            if fits and not self._limit(ask, len(claim.seats)):
                self._start(plan, ask, claim.seats, new_channel)

    def _changes(self) -> tuple[int, int]:
        return self._moves, self.rooms.end

    def _allot(self, plan: Plan, hopeful: set[Queue], reclaim: Reclaim, new_channel: Callable[[], int]) -> bool:
        """One executor (or gang) at a time to whoever deserves it most: on free room, or others are asked to leave.
        One order for both: who can take back does not wait behind those that deserve less and find room at once.
        False = taking back was fruitless too often; it has to be called again without."""
        passed: set[str] = set()
        queues = self.waiting.queues.values()
        roomy = self._roomy(dict.fromkeys(queue.shape for queue in queues))
        untried = hopeful.copy()
        turns = Turns(self.waiting, [q for q in queues if q.shape in roomy or q in untried], self.tree.root, passed)
        fruitless = claims = 0
        while (roomy or untried) and fruitless < FRUITLESS and claims < MOVES:
            queue = turns.next()
            if queue is None:
                break
            ask = self.waiting.head(queue, passed)
            if ask is None:
                turns.done()
            elif queue.shape in roomy and (seats := self._seats(ask, queue.shape)) is not None:
                self._start(plan, ask, seats, new_channel)
                turns.served(queue)
            elif queue in untried and self._take_back(plan, ask, reclaim):
                claims += 1
                turns.served(queue)
            else:
                if queue in untried:
                    fruitless += 1
                    self._sweep.tried(queue)
                if ask.gang:  # another gang of this queue may be smaller
                    passed.add(ask.session)
                    turns.served(queue)
                else:
                    untried.discard(queue)
                    turns.done()
                if queue.shape in roomy and self.rooms.best(queue.shape) is None:
                    roomy = self._roomy(roomy)
                    if not roomy:  # those that wait for room alone need not be looked at any more
                        turns = Turns(self.waiting, [q for q in queues if q in untried], self.tree.root, passed)
        for session in passed:
            self.waiting.update(self.books.asks[session])
        plan.more = plan.more or claims == MOVES
        return fruitless < FRUITLESS

    def _roomy(self, shapes: Iterable[Shape]) -> dict[Shape, None]:
        """Those of the shapes that find room."""
        return {shape: None for shape in shapes if self.rooms.best(shape) is not None}

    def _seats(self, ask: Ask, shape: Shape) -> list[Place] | None:
        """Free room for the session's next executor (a gang: for all of them) within its limits."""
        if self._limit(ask, ask.world):
            return None
        if ask.gang:
            return gangs.seats(ask, self.rooms, shape)
        place = self.rooms.best_for(ask, shape)
        return None if place is None else [place]

    def _start(self, plan: Plan, ask: Ask, seats: Sequence[Place], new_channel: Callable[[], int]) -> None:
        for rank, place in enumerate(seats):
            channel = new_channel()
            self.books.hold(channel, ask, place, ask.resreq)
            plan.starts.append(Start(ask.session, place.name, channel, rank, len(seats) if ask.gang else 1))
        ask.turn = self._now
        self._turn += 1
        for group in ask.group.path():
            group.turn = self._turn
        self._changed(ask)

    def _take_back(self, plan: Plan, ask: Ask, reclaim: Reclaim) -> bool:
        """Others leave for the session's next executor (a gang: for all of them), as far as they have to."""
        made = None if self._barred(ask) else reclaim.claim(ask)
        if made is None:
            return False
        claim, told = made
        plan.more = plan.more or not claim.waiting
        for holding in told:
            plan.stops.append(Stop(holding.channel, bool(holding.idle_since), ask.session))
            assert holding.ask is not None
            self._changed(holding.ask)
        self._changed(ask)
        return True

    def _barred(self, ask: Ask) -> bool:
        """Whether taking back can't help: it would not fit on any node, or its limits forbid more anyway."""
        return not any(True for _ in self.books.holdings) or ask.application.coming >= ask.application.most

    def _drop(self, claim: Claim) -> None:
        self.books.drop(claim)
        self._changed(claim.ask)

    def _limit(self, ask: Ask, count: int, *, claimed: bool = False) -> bool:
        """Whether a quota or its application's limit forbids to start so many now; `claimed`: a claim counts them."""
        limit = ask.application
        if limit.used + limit.claimed + (0 if claimed else count) > limit.most:
            return True
        gain = ask.resreq if count == 1 else gangs.times(ask.resreq, count)
        kept = gain if claimed else Resources()
        return any(group.over_quota(group.used + group.kept - kept, gain) for group in ask.group.path())

    def _over(self, ask: Ask) -> bool:
        """Whether its claims are over a limit even when those that leave are gone."""
        size = ask.resreq
        quota = any(group.over_quota(group.coming - size, size) for group in ask.group.path())
        return quota or ask.application.coming > ask.application.most

    # --- checks --------------------------------------------------------------------------------------------------

    def validate(self) -> None:
        """Raise AssertionError when an invariant does not hold (for tests and the simulator)."""
        checks.validate(self.books, self.tree)


__all__ = ["Holding", "Plan", "Queue", "Scheduler", "Start", "Stop", "TenantUsage"]

"""Who gets an executor where, and who gives one back: a pure function of a snapshot.

Sessions are served by priority, then by the smaller dominant share (the largest of its shares of cpu, memory and
GPUs; Ghodsi et al., "Dominant Resource Fairness", NSDI 2011), then by age; one executor at a time, so that equal
sessions grow evenly. A session that finds no room first gets executors that idle for others, then those of sessions
that hold at least one executor more than it would; the latter end their running tasks before they leave.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heappop, heappush

import msgspec

from flame.model.resources import Resources


class Demand(msgspec.Struct, gc=False):
    """What one open session wants. `want`: executors in all, already within its min and max instances."""

    session: str
    priority: int
    created: int
    resreq: Resources
    have: int  # executors that serve it or will soon
    want: int
    floor: int  # min_instances
    idle: Sequence[int] = ()  # channels of its executors without a task, longest idle first
    busy: Sequence[int] = ()  # the others that serve it, those with the least work first


class Room(msgspec.Struct, gc=False):
    """A node that takes executors. `leaving`: what its executors on their way out will free."""

    node: str
    capacity: Resources
    free: Resources
    leaving: Resources


class No(msgspec.Struct, gc=False):
    """Why a session gets no (further) executor."""

    rule: str
    object: str
    message: str
    remedy: str


class Plan(msgspec.Struct, gc=False):
    starts: list[tuple[str, str]]  # (session, node)
    releases: list[int]  # idle executors to stop now
    drains: list[int]  # executors to stop after their running tasks
    noes: dict[str, No]


def share(count: int, resreq: Resources, total: Resources) -> float:
    """Dominant share of `count` executors of this size."""
    parts = (
        resreq.cpu / total.cpu if total.cpu else float(resreq.cpu > 0),
        resreq.memory / total.memory if total.memory else float(resreq.memory > 0),
        resreq.gpu / total.gpu if total.gpu else float(resreq.gpu > 0),
    )
    return count * max(parts)


def plan(demands: Sequence[Demand], rooms: Sequence[Room]) -> Plan:
    """Decide one pass. Never answers starts that do not fit: each is taken from `free` before the next is decided."""
    result = Plan([], [], [], {})
    total = Resources()
    for room in rooms:
        total += room.capacity
    have = {demand.session: demand.have for demand in demands}
    queue = [_entry(demand, demand.have, total) for demand in demands if demand.want > demand.have]
    heapify(queue)
    by_name = {demand.session: demand for demand in demands}
    full: set[Resources] = set()  # sizes that found no node in this pass
    order = _Rooms(rooms)
    starving: list[Demand] = []
    while queue:
        _, _, _, name = heappop(queue)
        demand = by_name[name]
        node = None if demand.resreq in full else order.take(demand.resreq)
        if node is None:
            full.add(demand.resreq)
            starving.append(demand)
            continue
        result.starts.append((name, node))
        have[name] += 1
        if have[name] < demand.want:
            heappush(queue, _entry(demand, have[name], total))
    _reclaim(starving, demands, have, rooms, total, result)
    return result


def _entry(demand: Demand, count: int, total: Resources) -> tuple[int, float, int, str]:
    return (-demand.priority, share(count, demand.resreq, total), demand.created, demand.session)


class _Rooms:
    """Finds the node with the most free cores for a size; a size that fits nowhere is remembered by the caller."""

    def __init__(self, rooms: Sequence[Room]) -> None:
        self.heap = [(-room.free.cpu, -room.free.memory, index) for index, room in enumerate(rooms)]
        heapify(self.heap)
        self.rooms = rooms

    def take(self, size: Resources) -> str | None:
        passed: list[tuple[int, int, int]] = []
        found: str | None = None
        while self.heap:
            entry = heappop(self.heap)
            room = self.rooms[entry[2]]
            if -entry[0] < size.cpu:  # no later entry has more free cores
                passed.append(entry)
                break
            if size.fits(room.free):
                room.free -= size
                found = room.node
                heappush(self.heap, (-room.free.cpu, -room.free.memory, entry[2]))
                break
            passed.append(entry)
        for entry in passed:
            heappush(self.heap, entry)
        return found


def _reclaim(
    starving: list[Demand],
    demands: Sequence[Demand],
    have: dict[str, int],
    rooms: Sequence[Room],
    total: Resources,
    result: Plan,
) -> None:
    """Free room for sessions that found none, and say why they found none."""
    # What is on its way out already will serve some of the starving; do not take more than is needed.
    promised = Resources()
    for room in rooms:
        promised += room.leaving
    taken: set[int] = set()
    for demand in starving:
        name = demand.session
        result.noes[name] = _why(demand, rooms, total)
        if not any(demand.resreq.fits(room.capacity) for room in rooms):
            continue
        missing = demand.want - have[name]
        while missing > 0:
            if demand.resreq.fits(promised):
                promised -= demand.resreq
            else:
                freed = _idle_victim(demand, demands, have, taken, result) or _busy_victim(
                    demand, demands, have, taken, total, result
                )
                if freed is None:
                    break
                promised += freed
                if not demand.resreq.fits(promised):
                    continue
                promised -= demand.resreq
            have[name] += 1
            missing -= 1


def _idle_victim(
    demand: Demand, demands: Sequence[Demand], have: dict[str, int], taken: set[int], result: Plan
) -> Resources | None:
    for other in demands:
        if other.session == demand.session or have[other.session] <= other.floor:
            continue
        for channel in other.idle:
            if channel not in taken:
                taken.add(channel)
                have[other.session] -= 1
                result.releases.append(channel)
                return other.resreq
    return None


def _busy_victim(
    demand: Demand,
    demands: Sequence[Demand],
    have: dict[str, int],
    taken: set[int],
    total: Resources,
    result: Plan,
) -> Resources | None:
    """An executor of the session with the largest share among those that would still hold no less than `demand`."""
    mine = share(have[demand.session] + 1, demand.resreq, total)
    best: tuple[int, float, Demand] | None = None
    for other in demands:
        count = have[other.session]
        if other.session == demand.session or count <= other.floor or other.priority > demand.priority:
            continue
        if all(channel in taken for channel in other.busy):
            continue
        if other.priority == demand.priority and share(count - 1, other.resreq, total) < mine - 1e-9:
            continue
        key = (other.priority, -share(count, other.resreq, total), other)
        if best is None or key[:2] < best[:2]:
            best = key
    if best is None:
        return None
    victim = best[2]
    channel = next(channel for channel in victim.busy if channel not in taken)
    taken.add(channel)
    have[victim.session] -= 1
    result.drains.append(channel)
    return victim.resreq


def _why(demand: Demand, rooms: Sequence[Room], total: Resources) -> No:
    size = demand.resreq
    if not rooms:
        return No("nodes", "cluster", "no node is ready", "start an executor manager, or look at flmctl list -n")
    for field in ("cpu", "memory", "gpu"):
        largest = max(getattr(room.capacity, field) for room in rooms)
        if getattr(size, field) > largest:
            return No(
                "capacity",
                "cluster",
                f"one executor needs {field}={getattr(size, field)}; the largest node has {largest}",
                "ask for less in the session's resreq, or add a larger node",
            )
    if not any(size.fits(room.capacity) for room in rooms):
        return No("capacity", "cluster", f"no node has all of {size} at once", "ask for less, or add a larger node")
    return No(
        "room",
        "cluster",
        f"no node has {size} free; {demand.have} of {demand.want} wanted executors are there",
        "wait for other sessions, lower their max_instances, or add a node",
    )

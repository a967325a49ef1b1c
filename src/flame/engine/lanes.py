"""Which pending tasks of a session may run, and in which order: by priority, then by id.

Two kinds of task wait although they are pending, and `Session.waiting` counts them: those that rest before their next
attempt, and those of a *key* that has no free place. A task holds a place of its key from the moment it is sent to an
executor until that executor has nothing more of it, and while it rests: so its successors do not overtake it, and never
more than `Session.per_key` of a key are on executors.

Nothing here costs anything per task in sessions that use neither.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable
from heapq import heappop, heappush
from typing import TYPE_CHECKING

from flame.engine.columns import PENDING, RUNNING, SUCCEED, Chunk
from flame.engine.effects import Part

if TYPE_CHECKING:
    from flame.engine.sessions import Session


class Lane:
    """Ready tasks of one priority: ids that came back, and [index, next column] of chunks; two heaps. What ended
    meanwhile is skipped when it is met."""

    __slots__ = ("fresh", "returned")

    def __init__(self) -> None:
        self.returned: list[int] = []
        self.fresh: list[list[int]] = []


class Key:
    """The tasks of one key. `held` is a heap of what was met while there was no free place: (-priority, task id, index
    of the chunk whose tasks from that id on are meant, or -1 for that task alone).

    Invariants: len(places) <= Session.per_key; while a place is free, the first of the key is in a lane, not in `held`;
    waiting == how many of the `pending` ready ones are more than there are free places.
    """

    __slots__ = ("held", "pending", "places", "unknown", "waiting")

    def __init__(self) -> None:
        self.held: list[tuple[int, int, int]] = []
        self.pending = 0
        self.places: set[int] = set()
        self.unknown = 0  # places that executors may hold which did not come back yet after a restart
        self.waiting = 0


# --- in ----------------------------------------------------------------------------------------------------------


def add(session: Session, index: int, chunk: Chunk) -> None:
    """All tasks of a new chunk are ready, as far as their key allows."""
    options = chunk.options
    lane = session.lanes.get(options.priority) or _lane(session, options.priority)
    heappush(lane.fresh, [index, 0])
    name = options.key
    if name:
        key = session.keyed.get(name)
        if key is None:
            key = session.keyed[name] = Key()
            key.unknown = session.per_key if session.unsettled else 0
        key.pending += chunk.count
        _recount(session, name, key)


def give_back(session: Session, task_id: int) -> None:
    """A task that ran or was sent ahead is ready again."""
    session.states[task_id - 1] = PENDING
    session.running -= 1
    session.pending += 1
    _ready(session, task_id)


def rest(session: Session, task_id: int, until: int) -> None:
    """A task that ran is pending again, and ready at `until` (Unix ms)."""
    session.states[task_id - 1] = PENDING
    session.running -= 1
    session.pending += 1
    session.waiting += 1
    session.resting[task_id] = until
    heappush(session.wakes, (until, task_id))


def wake(session: Session, now: int) -> bool:
    """Tasks that have rested are ready; answers whether there were any."""
    woken = False
    while session.wakes and session.wakes[0][0] <= now:
        until, task_id = heappop(session.wakes)
        if session.resting.get(task_id) == until:
            del session.resting[task_id]
            session.waiting -= 1
            _ready(session, task_id)
            woken = True
    return woken


def _ready(session: Session, task_id: int) -> None:
    options = session.chunk_of(task_id).options
    if not options.key:
        heappush(_lane(session, options.priority).returned, task_id)
        return
    key = session.keyed[options.key]
    key.places.discard(task_id)
    key.pending += 1
    heappush(key.held, (-options.priority, task_id, -1))
    _release(session, key)
    _recount(session, options.key, key)


def _lane(session: Session, priority: int) -> Lane:
    lane = session.lanes.get(priority)
    if lane is None:
        lane = session.lanes[priority] = Lane()
        insort(session.priorities, priority)
    return lane


# --- out ---------------------------------------------------------------------------------------------------------


def take(session: Session, limit: int) -> tuple[list[Part], int]:
    """Up to `limit` ready tasks that share one timeout, as parts of chunks; marks them as running.

    A task that was on an instance when it died is taken alone, so that the next death names the culprit.
    Answers (parts, timeout in ms).
    """
    parts: list[Part] = []
    timeout = -1
    while limit > 0:
        lane = _first_lane(session)
        if lane is None:
            break
        single = bool(lane.returned) and _before_fresh(session, lane)
        if single:
            task_id = lane.returned[0]
            chunk = session.chunk_of(task_id)
            if session.states[task_id - 1] != PENDING or task_id in session.resting:  # cancelled, or taken meanwhile
                heappop(lane.returned)
                _next_of_key(session, chunk)
                continue
        else:
            cursor = lane.fresh[0]
            chunk = session.chunks[cursor[0]]
            task_id = _next_pending(session, chunk, cursor[1])
            if not task_id:
                heappop(lane.fresh)
                _next_of_key(session, chunk)
                continue
        room = limit
        options = chunk.options
        if options.key:
            room = min(limit, _free(session, session.keyed[options.key]))
            if room <= 0:
                _hold(session.keyed[options.key], lane, -options.priority, task_id, single=single)
                continue
        suspect = task_id in session.kills
        if timeout not in (-1, options.timeout_ms) or (suspect and parts):
            break
        timeout = options.timeout_ms
        if single:
            heappop(lane.returned)
            length = 1
        else:
            length = _run(session, chunk, task_id, 1 if suspect else room)
            lane.fresh[0][1] = task_id - chunk.first + length
            if task_id + length == chunk.first + chunk.count:
                heappop(lane.fresh)
        _send(session, parts, chunk, task_id, length)
        if options.key:
            _next_of_key(session, chunk)
        limit -= length
        if suspect:
            break
    return parts, max(timeout, 0)


def _hold(key: Key, lane: Lane, order: int, task_id: int, *, single: bool) -> None:
    """The first of the lane waits for a place of its key."""
    if single:
        heappop(lane.returned)
        heappush(key.held, (order, task_id, -1))
    else:
        heappush(key.held, (order, task_id, heappop(lane.fresh)[0]))


def top_priority(session: Session) -> int:
    """Of the ready tasks, of which there must be some."""
    _first_lane(session)
    return session.priorities[-1]


def _first_lane(session: Session) -> Lane | None:
    """The lane of the highest priority that holds anything. Empty ones are dropped, all but the last."""
    priorities = session.priorities
    while priorities:
        lane = session.lanes[priorities[-1]]
        if lane.fresh or lane.returned:
            return lane
        if len(priorities) == 1:
            return None
        del session.lanes[priorities.pop()]
    return None


def _before_fresh(session: Session, lane: Lane) -> bool:
    """Whether the first task that came back has a smaller id than the first of the chunks."""
    if not lane.fresh:
        return True
    index, column = lane.fresh[0]
    return lane.returned[0] < session.chunks[index].first + column


def _next_pending(session: Session, chunk: Chunk, column: int) -> int:
    """Id of the next task of the chunk that is pending and does not rest, 0 = none."""
    start, stop = chunk.first - 1 + column, chunk.first - 1 + chunk.count
    index = session.states.find(PENDING, start, stop)
    if session.resting:  # only one that was tried before the session manager's restart, and again since
        while index >= 0 and index + 1 in session.resting:
            index = session.states.find(PENDING, index + 1, stop)
    return index + 1


def _run(session: Session, chunk: Chunk, start: int, limit: int) -> int:
    """How many tasks from id `start` on may go as one part: neighbours, pending, of the same attempt, no suspects.
    Tasks here may have been tried before, in an earlier life of the session manager."""
    stop = min(start + limit, chunk.first + chunk.count)
    if stop == start + 1:
        return 1
    run = session.states[start - 1 : stop - 1]
    length = len(run) - len(run.lstrip(b"\x00"))
    if session.attempts:
        attempt = session.attempts.get(start, 1)
        for task_id in range(start + 1, start + length):
            other = session.attempts.get(task_id, 1) != attempt
            if other or task_id in session.kills or task_id in session.resting:
                return task_id - start
    return length


def _send(session: Session, parts: list[Part], chunk: Chunk, first: int, length: int) -> None:
    """These tasks run, and go on as a part, or as more of the last one."""
    session.states[first - 1 : first - 1 + length] = bytes((RUNNING,)) * length
    session.pending -= length
    session.running += length
    column = first - chunk.first
    attempt = session.attempts.get(first, 1) if session.attempts else 1
    last = parts[-1] if parts else None
    if last is not None and last.stop == column and last.seq == chunk.seq and last.attempt == attempt:
        last.stop += length
    else:
        parts.append(Part(chunk.seq, column, column + length, first, attempt))
    if chunk.options.key:
        key = session.keyed[chunk.options.key]
        key.places.update(range(first, first + length))
        key.pending -= length
        _recount(session, chunk.options.key, key)


def take_up(session: Session, task_id: int) -> bool:
    """A pending task runs already, as its executor says; it may stay in its lane, which skips it. False = its key has
    no place for it."""
    rested = session.resting.pop(task_id, None) is not None
    name = session.chunk_of(task_id).options.key if session.keyed else ""
    if name and not rested:
        key = session.keyed[name]
        if len(key.places) >= session.per_key:
            return False
        key.places.add(task_id)
        key.unknown = max(0, key.unknown - 1)
        key.pending -= 1
        _recount(session, name, key)
    session.states[task_id - 1] = RUNNING
    session.pending -= 1
    session.running += 1
    session.waiting -= rested
    return True


def withdraw(session: Session, task_id: int) -> None:
    """A pending task ends without having run (again)."""
    name = session.chunk_of(task_id).options.key
    rested = session.resting.pop(task_id, None) is not None
    session.waiting -= rested
    if name:
        key = session.keyed[name]
        if rested:
            key.places.discard(task_id)
            _release(session, key)
        else:
            key.pending -= 1
        _recount(session, name, key)


# --- places of keys ----------------------------------------------------------------------------------------------


def vacate(session: Session, task_ids: Iterable[int]) -> None:
    """No executor has these any more: those that have ended leave their place to the next of their key."""
    if not session.keyed:
        return
    for task_id in task_ids:
        name = session.chunk_of(task_id).options.key
        key = session.keyed.get(name)
        if key is not None and task_id in key.places and session.states[task_id - 1] >= SUCCEED:
            key.places.remove(task_id)
            _release(session, key)
            _recount(session, name, key)


def expect_executors(session: Session) -> None:
    """After a restart: any place of any key may be held by an executor that has not come back yet, even for tasks whose
    submission did not become durable and that are submitted again."""
    session.unsettled = True
    for name, key in list(session.keyed.items()):
        key.unknown = session.per_key
        _recount(session, name, key)


def expect_no_more(session: Session) -> None:
    """Who did not come back by now counts as lost."""
    session.unsettled = False
    for name, key in list(session.keyed.items()):
        key.unknown = 0
        _release(session, key)
        _recount(session, name, key)


def _free(session: Session, key: Key) -> int:
    return max(0, session.per_key - len(key.places) - key.unknown)


def _next_of_key(session: Session, chunk: Chunk) -> None:
    """Something of this chunk was in a lane and turned out to be nothing: let the next of its key in."""
    key = session.keyed.get(chunk.options.key) if chunk.options.key else None
    if key is not None:
        _release(session, key)


def _release(session: Session, key: Key) -> None:
    """Let the first task that is held into its lane if there is a place for it."""
    if not _free(session, key):
        return
    while key.held:
        negative, task_id, index = heappop(key.held)
        lane = _lane(session, -negative)
        if index >= 0:
            heappush(lane.fresh, [index, task_id - session.chunks[index].first])
            return
        if session.states[task_id - 1] == PENDING and task_id not in session.resting:
            heappush(lane.returned, task_id)
            return


def _recount(session: Session, name: str, key: Key) -> None:
    waiting = max(0, key.pending - _free(session, key))
    session.waiting += waiting - key.waiting
    key.waiting = waiting
    if not (key.pending or key.places or key.unknown):
        del session.keyed[name]

"""A cluster in one thread: the real engine and scheduler, a simulated clock, network, disk, nodes and clients.

Everything that happens is decided by one seed. Links are ordered streams with random delays; they break, and what was
under way is lost. Nodes die and come back, instances crash, tasks kill their instance, the disk refuses commits, the
manager is killed between any two steps and replays its disk. After every turn the engine's invariants are checked;
nothing may be said before it is durable; at the end, after all faults have ceased, everything must have been done.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from typing import Any

from msgspec import msgpack

from flame.engine.effects import Record, RecordKind
from flame.engine.records import FinishedMeta


class World:
    """Clock and agenda. All times are milliseconds."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 1_000_000
        self._agenda: list[tuple[int, int, Callable[[], None]]] = []
        self._order = count()
        self.calm = False  # no further faults
        # What nodes know of each other here, to see whether keys are kept.
        self.nodes: list[Any] = []
        self.per_key: dict[str, int] = {}  # session -> tasks of one key that may work at a time
        self.began: dict[tuple[int, str, str, int], set[int]] = {}  # (life, session, key, priority) -> tasks

    def at(self, when: int, act: Callable[[], None]) -> None:
        heappush(self._agenda, (max(when, self.now), next(self._order), act))

    def later(self, low: int, high: int, act: Callable[[], None]) -> None:
        self.at(self.now + self.random.randint(low, high), act)

    def run(self, until: int, done: Callable[[], bool] | None = None) -> bool:
        """Let things happen until the time, or until `done`; answers whether it is done."""
        while self._agenda and self._agenda[0][0] <= until:
            self.now, _, act = heappop(self._agenda)
            act()
            if done is not None and done():
                return True
        self.now = max(self.now, until)
        return done is not None and done()

    def chance(self, share: float) -> bool:
        """True with this probability while there are faults at all."""
        return not self.calm and self.random.random() < share


class Wire:
    """One direction of a link: ordered, delayed; once cut, what is under way never arrives."""

    def __init__(self, world: World, receive: Callable[[object], None]) -> None:
        self.world = world
        self.receive = receive
        self.open = True
        self._last = 0

    def send(self, message: object) -> None:
        if not self.open:
            return
        slow = self.world.chance(0.02)
        arrival = self.world.now + self.world.random.randint(0, 500 if slow else 3)
        self._last = max(self._last, arrival)
        self.world.at(self._last, lambda: self.receive(message) if self.open else None)

    def cut(self) -> None:
        self.open = False


class Disk:
    """The durable records. A task must end at most once in them, and only after its submission."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.bodies: dict[int, bytes] = {}
        self.submitted: dict[str, int] = {}  # session -> tasks
        self.ended: dict[tuple[str, int], str] = {}

    def commit(self, records: list[Record]) -> None:
        for record in records:
            assert not self.records or record.seq == self.records[-1].seq + 1, "records must be gapless and in order"
            self.records.append(record)
            self.bodies[record.seq] = record.body
            if record.kind == RecordKind.SUBMITTED:
                first, size = msgpack.decode(record.meta)[:2]
                assert first == self.submitted.get(record.session, 0) + 1
                self.submitted[record.session] = first + size - 1
            elif record.kind == RecordKind.FINISHED:
                meta = msgpack.decode(record.meta, type=FinishedMeta)
                states = dict(meta.unsuccessful)
                for low, high in meta.spans:
                    for task_id in range(low, high + 1):
                        self._end(record.session, task_id, f"state {states.get(task_id, 2)} in {record.seq}")
                for item in meta.finished:
                    self._end(record.session, item.task_id, f"state {int(item.state)} by the engine")

    def _end(self, session: str, task_id: int, how: str) -> None:
        assert 1 <= task_id <= self.submitted.get(session, 0), (
            f"task {task_id} of {session} ended but was not submitted"
        )
        before = self.ended.get((session, task_id))
        assert before is None, f"task {task_id} of {session} ended twice: {before}, then {how}"
        self.ended[session, task_id] = how

"""Shares over time: a trace of tenants with weights 1, 2 and 5, made from a seed, replayed in virtual time through the
real engine and scheduler. Nothing sleeps; the same seed gives the same figures on any machine."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from typing import Any

import msgspec

from flame.engine import Engine, EngineSettings
from flame.engine import effects as fx
from flame.engine import events as ev
from flame.model.resources import Resources
from flame.model.specs import ApplicationSpec, SessionSpec
from flame.model.states import ExecutorState
from flame.model.tenants import TenantSpec

NODES = 16
PER_NODE = 4
EXECUTORS = NODES * PER_NODE
WEIGHTS = {"one": 1.0, "two": 2.0, "five": 5.0}
START_MS = 80  # process, service ready
STOP_MS = 20
SAMPLE_MS = 100
SETTLED_MS = 10_000  # of each phase, then the error counts
ENDLESS = 50_000  # tasks: a session that never runs dry
SHORT_MS = (20, 200)
LONG_MS = (1_000, 5_000)


class Phase(msgspec.Struct, frozen=True):
    """What the tenants want for a while. `demand`: executors that each can use, None = any number, absent = nothing."""

    title: str
    length_ms: int
    demand: dict[str, int | None]
    sessions: dict[str, int] = {}  # open at a time, default 3
    churn_ms: int = 0  # every so often (on average) one of them closes and another opens; 0 = never


PHASES = (
    Phase("all busy", 30_000, {"one": None, "two": None, "five": None}),
    Phase("five has nothing to do", 30_000, {"one": None, "two": None}),
    Phase("five is back", 30_000, {"one": None, "two": None, "five": None}),
    Phase("one opens 30 sessions", 30_000, {"one": None, "two": None, "five": None}, {"one": 30}),
    Phase("two needs only 4", 30_000, {"one": None, "two": 4, "five": None}, {"two": 1}),
    Phase("sessions come and go", 30_000, {"one": None, "two": None, "five": None}, churn_ms=3_000),
)


class Sample(msgspec.Struct, frozen=True):
    """Executors that each tenant holds (until they are gone) and deserves, at a time since the start."""

    at_ms: int
    held: dict[str, int]
    ideal: dict[str, float]

    @property
    def error(self) -> float:
        """The largest difference between the two, in executors."""
        return max(abs(self.held[name] - self.ideal[name]) for name in WEIGHTS)


class Replay:
    """The engine, its nodes and its clients in virtual time. `agenda`: (when, number, what happens then)."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        ids = count(1)
        self.engine = Engine(EngineSettings(), lambda: f"x{next(ids)}")
        self.began = self.now = 1_000_000
        self.agenda: list[tuple[int, int, Callable[[], None]]] = []
        self.wake_at = 0
        self.numbers = count(1)
        self.queues: dict[int, deque[tuple[int, int]]] = {}  # channel -> (task, attempt) that it holds
        self.busy: dict[int, int] = {}  # channel -> number of the run under way
        self.stopping: set[int] = set()
        self.lengths: dict[str, tuple[int, int]] = {}  # session -> shortest and longest task, ms
        self.open: dict[str, list[str]] = {name: [] for name in WEIGHTS}
        self.engine.recovered(self.now)
        for name, weight in WEIGHTS.items():
            self.turn(ev.SetTenant(0, name, TenantSpec(weight=weight)))
        self.turn(ev.RegisterApplication(1, "app", ApplicationSpec(command="run")))
        capacity = Resources(PER_NODE, 16 * 1024**3, 0)
        self.turn(*(ev.NodeJoined(f"n{number}", "boot", f"n{number}", capacity) for number in range(NODES)))

    # --- time ----------------------------------------------------------------------------------------------------

    def later(self, after_ms: int, act: Callable[[], None]) -> None:
        """It happens then."""
        heappush(self.agenda, (self.now + after_ms, next(self.numbers), act))

    def until(self, when: int) -> None:
        """Let everything happen that is due by then."""
        while self.agenda and self.agenda[0][0] <= when:
            self.now, _, act = heappop(self.agenda)
            act()
        self.now = when

    def turn(self, *events: ev.Event) -> None:
        """One turn, and what it asks for."""
        turn = self.engine.turn(self.now, events)
        if turn.wake_at != self.wake_at:
            self.wake_at = turn.wake_at
            self.later(max(0, turn.wake_at - self.now), lambda: self.wake(turn.wake_at))
        for effect in turn.now:
            self.obey(effect)

    def wake(self, when: int) -> None:
        """A deadline, unless an earlier or a later one took its place."""
        if when and when == self.wake_at:
            self.wake_at = 0
            self.turn(ev.Tick())

    # --- nodes ---------------------------------------------------------------------------------------------------

    def obey(self, effect: fx.Effect) -> None:
        """Do as an executor manager and its instances would."""
        if isinstance(effect, fx.StartExecutor):
            self.queues[effect.channel] = deque()
            self.later(START_MS, lambda: self.bound(effect.channel))
        elif isinstance(effect, fx.Dispatch):
            held = self.queues.get(effect.channel)
            if held is not None:
                for part in effect.parts:
                    held.extend((part.first_task_id + i, part.attempt) for i in range(part.stop - part.start))
                self.run(effect.channel)
        elif isinstance(effect, fx.RetractTasks):
            held = self.queues.get(effect.channel, deque())
            back = [held.pop()[0] for _ in range(len(held) - max(1, effect.keep))]
            self.later(1, lambda: self.turn(ev.Retracted(effect.channel, back)))
        elif isinstance(effect, fx.StopExecutor):
            self.stopping.add(effect.channel)
            self.busy.pop(effect.channel, None)
            self.later(STOP_MS, lambda: self.released(effect.channel))

    def bound(self, channel: int) -> None:
        """Its instance is in the session."""
        if channel in self.queues and channel not in self.stopping:
            self.turn(ev.ExecutorReported(channel, ExecutorState.BOUND))

    def released(self, channel: int) -> None:
        """Nothing of the executor runs any more."""
        if self.queues.pop(channel, None) is not None:
            self.stopping.discard(channel)
            self.turn(ev.ExecutorReported(channel, ExecutorState.RELEASED))

    def run(self, channel: int) -> None:
        """Begin with the next task that the executor holds, unless one runs."""
        held = self.queues[channel]
        if held and channel not in self.busy and channel not in self.stopping:
            run = self.busy[channel] = next(self.numbers)
            length = self.random.randint(*self.lengths[self.engine.executors[channel].session.id])
            self.later(length, lambda: self.ended(channel, run, length))

    def ended(self, channel: int, run: int, length: int) -> None:
        """Its task is done, unless the executor was stopped meanwhile."""
        if self.busy.get(channel) != run:
            return
        del self.busy[channel]
        held = self.queues[channel]
        task, attempt = held.popleft()
        self.turn(ev.Completed(channel, [task], b"", attempts=[attempt], busy_us=length * 1000))
        if channel in self.queues:
            self.run(channel)

    # --- clients -------------------------------------------------------------------------------------------------

    def open_session(self, tenant: str, most: int | None) -> None:
        """A session with more tasks than it will ever run, short ones or long ones."""
        name = f"{tenant}-{next(self.numbers)}"
        self.lengths[name] = self.random.choice((SHORT_MS, LONG_MS))
        self.open[tenant].append(name)
        spec = SessionSpec("app", tenant=tenant, max_instances=most)
        self.turn(
            ev.CreateSession(2, name, spec),
            ev.Attached(3, name, "client"),
            ev.Submitted(4, name, "client", 1, ENDLESS, b""),
        )

    def close_session(self, tenant: str) -> None:
        """The one that is open longest ends, whatever it still has to do."""
        name = self.open[tenant].pop(0)
        self.turn(ev.CloseSession(5, name, force=True))

    def begin(self, phase: Phase) -> None:
        """Open and close sessions until the tenants want what the phase says."""
        for tenant in WEIGHTS:
            wanted = phase.sessions.get(tenant, 3) if tenant in phase.demand else 0
            most = phase.demand.get(tenant)
            if most is not None:  # what is open may want any number
                while self.open[tenant]:
                    self.close_session(tenant)
            while len(self.open[tenant]) > wanted:
                self.close_session(tenant)
            while len(self.open[tenant]) < wanted:
                self.open_session(tenant, None if most is None else most // wanted)
        if phase.churn_ms:
            self.churn(phase, self.now + phase.length_ms)

    def churn(self, phase: Phase, until: int) -> None:
        """Now and then a session ends and another begins."""

        def change() -> None:
            if self.now < until:
                tenant = self.random.choice([name for name in WEIGHTS if self.open[name]])
                self.close_session(tenant)
                self.open_session(tenant, None)
                self.churn(phase, until)

        self.later(self.random.randint(phase.churn_ms // 2, phase.churn_ms * 3 // 2), change)


def replay(seed: int = 1, phases: tuple[Phase, ...] = PHASES) -> list[tuple[Phase, list[Sample]]]:
    """All phases one after the other, sampled ten times a second."""
    world = Replay(seed)
    found: list[tuple[Phase, list[Sample]]] = []
    for phase in phases:
        begun = world.now
        world.begin(phase)
        ideal = deserved(phase.demand)
        samples: list[Sample] = []
        for when in range(begun + SAMPLE_MS, begun + phase.length_ms + 1, SAMPLE_MS):
            world.until(when)
            groups = world.engine.scheduler.tree.groups
            samples.append(Sample(when - world.began, {name: groups[name].used.cpu for name in WEIGHTS}, ideal))
        found.append((phase, samples))
    return found


def deserved(demand: dict[str, int | None]) -> dict[str, float]:
    """Executors of each tenant by its weight; what one can't use the others get."""
    share = dict.fromkeys(WEIGHTS, 0.0)
    open_ones = dict(demand)
    left = float(EXECUTORS)
    while open_ones:
        weight = sum(WEIGHTS[name] for name in open_ones)
        sated = [n for n, most in open_ones.items() if most is not None and most <= left * WEIGHTS[n] / weight]
        if not sated:
            return share | {name: left * WEIGHTS[name] / weight for name in open_ones}
        for name in sated:
            most = open_ones.pop(name)
            assert most is not None
            share[name] = float(most)
            left -= most
    return share


def as_figures(played: list[tuple[Phase, list[Sample]]]) -> dict[str, Any]:
    """What the report and the plot need."""
    phases: list[dict[str, Any]] = []
    begun = 0
    for phase, samples in played:
        late = [sample.error for sample in samples if sample.at_ms > begun + SETTLED_MS]
        last = max((sample.at_ms - begun for sample in samples if sample.error > 1), default=0)
        phases.append(
            {
                "title": phase.title,
                "begun_ms": begun,
                "worst": max(late),
                "mean": sum(late) / len(late),
                "settled_ms": last,
            }
        )
        begun += phase.length_ms
    samples = [msgspec.to_builtins(sample) | {"error": sample.error} for _, part in played for sample in part]
    return {"executors": EXECUTORS, "weights": WEIGHTS, "phases": phases, "samples": samples}

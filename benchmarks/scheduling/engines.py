"""A full cluster in the real engine, with executors that do what they are told at once."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import count

from benchmarks.scheduling.clusters import NODE, START_MS, WEIGHTS, ZONES, Size
from benchmarks.scheduling.stopwatch import Stopwatch
from flame.engine import Engine, EngineSettings
from flame.engine import effects as fx
from flame.engine import events as ev
from flame.engine.executors import Executor
from flame.model.specs import ApplicationSpec
from flame.model.states import ExecutorState
from flame.model.tenants import TenantSpec

TASKS = 1_000  # of each session: more than it can run
BUSY_US = 1_000_000
SOON_MS = 200  # further passes of the scheduler come that early; other deadlines later


class EngineCluster:
    """An engine in which every session has tasks and every executor that fits runs one."""

    def __init__(self, size: Size) -> None:
        ids = count(1)
        self.size = size
        self.engine = Engine(EngineSettings(), lambda: f"x{next(ids)}")
        self.random = random.Random(1)
        self.now = START_MS
        self.opened = 0
        self.joined = 0
        self.engine.recovered(self.now)
        self.turn(ev.RegisterApplication(1, "app", ApplicationSpec(command="run")))
        for number in range(size.tenants):
            weight = WEIGHTS[number % len(WEIGHTS)]
            self.turn(ev.SetTenant(0, f"t{number}", TenantSpec(weight=weight)))
        self.turn(*(self.node() for _ in range(size.nodes)))
        self.turn(*(event for _ in range(size.sessions) for event in self.session()))
        self.settle(patient=True)

    # --- events --------------------------------------------------------------------------------------------------

    def node(self) -> ev.NodeJoined:
        """Another node joins."""
        self.joined += 1
        name = f"n{self.joined:05}"
        return ev.NodeJoined(name, "boot", name, NODE, labels={"zone": f"z{self.joined % ZONES}"})

    def session(self) -> Sequence[ev.Event]:
        """Another session opens and gets tasks."""
        self.opened += 1
        name = f"s{self.opened:06}"
        return (
            ev.CreateSession(2, name, self.size.spec(self.opened)),
            ev.Attached(3, name, "client"),
            ev.Submitted(4, name, "client", 1, TASKS, b""),
        )

    def turn(self, *events: ev.Event) -> None:
        """One turn. What it asks for is done by `settle`."""
        self.now += 1
        self.engine.turn(self.now, events)

    def settle(self, *, patient: bool = False) -> None:
        """Executors that were started are bound, those told to stop or leave are gone, until nothing happens more;
        `patient`: and no further pass is due soon."""
        for _ in range(10_000):
            self.now += 1
            reports = [report for x in self.engine.executors.values() if (report := _next_report(x)) is not None]
            turn = self.engine.turn(self.now, reports)
            moves = any(isinstance(effect, fx.StartExecutor | fx.StopExecutor) for effect in turn.now)
            if not reports and not moves and not self.engine.scheduler.dirty:
                if not (patient and turn.wake_at <= self.now + SOON_MS):
                    return
                self.now = turn.wake_at - 1
        raise AssertionError("the turns do not come to an end")

    # --- happenings ----------------------------------------------------------------------------------------------

    def happenings(self) -> dict[str, Callable[[Stopwatch], None]]:
        """What is timed, by its name."""
        return {
            "executor ends": self.executor_ends,
            "task ends, another follows": self.task_ends,
            "session opens with tasks": self.session_opens,
            "node joins": self.node_joins,
        }

    def executor(self) -> Executor:
        """Any executor that runs a task."""
        return self.random.choice([x for x in self.engine.executors.values() if x.bound and x.outstanding])

    def executor_ends(self, timed: Stopwatch) -> None:
        """An instance is gone, its task goes back, another one starts in its room."""
        gone = ev.ExecutorReported(self.executor().channel, ExecutorState.RELEASED)
        with timed:
            self.turn(gone)
        self.settle()

    def task_ends(self, timed: Stopwatch) -> None:
        """The executor gets the next task; nothing changes for the scheduler."""
        executor = self.executor()
        done = ev.Completed(executor.channel, [next(iter(executor.outstanding))], b"", busy_us=BUSY_US)
        with timed:
            self.turn(done)
        self.settle()

    def session_opens(self, timed: Stopwatch) -> None:
        """A session is created, attached to and gets tasks in one turn; then it is closed."""
        events = self.session()
        with timed:
            self.turn(*events)
        self.settle()
        self.turn(ev.CloseSession(5, f"s{self.opened:06}", force=True), ev.DeleteSession(6, f"s{self.opened:06}"))
        self.settle()

    def node_joins(self, timed: Stopwatch) -> None:
        """An empty node joins and is filled; then it is lost."""
        event = self.node()
        with timed:
            self.turn(event)
        self.settle()
        self.turn(ev.NodeLeft(event.name))
        self.now += self.engine.settings.drain_ms
        self.settle()


def _next_report(executor: Executor) -> ev.ExecutorReported | None:
    if executor.state in (ExecutorState.UNBINDING, ExecutorState.RELEASING) or executor.draining:
        return ev.ExecutorReported(executor.channel, ExecutorState.RELEASED)
    if executor.state is not ExecutorState.BOUND:
        return ev.ExecutorReported(executor.channel, ExecutorState.BOUND)
    return None

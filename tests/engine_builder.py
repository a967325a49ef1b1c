"""Builders for tests of the engine: a test names only what matters to it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

from flame.engine import Engine, EngineSettings
from flame.engine import effects as fx
from flame.engine import events as ev
from flame.engine.validate import validate
from flame.model.resources import Resources
from flame.model.specs import NO_OPTIONS, ApplicationSpec, SessionSpec, TaskOptions
from flame.model.states import ExecutorState, TaskState

GIB = 1024**3


class Bench:
    """An engine with an application `app`, a clock, and short words for what happens to it."""

    def __init__(self, settings: EngineSettings | None = None, *, delay_release: int = 60) -> None:
        ids = count(1)
        self.engine = Engine(settings or EngineSettings(), lambda: f"x{next(ids)}")
        self.now = 1_000
        self.last = self.engine.recovered(self.now)
        self.log: list[fx.Record] = list(self.last.records)
        self.turn(ev.RegisterApplication(1, "app", ApplicationSpec(command="run", delay_release=delay_release)))

    def turn(self, *events: ev.Event, after_ms: int = 1) -> fx.Turn:
        self.now += after_ms
        self.last = self.engine.turn(self.now, events)
        self.log.extend(self.last.records)
        validate(self.engine)
        return self.last

    def node(
        self, name: str = "n1", cpu: int = 2, *, gpu: int = 0, held: Sequence[ev.Held] = (), boot: str = "b1"
    ) -> fx.Turn:
        return self.turn(ev.NodeJoined(name, boot, name, Resources(cpu, 64 * GIB, gpu), held=held))

    def session(self, name: str = "s", **spec: object) -> None:
        self.turn(ev.CreateSession(2, name, SessionSpec("app", **spec)), ev.Attached(3, name, "c"))  # type: ignore[arg-type]

    def submit(
        self, session: str = "s", tasks: int = 1, *, client: str = "c", first_seq: int | None = None,
        options: TaskOptions = NO_OPTIONS,
    ) -> fx.Turn:  # fmt: skip
        seq = self.engine.sessions[session].next_seq(client) if first_seq is None else first_seq
        return self.turn(ev.Submitted(4, session, client, seq, tasks, b"inputs", options))

    def bound(self, *channels: int, concurrency: int = 1) -> fx.Turn:
        return self.turn(
            *(ev.ExecutorReported(c, ExecutorState.BOUND, pid=7, concurrency=concurrency) for c in channels)
        )

    def released(self, channel: int, *, crashed: bool = False, code: int = 0, message: str = "") -> fx.Turn:
        report = ev.ExecutorReported(channel, ExecutorState.RELEASED, crashed=crashed, code=code, message=message)
        return self.turn(report)

    def complete(self, channel: int, *task_ids: int, busy_us: int = 1_000_000) -> fx.Turn:
        busy_us *= len(task_ids)
        return self.turn(
            ev.Completed(
                channel, list(task_ids), b"outputs", attempts=self._attempts(channel, task_ids), busy_us=busy_us
            )
        )

    def fail(self, channel: int, task_id: int, state: TaskState = TaskState.FAILED) -> fx.Turn:
        failures = [ev.Failed(0, state, -1, "it raised")]
        attempts = self._attempts(channel, [task_id])
        return self.turn(ev.Completed(channel, [task_id], b"outputs", failures, attempts, busy_us=1_000_000))

    def _attempts(self, channel: int, task_ids: Sequence[int]) -> list[int]:
        """Those that were sent to the executor."""
        executor = self.engine.executors.get(channel)
        return [(executor.outstanding.get(task_id) if executor else 0) or 1 for task_id in task_ids]

    def started(self, turn: fx.Turn | None = None) -> list[int]:
        """Channels of the executors that the turn (the last one) started."""
        return [effect.channel for effect in (turn or self.last).now if isinstance(effect, fx.StartExecutor)]

    def running(self, session: str = "s") -> dict[int, list[int]]:
        """What each executor of the session holds, without what was given up."""
        found = self.engine.sessions[session].executors
        return {channel: [t for t, attempt in x.outstanding.items() if attempt] for channel, x in found.items()}

    def of(self, kind: type[fx.Effect]) -> list[fx.Effect]:
        """Effects of one kind of the last turn, in order."""
        return [effect for effect in (*self.last.now, *self.last.after) if isinstance(effect, kind)]

    def replayed(self) -> Engine:
        """A new engine that has read this one's records."""
        twin = Engine(self.engine.settings, lambda: "y")
        for record in self.log:
            twin.replay(record)
        validate(twin)
        return twin

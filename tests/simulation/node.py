"""The executor manager of the simulation: its executors run tasks one after another; links, instances, all may fail."""

from __future__ import annotations

import json
from collections import deque

from flame.engine import events as ev
from flame.model.resources import Resources
from flame.model.specs import Gang
from flame.model.states import ExecutorState, TaskState
from simulation.manager import Manager
from simulation.world import Wire, World


class SimExecutor:
    def __init__(
        self, executor_id: str, channel: int, session_id: str, resreq: Resources, gang: Gang | None = None
    ) -> None:
        self.id = executor_id
        self.channel = channel
        self.session_id = session_id
        self.resreq = resreq
        self.gang = gang
        self.state = ExecutorState.BINDING
        self.queue: deque[tuple[int, object, int]] = deque()
        self.current: tuple[int, object, int] | None = None
        self.finished: list[tuple[int, object, int, bool]] = []  # results not sent yet
        self.stopping = False
        self.serial = 0


class Node:
    """Keeps executors while its link is down; what it could not say is said after the next hello."""

    def __init__(self, world: World, manager: Manager, name: str, capacity: Resources) -> None:
        self.world = world
        self.manager = manager
        self.name = name
        self.capacity = capacity
        self.executors: dict[int, SimExecutor] = {}
        self.outbox: list[ev.Event] = []
        self.up: Wire | None = None
        self.down: Wire | None = None
        self.boot = 0
        self.alive = False
        world.nodes.append(self)

    # --- link ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self.boot += 1
        self.alive = True
        self.connect(self.boot)

    @property
    def linked(self) -> bool:
        return self.up is not None and self.down is not None and self.up.open and self.down.open

    def connect(self, boot: int) -> None:
        if not self.alive or boot != self.boot or self.linked:
            return
        if not self.manager.alive:
            self.world.later(5, 40, lambda: self.connect(boot))
            return
        manager = self.manager
        self.down = Wire(self.world, self._receive)
        self.up = Wire(self.world, manager.receiver(manager.nodes, self.name, self.down))
        held = []
        for executor in self.executors.values():
            done = [(task_id, attempt) for task_id, _, attempt, _ in executor.finished]
            tasks = [*done, *((task[0], task[2]) for task in self._unfinished(executor))]
            buffered = [e for e in self.outbox if isinstance(e, ev.Completed) and e.channel == executor.channel]
            for event in buffered:
                tasks.extend(zip(event.task_ids, event.attempts, strict=True))
            held.append(
                ev.Held(
                    executor.id,
                    executor.channel,
                    executor.session_id,
                    executor.resreq,
                    executor.state,
                    1,
                    [task[0] for task in tasks],
                    [task[1] for task in tasks],
                    gang=executor.gang,
                )
            )
        self.up.send(ev.NodeJoined(self.name, f"boot-{self.boot}", self.name, self.capacity, held=held))
        outbox, self.outbox = self.outbox, []
        for event in outbox:
            self.up.send(event)

    @staticmethod
    def _unfinished(executor: SimExecutor) -> list[tuple[int, object, int]]:
        return ([executor.current] if executor.current is not None else []) + list(executor.queue)

    def cut(self) -> None:
        """The network breaks; both sides notice some time later."""
        if not self.linked:
            return
        assert self.up is not None
        assert self.down is not None
        self.up.cut()
        self.down.cut()
        down, life, boot = self.down, self.manager.life, self.boot

        def noticed() -> None:
            if self.manager.life == life and self.manager.nodes.get(self.name) is down:
                del self.manager.nodes[self.name]
                self.manager.push(ev.NodeLeft(self.name, "cut"))

        self.world.later(0, 60, noticed)
        self.world.later(0, 200, lambda: self.connect(boot))

    def die(self) -> None:
        """SIGKILL of the executor manager: its watchdog takes all instances with it."""
        self.cut()
        self.alive = False
        self.executors.clear()
        self.outbox.clear()

    def _say(self, event: ev.Event) -> None:
        if self.linked:
            assert self.up is not None
            self.up.send(event)
        else:
            self.outbox.append(event)

    # --- what the manager asks -----------------------------------------------------------------------------------

    def _receive(self, message: object) -> None:
        if not self.alive:
            return
        what, channel, *rest = message  # type: ignore[misc]
        if what == "start":
            self._begin(channel, *rest)
            return
        executor = self.executors.get(channel)
        if executor is None:
            return
        if what == "tasks":
            executor.queue.extend(tuple(task) for task in rest[0])
            self._work(executor)
        elif what == "stop":
            self._stop(executor, rest[0])
        elif what == "retract":
            keep = max(0, rest[0] - (executor.current is not None))
            back = [executor.queue.pop() for _ in range(max(0, len(executor.queue) - keep))]
            self._say(ev.Retracted(channel, [task[0] for task in back]))
        elif what == "cancel":
            self._cancel(executor, set(rest[0]))

    def _begin(self, channel: int, executor_id: str, session_id: str, resreq: Resources, gang: Gang | None) -> None:
        executor = SimExecutor(executor_id, channel, session_id, resreq, gang)
        self.executors[channel] = executor
        used = sum(other.resreq.cpu for other in self.executors.values())
        assert used <= self.capacity.cpu, f"{self.name} runs {used} of {self.capacity.cpu} cpus"
        self._say(ev.ExecutorReported(channel, ExecutorState.BINDING, pid=1))

        def ready() -> None:
            if self.executors.get(channel) is not executor:
                return
            if self.world.chance(0.05):
                del self.executors[channel]
                self._say(ev.ExecutorReported(channel, ExecutorState.RELEASED, code=12, message="enter failed"))
            elif not executor.stopping:
                executor.state = ExecutorState.BOUND
                self._say(ev.ExecutorReported(channel, ExecutorState.BOUND, concurrency=1))

        self.world.later(1, 30, ready)

    def _stop(self, executor: SimExecutor, grace: int) -> None:
        executor.stopping = True

        def gone() -> None:
            if self.executors.pop(executor.channel, None) is executor:
                self._flush(executor)
                self._say(ev.ExecutorReported(executor.channel, ExecutorState.RELEASED, message="stopped"))

        self.world.later(0, 1 + grace, gone)

    def _cancel(self, executor: SimExecutor, ids: set[int]) -> None:
        for task in [task for task in executor.queue if task[0] in ids]:
            executor.queue.remove(task)
            executor.finished.append((task[0], "CANCELLED", task[2], False))
        if executor.current is not None and executor.current[0] in ids:
            executor.finished.append((executor.current[0], "CANCELLED", executor.current[2], False))
            executor.current = None
            executor.serial += 1
        self._flush(executor)
        self._work(executor)

    # --- running -------------------------------------------------------------------------------------------------

    def _work(self, executor: SimExecutor) -> None:
        if executor.current is not None or not executor.queue or self.executors.get(executor.channel) is not executor:
            return
        executor.current = executor.queue.popleft()
        executor.serial += 1
        self._check_key(executor)
        serial = executor.serial
        slow = self.world.chance(0.02)
        self.world.later(0, 300 if slow else 3, lambda: self._worked(executor, serial))

    def _check_key(self, executor: SimExecutor) -> None:
        """Whatever the session manager believes: no more tasks of a key work than may, and single ones in order."""
        assert executor.current is not None
        task_id, given, _ = executor.current
        assert isinstance(given, list)
        _, _, key, priority = given
        if not key:
            return
        most = self.world.per_key[executor.session_id]
        everybody = [x for node in self.world.nodes for x in node.executors.values()]
        at_it = [
            x.id for x in everybody if x.session_id == executor.session_id and x.current and x.current[1][2] == key
        ]
        assert len(at_it) <= most, f"{len(at_it)} tasks of key {key} work, {most} may: {at_it}"
        began = self.world.began.setdefault((self.manager.life, executor.session_id, key, priority), set())
        assert most > 1 or task_id in began or task_id > max(began, default=0), f"{task_id} of key {key} after {began}"
        began.add(task_id)

    def _worked(self, executor: SimExecutor, serial: int) -> None:
        if (
            self.executors.get(executor.channel) is not executor
            or executor.serial != serial
            or executor.current is None
        ):
            return
        task_id, given, attempt = executor.current
        assert isinstance(given, list)
        poison = given[1] == "poison"
        if poison or self.world.chance(0.003):
            del self.executors[executor.channel]
            if self.world.chance(0.5):
                self._flush(executor)
            message = ev.ExecutorReported(executor.channel, ExecutorState.RELEASED, message="exit 139", crashed=True)
            self._say(message)
            return
        executor.current = None
        failed = given[1] == "raise" or self.world.chance(0.02)
        executor.finished.append((task_id, given, attempt, not failed))
        if len(executor.finished) >= 8 or not executor.queue or self.world.random.random() < 0.2:
            self._flush(executor)
        self._work(executor)

    def _flush(self, executor: SimExecutor) -> None:
        finished, executor.finished = executor.finished, []
        if not finished:
            return
        failures = []
        for index, (_, given, _, good) in enumerate(finished):
            if not good:
                state = TaskState.CANCELLED if given == "CANCELLED" else TaskState.FAILED
                failures.append(ev.Failed(index, state, -1, "failed"))
        body = json.dumps({task_id: given if good else "failed" for task_id, given, _, good in finished}).encode()
        event = ev.Completed(
            executor.channel, [item[0] for item in finished], body, failures, [item[2] for item in finished],
            busy_us=500 * len(finished),
        )  # fmt: skip
        self._say(event)
        if self.world.chance(0.01):  # told twice
            self._say(event)

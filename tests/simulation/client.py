"""A client of the simulation: submits numbered batches, sends again what was not accepted, expects each result."""

from __future__ import annotations

import json

from flame.engine import effects as fx
from flame.engine import events as ev
from flame.model.specs import SessionSpec, TaskOptions
from simulation.manager import Manager
from simulation.world import Wire, World


class Client:
    """One session, submitted to in `batches`; knows for each sequence number what must come back."""

    def __init__(self, world: World, manager: Manager, name: str, session_id: str, spec: SessionSpec) -> None:
        self.world = world
        self.manager = manager
        self.name = name
        self.session_id = session_id
        self.spec = spec
        self.batches: list[tuple[int, list[list[object]], TaskOptions]] = []
        self.next_seq = 1
        self.accepted_upto = 1  # next sequence number whose acceptance is open
        self.task_seq: dict[int, int] = {}
        self.results: dict[int, object] = {}  # by sequence number
        self.inputs: dict[int, list[object]] = {}
        self.with_deadline: set[int] = set()
        self.again_due = False
        self.up: Wire | None = None
        self.down: Wire | None = None

    # --- link ----------------------------------------------------------------------------------------------------

    @property
    def linked(self) -> bool:
        return self.up is not None and self.down is not None and self.up.open and self.down.open

    def connect(self) -> None:
        if self.linked:
            return
        if not self.manager.alive:
            self.world.later(5, 40, self.connect)
            return
        manager = self.manager
        self.down = Wire(self.world, self._receive)
        self.up = Wire(self.world, manager.receiver(manager.clients, self.name, self.down))
        self._attach()

    def _attach(self) -> None:
        if not self.linked:
            return
        assert self.up is not None
        manager = self.manager
        self.up.send(ev.OpenSession(0, self.session_id, self.spec))
        unresolved = [(task_id, task_id) for task_id, seq in self.task_seq.items() if seq not in self.results]
        attach = ev.Attached(manager.ticket(self.name), self.session_id, self.name, self.accepted_upto, unresolved)
        self.up.send(attach)
        for first, inputs, options in self.batches:
            if first >= self.accepted_upto:
                self._send(first, inputs, options)

    def cut(self) -> None:
        if not self.linked:
            return
        assert self.up is not None
        assert self.down is not None
        self.up.cut()
        self.down.cut()
        down, life = self.down, self.manager.life

        def noticed() -> None:
            if self.manager.life == life and self.manager.clients.get(self.name) is down:
                self.manager.push(ev.Detached(self.session_id, self.name))
                del self.manager.clients[self.name]

        self.world.later(0, 20, noticed)
        self.world.later(21, 100, self.connect)

    def submit(self, kinds: list[str], options: TaskOptions) -> None:
        inputs: list[list[object]] = [
            [self.next_seq + index, kind, options.key, options.priority] for index, kind in enumerate(kinds)
        ]
        first = self.next_seq
        for index, given in enumerate(inputs):
            self.inputs[first + index] = given
            if options.deadline_ms:
                self.with_deadline.add(first + index)
        self.next_seq += len(inputs)
        self.batches.append((first, inputs, options))
        self._send(first, inputs, options)

    def _send(self, first: int, inputs: list[list[object]], options: TaskOptions) -> None:
        if not self.linked:
            return
        assert self.up is not None
        body = json.dumps(inputs).encode()
        ticket = self.manager.ticket(self.name)
        event = ev.Submitted(ticket, self.session_id, self.name, first, len(inputs), body, options)
        self.up.send(event)
        if self.world.chance(0.05):
            again = self.manager.ticket(self.name)
            self.up.send(ev.Submitted(again, self.session_id, self.name, first, len(inputs), body, options))

    # --- answers -------------------------------------------------------------------------------------------------

    def _receive(self, message: object) -> None:
        what, *rest = message  # type: ignore[misc]
        if what == "accepted":
            self._accepted(rest[0])
        elif what == "reply":
            reply = rest[0]
            if reply.error is not None:  # the session could not be made durable yet
                self.world.later(20, 60, self._attach)
                return
            for item in reply.value:
                self._accepted(item)
        elif what == "results":
            for task_id, value in rest[1].items():
                self._result(task_id, value)

    def _accepted(self, effect: fx.Accepted) -> None:
        if effect.error is not None:  # read-only, at a quota, or a gap after a refusal: send again later
            if not self.again_due:
                self.again_due = True
                self.world.later(20, 60, self._again)
            return
        assert self.manager.disk.submitted[self.session_id] >= effect.first_task_id + effect.count - 1, "told too early"
        for index in range(effect.count):
            seq = effect.first_seq + index
            known = self.task_seq.setdefault(effect.first_task_id + index, seq)
            assert known == seq, f"task {effect.first_task_id + index} is {known} and {seq}"
        self.accepted_upto = max(self.accepted_upto, effect.first_seq + effect.count)

    def _again(self) -> None:
        self.again_due = False
        for first, inputs, options in self.batches:
            if first >= self.accepted_upto:
                self._send(first, inputs, options)

    def _result(self, task_id: int, value: object) -> None:
        seq = self.task_seq.get(task_id)
        assert seq is not None, f"result of task {task_id}, which was never accepted"
        before = self.results.setdefault(seq, value)
        assert before == value, f"task {task_id} had the result {before}, now {value}"
        kind = self.inputs[seq][1]
        if isinstance(value, list):
            assert value == self.inputs[seq], f"task {task_id}: result {value} of input {self.inputs[seq]}"
            assert kind == "good"
        else:
            assert isinstance(value, str)
            expected = {"poison": ("FAILED: the instance ended",), "raise": ("failed",)}.get(kind, ())
            chance = ["failed", "FAILED: the instance ended", "CANCELLED"]
            if self.spec.on_member_loss == "fail":
                chance.extend(("FAILED: member ", "FAILED: only "))
            if seq in self.with_deadline:
                chance.append("FAILED: the deadline of ")
            assert value.startswith((*expected, *chance)), f"task {task_id} of kind {kind}: {value}"

    def cancel_some(self) -> None:
        open_tasks = [task_id for task_id, seq in self.task_seq.items() if seq not in self.results]
        if open_tasks and self.up is not None:
            task_id = self.world.random.choice(open_tasks)
            self.up.send(ev.CancelTasks(0, self.session_id, [(task_id, task_id)]))

    @property
    def done(self) -> bool:
        return len(self.results) == self.next_seq - 1

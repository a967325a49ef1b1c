"""The session manager of the simulation: the shell's rules around the real engine, without sockets."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import count

from flame.engine import Engine, EngineSettings
from flame.engine import effects as fx
from flame.engine import events as ev
from flame.engine.lifecycles import TASK
from flame.engine.sessions import Session
from flame.engine.validate import over_committed, validate
from flame.model.resources import Resources
from flame.model.specs import ApplicationSpec
from simulation.world import Disk, Wire, World

SETTINGS = EngineSettings(
    drain_ms=3_000, retention_s=3_600, retry_limits=1_000_000, stop_grace_ms=50, preemption_grace_ms=100
)

REACHABLE = {(int(state), int(new)) for (state, _), new in TASK.items()}
for _ in range(2):
    REACHABLE |= {(a, d) for a, b in REACHABLE for c, d in REACHABLE if b == c}


class Manager:
    """Turns, commits and effects. `links` map a peer's name to the wire towards it."""

    def __init__(self, world: World, disk: Disk, settings: EngineSettings = SETTINGS) -> None:
        self.world = world
        self.disk = disk
        self.settings = settings
        self.alive = False
        self.life = 0
        self.turns = 0
        self.ids = count(1)
        self.tickets: dict[int, str] = {}
        self._ticket = count(1)

    # --- life ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self.life += 1
        self.alive = True
        self.engine = Engine(self.settings, lambda: f"executor-{next(self.ids)}")
        for record in self.disk.records:
            self.engine.replay(record)
        validate(self.engine)
        self.task_states: dict[str, bytes] = {}
        self.events: list[ev.Event] = []
        self.turn_due = False
        self.accepted: list[Wire] = []
        self.greeted: set[Wire] = set()  # links to clients whose attachment was answered
        self.nodes: dict[str, Wire] = {}
        self.clients: dict[str, Wire] = {}
        self.bodies: dict[int, bytes] = dict(self.disk.bodies)
        self.queue: list[tuple[list[fx.Record], list[fx.Effect]]] = []
        self.committing = False
        self._answer(self.engine.recovered(self.world.now))
        self.push(ev.RegisterApplication(0, "app", ApplicationSpec(command="x", delay_release=1), builtin=True))

    def kill(self) -> None:
        self.alive = False
        for wire in self.accepted:
            wire.cut()

    def receiver(self, links: dict[str, Wire], name: str, back: Wire) -> Callable[[object], None]:
        """Takes in what arrives on a link that was made in this life; later lives do not see it.

        The first message is the hello: from then on `back` is the way to this peer, an older link of it is cut.
        """
        life = self.life
        self.accepted.append(back)

        def receive(event: object) -> None:
            if life != self.life or not self.alive:
                return
            assert isinstance(event, ev.Event)
            if links.get(name) is not back:
                if not back.open:
                    return
                if name in links:
                    links[name].cut()
                links[name] = back
            self.push(event)

        return receive

    # --- turns ---------------------------------------------------------------------------------------------------

    def push(self, event: ev.Event) -> None:
        if not self.alive:
            return
        self.events.append(event)
        if not self.turn_due:
            self.turn_due = True
            life = self.life
            self.world.at(self.world.now, lambda: self._turn(life))

    def _turn(self, life: int) -> None:
        if not self.alive or life != self.life:
            return
        self.turn_due = False
        events, self.events = self.events, []
        turn = self.engine.turn(self.world.now, events)
        self.turns += 1
        validate(self.engine)
        self._check_task_steps()
        self._check_deadlines()
        assert not over_committed(self.engine), f"over-committed: {over_committed(self.engine)}"
        self._answer(turn)

    def _check_task_steps(self) -> None:
        """Each task moved along arrows of the task table, several perhaps in one turn; ended tasks stay as they are."""
        for session_id, session in self.engine.sessions.items():
            before = self.task_states.get(session_id, b"")
            for old, new in set(zip(before, session.states[: len(before)], strict=True)):
                assert old == new or (old, new) in REACHABLE, f"a task of {session_id} went from {old} to {new}"
            self.task_states[session_id] = bytes(session.states)

    def _check_deadlines(self) -> None:
        """Nothing is unfinished whose deadline is over."""
        for session in self.engine.sessions.values():
            for chunk in session.chunks:
                late = chunk.options.deadline_ms and chunk.created + chunk.options.deadline_ms <= self.world.now
                assert not late or not chunk.remaining, (
                    f"{chunk.remaining} tasks of {session.id} are over their deadline"
                )

    def _check_quotas(self, session: Session) -> None:
        """An executor of this session starts: no tenant above it has more than its quota."""
        for tenant in session.tenants:
            most = tenant.spec.quota.cpu
            used = sum((x.resreq for x in self.engine.executors.values() if tenant in x.session.tenants), Resources())
            assert most is None or used.cpu <= most, f"tenant {tenant.name} uses {used.cpu} of {most} cpus"

    def _answer(self, turn: fx.Turn) -> None:
        for record in turn.records:
            self.bodies[record.seq] = record.body
        for effect in turn.now:
            self._to_node(effect)
        if turn.records or turn.after:
            self.queue.append((turn.records, turn.after))
            self._commit_next()
        if turn.wake_at:
            life = self.life
            self.world.at(turn.wake_at, lambda: self.push(ev.Tick()) if life == self.life else None)

    # --- disk ----------------------------------------------------------------------------------------------------

    def _commit_next(self) -> None:
        if self.committing or not self.queue:
            return
        group, self.queue = self.queue, []
        self.committing = True
        life = self.life
        self.world.later(0, 4, lambda: self._committed(life, group, failed=False))

    def _committed(self, life: int, group: Sequence[tuple[list[fx.Record], list[fx.Effect]]], *, failed: bool) -> None:
        if not self.alive or life != self.life:
            return  # killed before the commit: these were never told to anybody
        if self.world.chance(0.01):
            if not failed:
                self.push(ev.JournalFailed("no space left on device"))
            self.world.later(5, 50, lambda: self._committed(life, group, failed=True))
            return
        self.disk.commit([record for records, _ in group for record in records])
        if failed:
            self.push(ev.JournalRecovered())
        self.committing = False
        if self.world.chance(0.003):  # killed after the commit, before anybody is told
            self.kill()
            return
        for _, after in group:
            for effect in after:
                self._say(effect)
        self._commit_next()

    # --- effects -------------------------------------------------------------------------------------------------

    def _to_node(self, effect: fx.Effect) -> None:
        wire = self.nodes.get(effect.node)  # type: ignore[attr-defined]
        if wire is None or not wire.open:
            return
        if isinstance(effect, fx.Dispatch):
            tasks = []
            for part in effect.parts:
                inputs = json.loads(self.bodies[part.seq])[part.start : part.stop]
                ids = range(part.first_task_id, part.first_task_id + len(inputs))
                tasks.extend((task_id, given, part.attempt) for task_id, given in zip(ids, inputs, strict=True))
            wire.send(("tasks", effect.channel, tasks))
        elif isinstance(effect, fx.StartExecutor):
            session = self.engine.sessions[effect.session_id]
            self._check_quotas(session)
            start = (effect.channel, effect.executor_id, effect.session_id, session.resreq, effect.gang)
            wire.send(("start", *start))
        elif isinstance(effect, fx.StopExecutor):
            wire.send(("stop", effect.channel, effect.grace_ms))
        elif isinstance(effect, fx.RetractTasks):
            wire.send(("retract", effect.channel, effect.keep))
        elif isinstance(effect, fx.InterruptTasks):
            wire.send(("cancel", effect.channel, list(effect.task_ids)))
        else:
            raise AssertionError(effect)

    def _say(self, effect: fx.Effect) -> None:
        if isinstance(effect, fx.Accepted):
            self._tell(effect.ticket, ("accepted", effect))
        elif isinstance(effect, fx.Reply):
            self._tell(effect.ticket, ("reply", effect))
        elif isinstance(effect, fx.Deliver):
            wire = self.clients.get(effect.client_id)
            if wire is None or wire not in self.greeted:  # what it misses is delivered after its Attached
                return
            results: dict[int, object] = {}
            if effect.seq:
                results = {int(key): value for key, value in json.loads(self.bodies[effect.seq]).items()}
                if effect.task_ids is not None:
                    results = {task_id: results[task_id] for task_id in effect.task_ids}
            results.update({item.task_id: f"{item.state.name}: {item.message}" for item in effect.finished})
            for task_id in results:
                assert (effect.session_id, task_id) in self.disk.ended, "a result was told before it was durable"
            wire.send(("results", effect.session_id, results))

    def _tell(self, ticket: int, message: tuple[str, object]) -> None:
        if ticket:
            client = self.tickets.pop(ticket, None)
            if client is not None and client in self.clients:
                self.clients[client].send(message)
                if message[0] == "reply":
                    self.greeted.add(self.clients[client])

    def ticket(self, client: str) -> int:
        number = next(self._ticket)
        self.tickets[number] = client
        return number

"""The engine: `turn(now, events)` changes the state and answers what is to be done. It never reads a clock, makes a
random id by itself, awaits, logs or touches a socket."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heappop, heappush

import msgspec

from flame.engine import (
    applications,
    gangs,
    idleness,
    limits,
    lives,
    nodes,
    placement,
    scheduling,
    settling,
    tasks,
    tenants,
    wants,
)
from flame.engine import events as ev
from flame.engine.applications import Application
from flame.engine.effects import Purge, Record, RecordKind, Turn
from flame.engine.executors import Executor, Node
from flame.engine.records import (
    ApplicationMeta,
    EventMeta,
    FinishedMeta,
    Generation,
    NameMeta,
    NodeMarkMeta,
    RetriedMeta,
    SessionMeta,
    SubmittedMeta,
    TenantMeta,
    TimeMeta,
)
from flame.engine.sessions import Session
from flame.engine.settling import Settling
from flame.engine.turn import Draft
from flame.model.errors import InternalError
from flame.model.resources import Resources
from flame.model.specs import UNIT, RecordedEvent
from flame.model.states import SessionState
from flame.scheduler.policies import BUILT_IN
from flame.scheduler.policy import Policy
from flame.scheduler.scheduler import Scheduler

CHANNEL_SPACE = 1 << 20  # executors of one generation before numbers of the next one are reached


class EngineSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine decides by. Times in milliseconds unless the name says seconds."""

    resreq: Resources = UNIT  # of a session that asks for nothing
    retry_limits: int = 5  # bind failures in a row before a session gets no more executors
    max_kills: int = 3  # instances that one task may take down
    drain_ms: int = 30_000  # how long a node may be away before its executors count as lost
    retention_s: int = 86_400  # how long a closed session stays readable
    max_sessions: int | None = None  # closed sessions beyond this many in all leave early, oldest first
    max_pending: int = 0  # pending tasks of one session, 0 = no limit
    stop_grace_ms: int = 5_000  # for an instance to leave its session
    policies: tuple[str, ...] = ("drf", "priority", "gang", "locality", "binpack")  # of the scheduler, in their order
    preemption_grace_ms: int = 30_000  # for running tasks on an executor that is taken back
    unsatisfiable_ms: int = 60_000  # after so long, tasks fail that no node could ever run
    gang_ports: tuple[int, int] = (29_500, 30_499)  # first and last port handed out to members of gangs
    doors: tuple[tuple[str, int], ...] = ()  # listeners that take whoever comes from this machine for an administrator


class Engine:
    """All sessions, tasks, executors and nodes of one cluster, and how they change."""

    def __init__(
        self, settings: EngineSettings, make_id: Callable[[], str], policies: Sequence[Policy] | None = None
    ) -> None:
        """`policies` None = the built-in ones that the settings name."""
        self.settings = settings
        self.scheduler = Scheduler([BUILT_IN[name]() for name in settings.policies] if policies is None else policies)
        self.now = 0  # of the turn under way
        self.make_id = make_id
        self.generation = 0
        self.births: dict[int, int] = {}  # by generation, the number of its first record
        self.seq = 0  # of the last record
        self.applications: dict[str, Application] = {}
        self.sessions: dict[str, Session] = {}
        self.nodes: dict[str, Node] = {}
        self.executors: dict[int, Executor] = {}  # by channel
        self.next_channel = 1
        self.next_gang_port = -1
        self.tenants = tenants.first_tenants()  # by name
        self.marks: dict[str, NodeMarkMeta] = {}  # cordoned and draining nodes, also those that are away
        self.read_only = ""  # why, while the journal can't be written
        self.read_only_since = 0
        self.settling = Settling()
        self.stale = 0  # answers for attempts that nobody waits for any more
        self.purged = [0, 0, 0]  # tasks of sessions purged since the start: succeeded, failed, cancelled
        self.hungry: dict[str, Session] = {}  # what they want has to be worked out again
        self._touched: dict[str, Session] = {}  # sessions whose executors may get tasks at the end of this turn
        self._alarms: list[tuple[int, str, str]] = []  # (time, kind, key)
        self._alarm_set: set[tuple[int, str, str]] = set()

    # --- turns -------------------------------------------------------------------------------------------------

    def turn(self, now: int, events: Sequence[ev.Event]) -> Turn:
        """Take in what happened by `now` (Unix ms). Never raises for bad input: a refusal is an effect."""
        draft = Draft(now, self.seq)
        self.now = now
        self._ring(draft)
        for event in events:
            _HANDLERS[type(event)](self, draft, event)
        for session in self._touched.values():
            tasks.feed(self, draft, session)
        self._touched.clear()
        if self.hungry or self.scheduler.dirty:
            scheduling.schedule(self, draft)
        self.seq = draft.seq
        return Turn(draft.records, draft.now, draft.after, self._alarms[0][0] if self._alarms else 0)

    def touch(self, session: Session) -> None:
        """The session's executors may get tasks at the end of this turn."""
        self._touched[session.id] = session

    def changed(self, session: Session) -> None:
        """How many executors the session wants or has may have changed."""
        self.hungry[session.id] = session

    def load(self, channel: int) -> int:
        """How many tasks the executor holds."""
        executor = self.executors.get(channel)
        return len(executor.outstanding) if executor is not None else 0

    def last_seq_of(self, channel: int) -> int:
        """The last record that could be durable when the executor of this channel was started."""
        made_in = self.generation - (self.generation - channel // CHANNEL_SPACE) % ((1 << 32) // CHANNEL_SPACE)
        return self.births.get(made_in + 1, 1 << 63) - 1

    def new_channel(self) -> int:
        """A number for a new executor."""
        held = self.scheduler.books.holdings
        while self.next_channel in held or self.next_channel == 0:
            self.next_channel = (self.next_channel + 1) % (1 << 32)
        channel = self.next_channel
        self.next_channel = (channel + 1) % (1 << 32)
        return channel

    def after_progress(self, draft: Draft, executor: Executor) -> None:
        """An executor has fewer tasks than before."""
        session = executor.session
        if session.pending:
            self._touched[session.id] = session
        if self.scheduler.lacks(session.id):
            self.hungry[session.id] = session
        if executor.outstanding:
            return
        if executor.draining:
            placement.stop(self, draft, executor, executor.leave_why)
        elif not session.pending and executor.bound:
            placement.rest(self, draft, executor)

    # --- alarms --------------------------------------------------------------------------------------------------

    def alarm(self, when: int, kind: str, key: str) -> None:
        """Look at (kind, key) again at `when`; the same alarm twice counts once."""
        entry = (when, kind, key)
        if entry not in self._alarm_set:
            self._alarm_set.add(entry)
            heappush(self._alarms, entry)

    def _ring(self, draft: Draft) -> None:
        while self._alarms and self._alarms[0][0] <= draft.now_ms:
            entry = heappop(self._alarms)
            self._alarm_set.discard(entry)
            _, kind, key = entry
            if kind == "rebalance":
                session = self.sessions.get(key)
                if session is not None:
                    tasks.rebalance(self, draft, session)
            elif kind == "idle":
                placement.on_idle_alarm(self, draft, int(key))
            elif kind == "grace":
                nodes.on_grace_over(self, draft, key)
            elif kind == "leave":
                placement.on_leave_alarm(self, draft, int(key))
            elif kind == "gang":
                gangs.on_gang_alarm(self, draft, key)
            elif kind == "hopeless":
                scheduling.on_hopeless_alarm(self, draft, key)
            elif kind == "pass":
                self.scheduler.dirty = True
            elif kind == "look":
                session = self.sessions.get(key)
                if session is not None:
                    wants.on_look_alarm(self, session)
            elif kind == "settled":
                settling.on_settled(self)
            elif kind == "absent":
                settling.on_absent_alarm(self, draft)
            elif kind == "backoff":
                session = self.sessions.get(key)
                if session is not None:
                    self.changed(session)
            elif kind in ("wake", "deadline", "keys"):
                limits.on_alarm(self, draft, kind, key)
            elif kind == "unused":
                idleness.on_alarm(self, draft, key)
            elif kind == "retention":
                lives.on_retention_over(self, draft, key)

    # --- restart -------------------------------------------------------------------------------------------------

    def replay(self, record: Record) -> None:
        """Take in one durable record at start; records come in order of seq, without bodies."""
        self.seq = max(self.seq, record.seq)
        kind = RecordKind(record.kind)
        decode = msgspec.msgpack.decode
        if kind is RecordKind.GENERATION:
            self.generation = decode(record.meta, type=Generation).generation
            self.births[self.generation] = record.seq
        elif kind is RecordKind.APPLICATION:
            made = decode(record.meta, type=ApplicationMeta)
            self.applications[made.name] = Application(made.name, made.spec, made.created, made.version)
        elif kind is RecordKind.APPLICATION_GONE:
            self.applications.pop(decode(record.meta, type=NameMeta).name, None)
        elif kind is RecordKind.SESSION:
            opened = decode(record.meta, type=SessionMeta)
            resreq = opened.spec.resreq or self.settings.resreq
            self.sessions[record.session] = Session(record.session, opened.spec, resreq, opened.created)
        elif kind is RecordKind.NODE:
            self.settling.known.add(decode(record.meta, type=NameMeta).name)
        elif kind is RecordKind.NODE_GONE:
            self.settling.known.discard(decode(record.meta, type=NameMeta).name)
        elif kind is RecordKind.NODE_MARK:
            nodes.apply_mark(self, decode(record.meta, type=NodeMarkMeta))
        elif kind is RecordKind.TENANT:
            tenants.apply(self, decode(record.meta, type=TenantMeta))
        elif kind is RecordKind.TENANT_GONE:
            tenants.forget(self, decode(record.meta, type=NameMeta).name)
        else:
            self._replay_in_session(record, kind)

    def _replay_in_session(self, record: Record, kind: RecordKind) -> None:
        session = self.sessions.get(record.session)
        if session is None:  # purged; its last records may still be on their way out of the journal
            return
        decode = msgspec.msgpack.decode
        if kind is RecordKind.SUBMITTED:
            tasks.apply_submitted(session, record.seq, decode(record.meta, type=SubmittedMeta))
        elif kind is RecordKind.FINISHED:
            tasks.apply_finished(session, record.seq, decode(record.meta, type=FinishedMeta))
        elif kind is RecordKind.RETRIED:
            tasks.apply_retried(session, decode(record.meta, type=RetriedMeta))
        elif kind is RecordKind.SESSION_CLOSED:
            session.state = SessionState.CLOSED
            session.completed = decode(record.meta, type=TimeMeta).time
        elif kind is RecordKind.SESSION_GONE:
            del self.sessions[record.session]
        elif kind is RecordKind.EVENT:
            meta = decode(record.meta, type=EventMeta)
            session.events.append(RecordedEvent(meta.code, meta.message, meta.time))
        else:
            raise InternalError(f"journal record {record.seq} has the unknown kind {record.kind}")

    def recovered(self, now: int) -> Turn:
        """All records are replayed: begin a new generation."""
        draft = Draft(now, self.seq)
        self.now = now
        self.generation += 1
        self.next_channel = self.generation * CHANNEL_SPACE % (1 << 32) + 1
        self.births[self.generation] = draft.record(RecordKind.GENERATION, "", Generation(self.generation))
        settling.begin(self)
        for session in self.sessions.values():
            if session.state is SessionState.CLOSED:
                lives.keep_until_retention(self, session)
            else:
                scheduling.opened(self, session)
                limits.recovered(self, session)
                idleness.arm(self, session)
        self.seq = draft.seq
        return Turn(draft.records, draft.now, draft.after, self._alarms[0][0] if self._alarms else 0)

    def purge(self, draft: Draft, session: Session) -> None:
        """Forget a closed session and everything in it."""
        for executor in list(session.executors.values()):
            placement.remove(self, draft, executor)
        del self.sessions[session.id]
        for index, count in enumerate((session.succeed, session.failed, session.cancelled)):
            self.purged[index] += count
        self.hungry.pop(session.id, None)
        self._touched.pop(session.id, None)
        last = draft.record(RecordKind.SESSION_GONE, session.id, NameMeta(session.id))
        draft.after.append(Purge(session.id, last))


def _on_journal_failed(engine: Engine, draft: Draft, event: ev.JournalFailed) -> None:
    engine.read_only_since = engine.read_only_since or draft.now_ms
    engine.read_only = event.reason


def _on_journal_recovered(engine: Engine, draft: Draft, event: ev.JournalRecovered) -> None:
    del draft, event
    engine.read_only = ""
    engine.read_only_since = 0


def _on_tick(engine: Engine, draft: Draft, event: ev.Tick) -> None:
    """Alarms rang already at the start of the turn."""
    del engine, draft, event


_HANDLERS: dict[type[ev.Event], Callable[..., None]] = {
    ev.Completed: tasks.on_completed,
    ev.Submitted: tasks.on_submitted,
    ev.Retracted: tasks.on_retracted,
    ev.CancelTasks: tasks.on_cancel,
    ev.RegisterApplication: applications.on_register,
    ev.UpdateApplication: applications.on_update,
    ev.UnregisterApplication: applications.on_unregister,
    ev.CreateSession: lives.on_create,
    ev.OpenSession: lives.on_open,
    ev.CloseSession: lives.on_close,
    ev.DeleteSession: lives.on_delete,
    ev.Attached: lives.on_attached,
    ev.Detached: lives.on_detached,
    ev.Watch: lives.on_watch,
    ev.Unwatch: lives.on_unwatch,
    ev.NodeJoined: nodes.on_node_joined,
    ev.NodeHeartbeat: nodes.on_node_heartbeat,
    ev.NodeLeft: nodes.on_node_left,
    ev.MarkNode: nodes.on_mark_node,
    ev.SetTenant: tenants.on_set,
    ev.DeleteTenant: tenants.on_delete,
    ev.ExecutorReported: placement.on_executor_reported,
    ev.Tick: _on_tick,
    ev.JournalFailed: _on_journal_failed,
    ev.JournalRecovered: _on_journal_recovered,
}

__all__ = ["Engine", "EngineSettings"]

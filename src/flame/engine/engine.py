"""The engine: `turn(now, events)` changes the state and answers what is to be done. It never reads a clock, makes a
random id by itself, awaits, logs or touches a socket."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heappop

import msgspec

from flame.engine import (
    admission,
    applications,
    dispatch,
    gangs,
    idleness,
    listeners,
    lives,
    nodes,
    overdue,
    placement,
    reports,
    results,
    scheduling,
    settling,
    submissions,
    tasks,
    tenants,
    wants,
)
from flame.engine import events as ev
from flame.engine.cluster import CHANNEL_SPACE, Application, Cluster
from flame.engine.effects import Complain, Record, RecordKind, Turn
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
from flame.engine.settings import EngineSettings
from flame.engine.turn import Draft
from flame.model.errors import InternalError
from flame.model.specs import RecordedEvent
from flame.model.states import SessionState


class Engine(Cluster):
    """A cluster that takes turns, and is there again after a restart."""

    # --- turns -------------------------------------------------------------------------------------------------

    def turn(self, now: int, events: Sequence[ev.Event]) -> Turn:
        """Take in what happened by `now` (Unix ms). Never raises for bad input: a refusal is an effect."""
        draft = Draft(now, self.seq)
        self.now = now
        self._ring(draft)
        for event in events:
            _HANDLERS[type(event)](self, draft, event)
        for session in self.touched.values():
            dispatch.feed(self, draft, session)
        self.touched.clear()
        if self.hungry or self.scheduler.dirty:
            scheduling.schedule(self, draft)
        self.seq = draft.seq
        return Turn(draft.records, draft.now, draft.after, self.alarms[0][0] if self.alarms else 0)

    # --- alarms --------------------------------------------------------------------------------------------------

    def _ring(self, draft: Draft) -> None:
        while self.alarms and self.alarms[0][0] <= draft.now_ms:
            entry = heappop(self.alarms)
            self.alarm_set.discard(entry)
            _, kind, key = entry
            if kind == "rebalance":
                session = self.sessions.get(key)
                if session is not None:
                    dispatch.rebalance(self, draft, session)
            elif kind == "idle":
                dispatch.on_idle_alarm(self, draft, int(key))
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
                overdue.on_alarm(self, draft, kind, key)
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
                session.barred = admission.why_barred(self, session)
                if session.barred:
                    draft.now.append(Complain(f"session {session.id} gets no executors: {session.barred}"))
                scheduling.opened(self, session)
                overdue.recovered(self, session)
        self.seq = draft.seq
        return Turn(draft.records, draft.now, draft.after, self.alarms[0][0] if self.alarms else 0)


def _on_journal_failed(cluster: Cluster, draft: Draft, event: ev.JournalFailed) -> None:
    cluster.read_only_since = cluster.read_only_since or draft.now_ms
    cluster.read_only = event.reason


def _on_journal_recovered(cluster: Cluster, draft: Draft, event: ev.JournalRecovered) -> None:
    del draft, event
    cluster.read_only = ""
    cluster.read_only_since = 0


def _on_tick(cluster: Cluster, draft: Draft, event: ev.Tick) -> None:
    """Alarms rang already at the start of the turn."""
    del cluster, draft, event


_HANDLERS: dict[type[ev.Event], Callable[..., None]] = {
    ev.Completed: results.on_completed,
    ev.Submitted: submissions.on_submitted,
    ev.Retracted: dispatch.on_retracted,
    ev.CancelTasks: submissions.on_cancel,
    ev.RegisterApplication: applications.on_register,
    ev.UpdateApplication: applications.on_update,
    ev.UnregisterApplication: applications.on_unregister,
    ev.CreateSession: lives.on_create,
    ev.OpenSession: lives.on_open,
    ev.CloseSession: lives.on_close,
    ev.DeleteSession: lives.on_delete,
    ev.Attached: listeners.on_attached,
    ev.Detached: listeners.on_detached,
    ev.Watch: listeners.on_watch,
    ev.Unwatch: listeners.on_unwatch,
    ev.NodeJoined: nodes.on_node_joined,
    ev.NodeHeartbeat: nodes.on_node_heartbeat,
    ev.NodeLeft: nodes.on_node_left,
    ev.MarkNode: nodes.on_mark_node,
    ev.SetTenant: tenants.on_set,
    ev.DeleteTenant: tenants.on_delete,
    ev.ExecutorReported: reports.on_executor_reported,
    ev.Tick: _on_tick,
    ev.JournalFailed: _on_journal_failed,
    ev.JournalRecovered: _on_journal_recovered,
}

__all__ = ["Engine", "EngineSettings"]

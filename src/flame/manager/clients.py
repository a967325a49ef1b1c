"""Links of clients: sessions attached to channels, submissions in, acceptances and results out."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from functools import partial

from flame.engine import views
from flame.engine.effects import Accepted, Deliver, Reply, SessionChanged
from flame.engine.events import Attached, CancelTasks, Detached, Submitted
from flame.journal import JournalError
from flame.link import HIGH_WATER, Frame, Kind, Link, to_wire
from flame.manager import wire
from flame.manager.payloads import Bodies, Payloads
from flame.manager.turns import Turns
from flame.model.errors import FlameError, InternalError, ProtocolError, TooLargeError, UnavailableError
from flame.model.specs import NO_OPTIONS
from flame.proto import link_pb2, types_pb2, values
from flame.security import Identity, authorize

_log = logging.getLogger("flame.manager")

MAX_CLIENT_ID = 256
BACKLOG_BYTES = 64 * 1024 * 1024
OUTBOX_LENGTH = 1024
UNREAD_BYTES = 8 * 1024 * 1024  # of answers that a client leaves unread, after which nothing more is taken from it
FINISHES_PER_FRAME = 4096
_LOAD_AHEAD = 32


class _Client:
    """One connected client. `channels` and `sessions` are each other's inverse."""

    def __init__(self, link: Link, identity: Identity, key: str) -> None:
        self.link = link
        self.identity = identity
        self.key = key
        self.channels: dict[int, str] = {}
        self.sessions: dict[str, int] = {}
        self.ready: set[str] = set()  # sessions whose ATTACHED has left: results may follow
        self.outbox: deque[Deliver] = deque()  # results that wait for the client to read, or for the journal
        self.waiting = False  # for one of the two
        self.paused = False
        self.deaf = False  # it does not read what it is answered

    def leave(self, session_id: str) -> None:
        channel = self.sessions.pop(session_id, None)
        if channel is not None:
            del self.channels[channel]
        self.ready.discard(session_id)


class Clients:
    """All connected clients, by the id that the engine knows them by."""

    def __init__(self, turns: Turns, payloads: Payloads, *, max_payload: int) -> None:
        self._turns = turns
        self._payloads = payloads
        self._max_payload = max_payload
        self._clients: dict[str, _Client] = {}
        self._attached: dict[str, dict[str, _Client]] = {}  # session -> client key -> client
        self._paused: set[_Client] = set()
        turns.handle(Deliver, self._deliver)
        turns.handle(SessionChanged, self.notice)
        turns.on_settled = self._backlog_shrunk

    # --- coming and going ------------------------------------------------------------------------------------------

    @property
    def count(self) -> int:
        """How many are connected."""
        return len(self._clients)

    def accept(self, link: Link, identity: Identity) -> None:
        """A client is there (again). An older connection of the same client ends. Raises ProtocolError."""
        if not 0 < len(link.hello.id) <= MAX_CLIENT_ID:
            raise ProtocolError(f"a client's HELLO needs an id of at most {MAX_CLIENT_ID} characters")
        key = f"{identity.name}/{link.hello.id}"
        old = self._clients.get(key)
        if old is not None:
            self._remove(old)
            old.link.close(UnavailableError("a newer connection of this client took over"))
        client = self._clients[key] = _Client(link, identity, key)
        link.on_frames = partial(self._received, client)
        link.on_closed = partial(self._closed, client)

    def end_identity(self, name: str) -> None:
        """End the connections of an instance whose executor is gone."""
        for client in [client for client in self._clients.values() if client.identity.name == name]:
            client.link.close(UnavailableError("the executor of this instance is gone"))

    def _closed(self, client: _Client, link: Link, error: FlameError | None) -> None:
        del link, error
        if self._clients.get(client.key) is client:
            self._remove(client)

    def _remove(self, client: _Client) -> None:
        del self._clients[client.key]
        self._paused.discard(client)
        for deliver in client.outbox:
            self._payloads.release(deliver.seq)
        client.outbox.clear()
        for session_id in list(client.sessions):
            self._detach(client, session_id)

    def _detach(self, client: _Client, session_id: str) -> None:
        client.leave(session_id)
        followers = self._attached.get(session_id)
        if followers is not None:
            followers.pop(client.key, None)
            if not followers:
                del self._attached[session_id]
        self._turns.post(Detached(session_id, client.key))

    # --- from the client -------------------------------------------------------------------------------------------

    def _received(self, client: _Client, link: Link, frames: Sequence[Frame]) -> None:
        for frame in frames:
            kind = frame.kind
            if kind == Kind.SUBMIT:
                self._submit(client, frame)
            elif kind == Kind.ATTACH:
                self._attach(client, frame)
            elif kind == Kind.CANCEL:
                self._cancel(client, frame)
            elif kind == Kind.DETACH:
                session_id = client.channels.get(frame.channel)
                if session_id is not None:
                    self._detach(client, session_id)
            else:
                raise ProtocolError(f"a client sends no frames of kind {kind}")
        if self._turns.journal.backlog > BACKLOG_BYTES or len(client.outbox) > OUTBOX_LENGTH:
            self._pause(client)
        if link.buffered > UNREAD_BYTES and not client.deaf:
            client.deaf = True
            link.when_drained(partial(self._heard, client))
            self._pause(client)

    def _submit(self, client: _Client, frame: Frame) -> None:
        session_id = client.channels.get(frame.channel)
        if session_id is None:
            self._refuse(client, frame.channel, ProtocolError(f"no session is attached to channel {frame.channel}"))
            return
        submit = link_pb2.Submit.FromString(frame.body)
        count = len(submit.inputs)
        if not submit.first_seq:
            raise ProtocolError("sequence numbers of submissions begin with 1")
        check_absent(submit.absent, count)
        if len(frame.body) > self._max_payload:
            try:
                check_sizes(submit.inputs, self._max_payload)
            except TooLargeError as error:
                self._accepted(client, frame.channel, Accepted(0, submit.first_seq, count, 0, error))
                return
        options = values.options_of(submit.options) if submit.HasField("options") else NO_OPTIONS
        ticket = self._turns.ticket(partial(self._accepted, client, frame.channel))
        self._turns.post(Submitted(ticket, session_id, client.key, submit.first_seq, count, frame.body, options))

    def _accepted(self, client: _Client, channel: int, effect: Accepted) -> None:
        if channel in client.channels:
            client.link.send(Kind.ACCEPTED, channel, _accepted_message(effect).SerializeToString())

    def _attach(self, client: _Client, frame: Frame) -> None:
        attach = link_pb2.Attach.FromString(frame.body)
        session_id, channel = attach.session_id, frame.channel
        try:
            authorize(client.identity, "Attach", session_id)
            if client.channels.get(channel, session_id) != session_id:
                raise ProtocolError(f"channel {channel} belongs to session {client.channels[channel]!r}")
            if client.sessions.get(session_id, channel) != channel:
                raise ProtocolError(f"session {session_id!r} is attached to channel {client.sessions[session_id]}")
        except FlameError as error:
            self._refuse(client, channel, error)
            return
        client.channels[channel] = session_id
        client.sessions[session_id] = channel
        self._attached.setdefault(session_id, {})[client.key] = client
        ticket = self._turns.ticket(partial(self._attached_to, client, channel, session_id))
        unresolved = wire.ranges_of(attach.unresolved)
        self._turns.post(Attached(ticket, session_id, client.key, max(1, attach.next_seq), unresolved))

    def _attached_to(self, client: _Client, channel: int, session_id: str, reply: Reply) -> None:
        if client.channels.get(channel) != session_id or client.link.closed:
            return
        if reply.error is not None:
            self._detach(client, session_id)
            self._refuse(client, channel, reply.error)
            return
        state = views.session(self._turns.engine, session_id).state
        message = link_pb2.Attached(
            session_id=session_id,
            accepted=[_accepted_message(known) for known in reply.value],
            state=types_pb2.SessionState.Name(state),
        )
        client.link.send(Kind.ATTACHED, channel, message.SerializeToString())
        client.ready.add(session_id)

    def _cancel(self, client: _Client, frame: Frame) -> None:
        session_id = client.channels.get(frame.channel)
        if session_id is None:
            self._refuse(client, frame.channel, ProtocolError(f"no session is attached to channel {frame.channel}"))
            return
        cancel = link_pb2.Cancel.FromString(frame.body)
        # What became of it shows in the results; whoever wants an answer calls CancelTask.
        event = CancelTasks(
            0, session_id, wire.ranges_of(cancel.task_ids), client.key, wire.ranges_of(cancel.seqs), cancel.reason
        )
        self._turns.post(event)

    def _refuse(self, client: _Client, channel: int, error: FlameError) -> None:
        client.link.send(Kind.ERROR, channel, to_wire(error).SerializeToString())

    # --- to the client -----------------------------------------------------------------------------------------------

    def notice(self, effect: SessionChanged) -> None:
        """Tell everybody who is attached."""
        followers = self._attached.get(effect.session_id)
        if not followers:
            return
        body = link_pb2.Notice(
            state=types_pb2.SessionState.Name(effect.state),
            events=wire.event_messages(effect.events),
            pending_reason=effect.pending_reason,
        ).SerializeToString()
        for client in followers.values():
            if effect.session_id in client.ready:
                client.link.send(Kind.NOTICE, client.sessions[effect.session_id], body)

    def _deliver(self, effect: Deliver) -> None:
        client = self._clients.get(effect.client_id)
        # Before ATTACHED has left, the engine's answer to it will name these results again.
        if client is None or effect.session_id not in client.ready or client.link.closed:
            return
        if not client.outbox and client.link.buffered <= HIGH_WATER and self._send(client, effect):
            return
        self._payloads.hold(effect.seq)
        client.outbox.append(effect)
        self._pump(client)

    def _pump(self, client: _Client) -> None:
        """Send what waits, as far as the client reads and the bodies are here."""
        if client.waiting or client.link.closed:
            return
        while client.outbox:
            if client.link.buffered > HIGH_WATER:
                client.waiting = True
                client.link.when_drained(partial(self._go_on, client))
                return
            if not self._send(client, client.outbox[0]):
                client.waiting = True
                ahead = [item.seq for item in list(client.outbox)[:_LOAD_AHEAD] if item.seq]
                self._payloads.load(ahead, partial(self._loaded, client, ahead))
                return
            self._payloads.release(client.outbox.popleft().seq)
        if client.paused:
            self._resume(client)

    def _go_on(self, client: _Client) -> None:
        client.waiting = False
        self._pump(client)

    def _loaded(self, client: _Client, asked: list[int], bodies: Bodies, error: JournalError | None) -> None:
        client.waiting = False
        while client.outbox and not client.link.closed and client.link.buffered <= HIGH_WATER:
            first = client.outbox[0]
            if first.seq in bodies or not first.seq:
                self._send(client, first, bodies.get(first.seq))
            elif first.seq not in asked:
                break
            elif error is not None and first.session_id in client.sessions:
                why = InternalError(f"results of session {first.session_id!r} can't be read: {error.message}")
                self._refuse(client, client.sessions[first.session_id], why)
                self._detach(client, first.session_id)
            # else: purged meanwhile, nobody can want it any more
            self._payloads.release(client.outbox.popleft().seq)
        self._pump(client)

    def _send(self, client: _Client, effect: Deliver, body: bytes | None = None) -> bool:
        """False when the body has to be loaded first."""
        channel = client.sessions.get(effect.session_id)
        if channel is None or effect.session_id not in client.ready:
            return True  # detached meanwhile
        if not effect.seq:
            for start in range(0, len(effect.finished), FINISHES_PER_FRAME):
                part = effect.finished[start : start + FINISHES_PER_FRAME]
                client.link.send(Kind.RESULTS, channel, wire.results_of_finishes(part).SerializeToString())
            return True
        if body is None:
            body = self._payloads.get(effect.seq)
            if body is None:
                return False
        if effect.task_ids is not None:
            results = self._payloads.parsed_results(effect.seq, body)
            assert results is not None
            body = wire.subset_of(results, effect.task_ids).SerializeToString()
        client.link.send(Kind.RESULTS, channel, body)
        return True

    # --- flow control ------------------------------------------------------------------------------------------------

    def _pause(self, client: _Client) -> None:
        client.paused = True
        self._paused.add(client)
        client.link.pause_reading()

    def _heard(self, client: _Client) -> None:
        client.deaf = False
        self._resume(client)

    def _backlog_shrunk(self) -> None:
        if self._paused and self._turns.journal.backlog < BACKLOG_BYTES // 2:
            for client in list(self._paused):
                self._resume(client)

    def _resume(self, client: _Client) -> None:
        if client.deaf:
            return
        if self._turns.journal.backlog < BACKLOG_BYTES and len(client.outbox) < OUTBOX_LENGTH // 2:
            client.paused = False
            self._paused.discard(client)
            client.link.resume_reading()


def _accepted_message(effect: Accepted) -> link_pb2.Accepted:
    return link_pb2.Accepted(
        first_seq=effect.first_seq,
        count=effect.count,
        first_task_id=effect.first_task_id,
        error=to_wire(effect.error) if effect.error is not None else None,
    )


def check_absent(absent: Sequence[int], count: int) -> None:
    """Raises ProtocolError when a column that is said to be absent does not exist."""
    if absent and max(absent) >= count:
        raise ProtocolError(f"column {max(absent)} of {count} is said to be absent")


def check_sizes(payloads: Sequence[bytes], limit: int) -> None:
    """Raises TooLargeError that names the limit."""
    for index, payload in enumerate(payloads):
        if len(payload) > limit:
            raise too_large("input", len(payload), limit, f" of column {index}" if len(payloads) > 1 else "")


def too_large(what: str, size: int, limit: int, which: str = "") -> TooLargeError:
    """The error for a payload over the limit."""
    return TooLargeError(
        f"the {what}{which} has {size} bytes, the limit is {limit}",
        remedy="raise cluster.limits.max_payload, or pass a reference instead of the data",
    )

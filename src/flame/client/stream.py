"""The tasks of one session on one connection: buffered, sent in batches, accepted, resolved, taken up again.

`submit` may be called by any thread and only appends to a buffer; everything else happens in the thread of the event
loop. What is ready leaves when the previous batch has left the loop: there is no timer.

Sequence numbers: the tasks of the stream are numbered from 1 in the order in which they are put into batches. A batch
is kept (outbox.py) until the cluster has accepted it and is sent again after a reconnection; the cluster recognises it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol

from flame.client.batches import Batch, Item, take_batch
from flame.client.chunks import BulkChunk, Chunk, Chunks, FutureChunk
from flame.client.freeing import free_after
from flame.client.futures import CancelledTaskError, TaskFuture, settle
from flame.client.gather import Gather
from flame.client.outbox import Outbox
from flame.client.outcomes import values_of
from flame.client.pending import Later, PendingWatch, Wait, timed_out
from flame.link.errors import from_wire
from flame.link.frames import Kind
from flame.model.errors import FlameError, ProtocolError, TimedOutError, TooLargeError, UnavailableError
from flame.model.states import EventCode, SessionState
from flame.objects import parcels
from flame.proto import link_pb2
from flame.proto import types_pb2 as ty

logger = logging.getLogger("flame.client")


class Link(Protocol):
    """What a stream needs of the connection."""

    def send(self, kind: int, channel: int, body: bytes = b"", flags: int = 0) -> None: ...
    def flush(self) -> None: ...
    def when_drained(self, callback: Callable[[], object]) -> None: ...
    @property
    def buffered(self) -> int: ...


class TaskStream:
    """See above. `wake` runs a callable soon in the thread of the loop; `max_payload` is in bytes, 0 = unknown."""

    def __init__(
        self,
        session_id: str,
        channel: int,
        wake: Callable[[Callable[[], None]], object],
        later: Later,
        *,
        fresh: bool = True,
        address: str = "",
    ) -> None:
        """`address` is that of the cluster. `later` calls back in the loop after so many seconds. `fresh`: this client
        never submitted to the session. Otherwise the cluster says where its numbers go on."""
        self.session_id = session_id
        self._address = address
        self.channel = channel
        self.thread_id = threading.get_ident()
        self.lock = threading.Lock()
        self.max_payload = 0
        self.parcel_from = 0
        self.error: FlameError | None = None  # set when no further task can be submitted
        # For sessions that are worth nothing any more when an instance is lost: the error of all that has not ended.
        self.on_lost: dict[object, Callable[[str], FlameError]] = {}
        self._idle_callbacks: list[Callable[[], object]] = []
        self._answered_callbacks: list[Callable[[], object]] = []
        self.watch: PendingWatch | None = None  # warns of tasks that wait for long
        self.news = 0  # results that came, by frames, other than of cancelled tasks
        self._known_wait: tuple[int, Wait] | None = None  # what the session waited for when `news` was that
        self._elsewhere = 0  # futures whose results come in another way
        self._wake = wake
        self._later = later
        self._pump_due = False
        self._buffer: deque[Item] = deque()
        self._link: Link | None = None
        self._attached = False
        self._fresh = fresh
        self._outbox = Outbox()
        self._held_timer: asyncio.TimerHandle | None = None
        self._chunks = Chunks(self.lock)
        self._unsent_cancels: list[TaskFuture] = []

    # --- any thread ------------------------------------------------------------------------------------------------

    def submit(self, payload: bytes | None, owner: TaskFuture | Gather, options: ty.TaskOptions | None) -> int:
        """Take one task; how many bytes of its input travel with it. Raises TooLargeError, or what ended the stream."""
        if self.error is not None:
            raise self.error
        if payload is not None and len(payload) > self.parcel_from > 0:
            payload = self._parcel(payload, owner)
        self._buffer.append((payload, owner, options))
        if not self._pump_due:
            self._pump_due = True
            self._wake(self.pump)
        return 0 if payload is None else len(payload)

    def _parcel(self, payload: bytes, owner: TaskFuture | Gather) -> bytes:
        """What stands for a payload that is too large. Raises TooLargeError without an object cache, FlameError."""
        if not parcels.possible(self._address):
            if len(payload) <= self.max_payload:
                return payload
            raise TooLargeError(
                f"the input has {len(payload)} bytes, the cluster takes {self.max_payload}",
                remedy=parcels.REMEDY,
            )
        parcel = parcels.pack(self.session_id, payload, self._address)
        if isinstance(owner, Gather):
            owner.store(parcel, len(payload))
        else:
            free_after(owner, parcel)
        return parcel

    def cancel(self, future: TaskFuture) -> None:
        """Ask for the end of one task."""
        self._wake(lambda: self._cancel(future))

    def abandon(self, gather: Gather) -> None:
        """Nobody wants the results of these tasks: cancel what has not ended."""
        gather.close()
        self._wake(self._cancel_all_unwanted)

    def timed_out(self, text: str) -> TimedOutError:
        """The error for who waited no longer; it tells what the session waits for if that is known."""
        known = self._known_wait
        return timed_out(text, known[1] if known is not None and known[0] == self.news else None)

    # --- sending ---------------------------------------------------------------------------------------------------

    def pump(self) -> None:
        """Send what is ready, one batch per turn of the loop."""
        self._pump_due = False
        if self.error is not None:
            self._fail_buffer(self.error)
            return
        if self._unsent_cancels:
            self._send_cancels()
        link, outbox = self._link, self._outbox
        if link is None or not self._attached or outbox.stuck or not self._buffer:
            return
        if outbox.full:
            return  # acceptances pump again
        if outbox.held.batches and isinstance(self._buffer[0][1], Gather):
            return  # those before it wait for room
        batch = take_batch(self._buffer, outbox.next_seq, outbox.held.limit, self.lock)
        if batch is not None:
            outbox.add(batch)
            link.send(Kind.SUBMIT, self.channel, batch.body)
            if self.watch is not None:
                self.watch.arm()
        if not self._buffer:
            link.flush()  # a lonely task does not wait for another turn of the loop
        elif not self._pump_due:
            self._pump_due = True
            link.when_drained(self.pump)

    # --- the connection's life -------------------------------------------------------------------------------------

    def connected(self, link: Link, max_payload: int) -> None:
        """There is a (new) connection: take up the session on it."""
        if self.error is not None:
            return
        self._link = link
        self.max_payload = max_payload
        self.parcel_from = parcels.limit_of(max_payload)
        self._outbox.renumber()
        attach = link_pb2.Attach(session_id=self.session_id, next_seq=self._outbox.first_seq)
        for chunk in self._chunks:
            attach.unresolved.extend(link_pb2.Range(first=first, last=last) for first, last in chunk.unresolved())
        link.send(Kind.ATTACH, self.channel, attach.SerializeToString())
        # The very first submission need not wait for ATTACHED; later it may tell of batches that arrived.
        self._attached = self._fresh and self._outbox.next_seq == 1
        self.pump()

    def disconnected(self) -> None:
        """The connection is gone; tasks wait for the next one."""
        self._link = None
        self._attached = False

    def fail(self, error: FlameError) -> None:
        """The stream is over: all tasks that have not ended get this error."""
        if self.error is None:
            self.error = error
        self._link = None
        self._fail_buffer(error)
        self.quiet()
        for batch in self._outbox.clear():
            self._fail_batch(batch, error)
        self._chunks.fail(error)
        self._tell_answered()
        self._tell_idle()

    def quiet(self) -> None:
        """No timer shall run any more: the stream is over, or nobody will use it again."""
        if self.watch is not None:
            self.watch.stop()
        if self._held_timer is not None:
            self._held_timer.cancel()
            self._held_timer = None

    def when_idle(self, callback: Callable[[], object]) -> None:
        """Call back once when every task has ended; at once when that is so already."""
        self._idle_callbacks.append(callback)
        self._tell_idle()

    def _tell_idle(self) -> None:
        if self._idle_callbacks and self.idle:
            callbacks, self._idle_callbacks = self._idle_callbacks, []
            for callback in callbacks:
                callback()

    def when_answered(self, callback: Callable[[], object]) -> None:
        """Call back once when the cluster has taken or refused every task; at once when that is so already. Tasks of
        `map` that wait for room do not count."""
        self._answered_callbacks.append(callback)
        self._tell_answered()

    def _tell_answered(self) -> None:
        if self._answered_callbacks and not self._buffer and self._outbox.answered and not self._outbox.stuck:
            callbacks, self._answered_callbacks = self._answered_callbacks, []
            for callback in callbacks:
                callback()

    @property
    def idle(self) -> bool:
        """Whether every task has ended."""
        return not (self._buffer or self._chunks or self._outbox)

    def _fail_buffer(self, error: FlameError) -> None:
        while self._buffer:
            _, owner, _ = self._buffer.popleft()
            if isinstance(owner, Gather):
                owner.fail(error)
            else:
                settle(self.lock, (owner,), (error,), plain=False)

    def _fail_batch(self, batch: Batch, error: FlameError) -> None:
        if isinstance(batch.owner, list):
            settle(self.lock, batch.owner, [error] * batch.count, plain=False)
        else:
            batch.owner[0].fail(error)

    # --- frames ----------------------------------------------------------------------------------------------------

    def received(self, kind: int, body: bytes) -> None:
        """A frame on the stream's channel. Raises ProtocolError when it makes no sense."""
        if kind == Kind.RESULTS:
            self._on_results(body)
        elif kind == Kind.ACCEPTED:
            self._on_accepted(link_pb2.Accepted.FromString(body))
            self.pump()
        elif kind == Kind.ATTACHED:
            self._on_attached(link_pb2.Attached.FromString(body))
        elif kind == Kind.NOTICE:
            self._on_notice(link_pb2.Notice.FromString(body))
        elif kind == Kind.ERROR:
            self.fail(from_wire(link_pb2.Error.FromString(body)))
        else:
            raise ProtocolError(f"a client has no use for frames of kind {kind}")
        self._tell_idle()

    def _on_attached(self, message: link_pb2.Attached) -> None:
        if not self._fresh:
            self._fresh = True
            self._outbox.next_seq = max((known.first_seq + known.count for known in message.accepted), default=1)
        for accepted in message.accepted:
            self._on_accepted(accepted)
        if not self._attached and self._link is not None:
            self._attached = True
            for batch in self._outbox.batches:
                self._link.send(Kind.SUBMIT, self.channel, batch.body)
            self._cancel_all_unwanted()
        if self._outbox.held.error is not None:
            self._send_held()
        self.pump()

    def _on_accepted(self, message: link_pb2.Accepted) -> None:
        outbox = self._outbox
        batch = outbox.take(message.first_seq)
        if batch is None:
            return  # answered before the connection broke, and once more after it
        error = from_wire(message.error) if message.HasField("error") else None
        if error is None:
            self._add_chunk(message.first_task_id, batch)
        elif not outbox.refuse(batch, error):
            self._fail_batch(batch, error)
        if outbox.stuck and outbox.answered:
            self._send_renumbered()
        self._tell_answered()
        if outbox.held.error is None:
            return
        if error is None or not error.retryable:
            self._send_held()  # there is room, or it will be cut to a size that has any
        elif self._held_timer is None:
            self._held_timer = self._later(outbox.held.pause, self._send_held)

    def _add_chunk(self, first: int, batch: Batch) -> None:
        if isinstance(batch.owner, list):
            chunk: Chunk = FutureChunk(first, batch.owner)
        else:
            gather, base = batch.owner
            chunk = BulkChunk(first, batch.count, gather, base)
            gather.accept(batch.input_bytes)
            held = self._outbox.held
            if held.concerned(batch):
                held.accepted(batch)
        self._chunks.add(chunk)

    # --- refusals --------------------------------------------------------------------------------------------------

    def _send_renumbered(self) -> None:
        """All answers to batches with old numbers are in."""
        for batch in self._outbox.renumber():
            self._send_again(batch)
        if self._attached:
            self._cancel_all_unwanted()

    def _send_again(self, batch: Batch) -> None:
        if self._link is not None and self._attached:
            self._link.send(Kind.SUBMIT, self.channel, batch.body)

    def _send_held(self) -> None:
        """Try again with what a quota held up: something happened since."""
        if self._held_timer is not None:
            self._held_timer.cancel()
            self._held_timer = None
        outbox = self._outbox
        if outbox.stuck or self._link is None or not self._attached:
            return  # answers, or the next connection, come here again
        batch = outbox.held.take()
        if batch is not None:
            outbox.add_again(batch)
            self._send_again(batch)
        elif not outbox.held.batches:
            self.pump()  # what waited behind it

    # --- results ---------------------------------------------------------------------------------------------------

    def _on_results(self, body: bytes) -> None:
        results = link_pb2.Results.FromString(body)
        ids = results.task_ids
        count = len(ids)
        if not count:
            return
        values, plain = values_of(results)
        if plain or any(type(value) is not CancelledTaskError for value in values):
            self.news += 1  # somebody got somewhere; what was cancelled says nothing of the others
        chunk = self._chunks.of(ids[0])
        if isinstance(chunk, BulkChunk):
            chunk.gather.weigh(count, len(body))
        self._chunks.settle(ids, values, plain=plain)
        if self._outbox.held.error is not None:
            self._send_held()

    # --- notices ---------------------------------------------------------------------------------------------------

    def _on_notice(self, message: link_pb2.Notice) -> None:
        """The cluster itself ends tasks that have no future; here their owner's log learns of what went before."""
        for event in message.events:
            level = logging.WARNING if event.code >= EventCode.BIND_FAILED else logging.INFO
            logger.log(level, "session %s: %s (code %d)", self.session_id, event.message, event.code)
            if event.code == EventCode.INSTANCE_LOST and self.on_lost:
                if self._link is not None:
                    self._link.send(Kind.DETACH, self.channel)
                errors = [tell(event.message) for tell in list(self.on_lost.values())]
                self.fail(errors[0])
        if message.pending_reason:
            wait = Wait(message.pending_reason)
            if self._known_wait is None or self._known_wait[1].message != wait.message:
                logger.info("session %s waits: %s", self.session_id, wait)
                self.learn(wait)
        if message.state == SessionState.CLOSED:
            logger.info("session %s was closed", self.session_id)

    def hand_over(self, old: TaskFuture, new: TaskFuture) -> None:
        """The result of a task goes to another future, which can be cancelled then without the first one's end."""
        for index, (payload, owner, options) in enumerate(self._buffer):
            if owner is old:
                self._buffer[index] = (payload, new, options)
                return
        waiting = (batch.owner for batch in self._outbox)
        accepted = (chunk.owners for chunk in self._chunks if isinstance(chunk, FutureChunk))
        for owners in (*(owner for owner in waiting if isinstance(owner, list)), *accepted):
            if old in owners:
                owners[owners.index(old)] = new
                new._id = old._id  # pyright: ignore[reportPrivateUsage]
                return

    # --- waiting ---------------------------------------------------------------------------------------------------

    @property
    def waits(self) -> bool:
        """Whether a task of this client has not ended."""
        return self._elsewhere > 0 or not self.idle

    def unfinished(self) -> int:
        """How many tasks of this client have not ended."""
        sent = sum(batch.count for batch in self._outbox)
        return len(self._buffer) + sent + sum(chunk.left for chunk in self._chunks) + self._elsewhere

    def refused(self) -> Wait | None:
        """What keeps tasks from even being accepted."""
        error = self._outbox.held.error
        if error is None:
            return None
        count = len(self._buffer) + sum(batch.count for batch in self._outbox)
        return Wait(error.message, error.remedy, "quota", unaccepted=count)

    def learn(self, wait: Wait | None) -> None:
        """What the session waits for, None = nothing that is known; good until a result comes."""
        self._known_wait = None if wait is None else (self.news, wait)

    def elsewhere(self, change: int) -> None:
        """A future whose result comes in another way began (1) or ended (-1)."""
        self._elsewhere += change
        if change < 0:
            self.news += 1
        elif self.watch is not None:
            self.watch.arm()

    # --- cancelling ------------------------------------------------------------------------------------------------

    def _cancel(self, future: TaskFuture) -> None:
        if future.done():
            return
        self._unsent_cancels.append(future)
        if not self._pump_due:
            self._pump_due = True
            self._wake(self.pump)

    def _send_cancels(self) -> None:
        """Name each task by its id, or by its number when it is not accepted; those in the buffer just never leave."""
        if self._link is None:
            return  # when the connection is back
        cancels, self._unsent_cancels = self._unsent_cancels, []
        message = link_pb2.Cancel()
        for future in cancels:
            task_id = future._id  # pyright: ignore[reportPrivateUsage]
            if future.done():
                continue
            if task_id:
                message.task_ids.add(first=task_id, last=task_id)
                continue
            seq = self._outbox.seq_of(future)
            if seq:
                message.seqs.add(first=seq, last=seq)
        if message.task_ids or message.seqs:
            self._link.send(Kind.CANCEL, self.channel, message.SerializeToString())

    def _cancel_all_unwanted(self) -> None:
        """Cancel what was sent and nobody wants: given up iterators, and futures whose CANCEL may have been lost."""
        self._outbox.held.drop_unwanted()
        self._tell_idle()
        if self._link is None:
            return
        message = link_pb2.Cancel(reason="its result is no longer wanted")
        for first, last in self._outbox.unwanted():
            message.seqs.add(first=first, last=last)
        for chunk in self._chunks:
            for first, last in chunk.unwanted():
                message.task_ids.add(first=first, last=last)
        if message.seqs or message.task_ids:
            self._link.send(Kind.CANCEL, self.channel, message.SerializeToString())
        self.pump()  # the buffer drops what is unwanted


def lost(reason: str) -> UnavailableError:
    """The error of tasks whose connection is gone for good."""
    return UnavailableError(f"the connection to the cluster is lost: {reason}", remedy="the tasks may still end there")

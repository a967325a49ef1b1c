"""The turn: everything that happened in one iteration of the loop goes to the engine together, and what it answers is
carried out in the order it asks for.

    post(event) ... -> engine.turn -> now: at once
                                      records: to the journal
                                      after: once those records, and all earlier ones, are durable
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

from flame.engine import Engine
from flame.engine.effects import Accepted, Complain, Effect, Forget, Purge, Record, RecordKind, Reply, Turn
from flame.engine.events import Event, JournalFailed, JournalRecovered, Submitted, Tick
from flame.journal import JournalError, JournalWriter
from flame.manager.payloads import Payloads
from flame.model.errors import ReadOnlyError

_log = logging.getLogger("flame.manager")

E = TypeVar("E", bound=Effect)
Answer = Callable[[Any], None]
# Timers of the loop are about a millisecond coarse: shorter, and some would end before the answer could come.
PATIENCE_S = 0.002


class _Unsaid(NamedTuple):
    """What waits for records to become durable."""

    records: list[Record]
    effects: list[Effect]
    last_seq: int


class _Waiting(NamedTuple):
    """Records that wait a moment for others to share their commit."""

    records: list[Record]
    timer: asyncio.TimerHandle


def wall_clock() -> int:
    """Unix milliseconds."""
    return time.time_ns() // 1_000_000


class Turns:
    """The engine and what surrounds it: one queue of events in, effects out to whoever registered for them."""

    def __init__(
        self,
        engine: Engine,
        journal: JournalWriter,
        payloads: Payloads,
        on_fault: Callable[[BaseException], None],
        clock: Callable[[], int] = wall_clock,
    ) -> None:
        """`on_fault` hears when the engine itself breaks: its state can't be trusted then, only the journal's."""
        self.engine = engine
        self.payloads = payloads
        self.journal = journal
        self._on_fault = on_fault
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._events: list[Event] = []
        self._due = False
        self._in_a_hurry = False  # somebody waits for the acceptance of a submission of this turn
        self._handlers: dict[type[Effect], Callable[[Any], None]] = {
            Reply: self._answer,
            Accepted: self._answer,
            Forget: self._forget,
            Complain: self._complain,
            Purge: self._purge,
        }
        self._answers: dict[int, Answer] = {}
        self._ticket = 0
        self._unsaid: deque[_Unsaid] = deque()
        self._waiting: _Waiting | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = 0
        self._durable_waiters: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._closed = False
        self.trouble: JournalError | None = None
        self.durable_seq = engine.seq
        """The seq of the last record that is known to be durable."""
        self.count = 0
        self.busy_s = 0.0
        """Turns made so far, and the seconds that the loop spent in them, with sending what they asked for."""
        self.on_settled: Callable[[], None] = _nothing
        """Called after each group of records became durable."""

    def handle(self, effect: type[E], handler: Callable[[E], None]) -> None:
        """Carry out effects of this type with `handler`, after those that were registered before."""
        earlier = self._handlers.get(effect)
        if earlier is None:
            self._handlers[effect] = handler
            return

        def both(item: E) -> None:
            earlier(item)
            handler(item)

        self._handlers[effect] = both

    # --- events --------------------------------------------------------------------------------------------------

    def post(self, event: Event) -> None:
        """Tell the engine in the turn at the end of this iteration of the loop."""
        self._events.append(event)
        if not self._due:
            self._due = True
            self._loop.call_soon(self._run)

    def post_later(self, event: Event) -> None:
        """Tell the engine in the next turn that is made anyway: for what changes nothing that anybody waits for."""
        self._events.append(event)

    def ticket(self, answer: Answer) -> int:
        """A ticket for an event; `answer` gets the Reply or Accepted that carries it."""
        self._ticket += 1
        self._answers[self._ticket] = answer
        return self._ticket

    async def ask(self, make: Callable[[int], Event]) -> Any:
        """Post the event that `make` builds for a ticket; its reply's value, or its error raised."""
        waiter: asyncio.Future[Any] = self._loop.create_future()

        def answer(reply: Reply) -> None:
            if waiter.done():
                return
            if reply.error is not None:
                waiter.set_exception(reply.error)
            else:
                waiter.set_result(reply.value)

        self.post(make(self.ticket(answer)))
        return await waiter

    async def submit(self, event: Submitted) -> int:
        """Post a submission; the id of its first task once it is durable. Raises the error that refused it."""
        waiter: asyncio.Future[int] = self._loop.create_future()

        def accepted(effect: Accepted) -> None:
            if waiter.done():
                return
            if effect.error is not None:
                waiter.set_exception(effect.error)
            else:
                waiter.set_result(effect.first_task_id)

        event.ticket = self.ticket(accepted)
        self._in_a_hurry = True
        self.post(event)
        return await waiter

    async def durable(self, seq: int) -> None:
        """Wait until the record `seq` is durable. Raises ReadOnlyError while the journal can't be written."""
        if seq <= self.durable_seq:
            return
        if self.trouble is not None:
            raise ReadOnlyError(f"the journal can't be written: {self.trouble.message}", remedy=self.trouble.remedy)
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._durable_waiters.append((seq, waiter))
        await waiter

    def now(self) -> int:
        """Unix milliseconds."""
        return self._clock()

    def call_soon(self, callback: Callable[..., None], *args: Any) -> None:
        """Call back in the next iteration of the loop."""
        self._loop.call_soon(callback, *args)

    # --- the turn --------------------------------------------------------------------------------------------------

    def begin(self, turn: Turn) -> None:
        """Carry out the engine's first turn, which it made when all records were replayed."""
        self._carry_out(turn)

    def run_now(self) -> None:
        """Do the waiting turn now instead of at the end of the iteration: the engine has then seen all events."""
        if self._events:
            self._run()

    def close(self) -> None:
        """No further turns."""
        self._closed = True
        self._wait_no_longer()
        self._events.clear()
        if self._alarm is not None:
            self._alarm.cancel()

    @property
    def settled(self) -> bool:
        """Whether nothing waits: no event and no record."""
        return not self._events and not self._unsaid

    def journal_trouble(self, error: JournalError | None) -> None:
        """The journal can't be written, or (None) can again."""
        self.trouble = error
        if error is None:
            _log.warning("journal_recovered")
            self.post(JournalRecovered())
            return
        _log.error("journal_failed error=%s", error)
        self.post(JournalFailed(error.message))
        waiters, self._durable_waiters = self._durable_waiters, deque()
        for _, waiter in waiters:
            if not waiter.done():
                waiter.set_exception(ReadOnlyError(f"the journal can't be written: {error.message}"))

    def _run(self) -> None:
        self._due = False
        events, self._events = self._events, []
        if self._closed or not events:
            return
        began = time.perf_counter()
        try:
            turn = self.engine.turn(self._clock(), events)
        except Exception as error:
            _log.exception("engine_fault events=%s", [type(event).__name__ for event in events])
            self.close()
            self._on_fault(error)
            return
        self._carry_out(turn, lonely=len(events) == 1)
        self._in_a_hurry = False
        self.count += 1
        self.busy_s += time.perf_counter() - began

    def _can_wait(self, turn: Turn) -> bool:
        """Whether this is one submission, on its way to an executor already, whose sender goes on meanwhile.

        An executor that has nothing else to do answers within a moment; then submission and results share one commit,
        and one sync of the disk is waited for instead of two.
        """
        kinds = [record.kind for record in turn.records]
        return kinds == [RecordKind.SUBMITTED] and bool(turn.now) and not self._in_a_hurry and self.trouble is None

    def _make_durable(self, records: list[Record], *, patient: bool, at_once: bool) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.timer.cancel()
            self.journal.submit([*waiting.records, *records], partial(self._said, 2), at_once=at_once)
        elif patient and not self.journal.backlog:
            self._waiting = _Waiting(records, self._loop.call_later(PATIENCE_S, self._wait_no_longer))
        else:
            self.journal.submit(records, self._said, at_once=at_once)

    def _wait_no_longer(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.timer.cancel()
            self.journal.submit(waiting.records, self._said, at_once=True)

    def _carry_out(self, turn: Turn, *, lonely: bool = False) -> None:
        records = turn.records
        if records:
            self.payloads.keep(records)
        self._execute(turn.now)
        if records:
            self._unsaid.append(_Unsaid(records, turn.after, records[-1].seq))
            self._make_durable(records, patient=lonely and self._can_wait(turn), at_once=lonely)
        elif self._unsaid:
            self._unsaid[-1].effects.extend(self._say_refusals(turn.after) if self.trouble is not None else turn.after)
        else:
            self._execute(turn.after)
        if turn.wake_at != self._alarm_at:
            self._set_alarm(turn.wake_at)

    def _say_refusals(self, effects: list[Effect]) -> list[Effect]:
        """While nothing can be made durable, those who are refused hear it now: a refusal promises nothing."""
        refusals: list[Effect] = []
        others: list[Effect] = []
        for effect in effects:
            refused = isinstance(effect, Reply | Accepted) and effect.error is not None
            (refusals if refused else others).append(effect)
        self._execute(refusals)
        return others

    def _said(self, turns: int = 1) -> None:
        """The records of the oldest turns are durable."""
        for _ in range(turns):
            unsaid = self._unsaid.popleft()
            self.durable_seq = unsaid.last_seq
            self._execute(unsaid.effects)
            self.payloads.settle(unsaid.records)
        while self._durable_waiters and self._durable_waiters[0][0] <= self.durable_seq:
            _, waiter = self._durable_waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
        self.on_settled()

    def _execute(self, effects: list[Effect]) -> None:
        handlers = self._handlers
        for effect in effects:
            try:
                handlers[type(effect)](effect)
            except Exception:  # one peer's trouble is not the next one's
                _log.exception("effect_fault effect=%s", type(effect).__name__)

    def _set_alarm(self, wake_at: int) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        self._alarm_at = wake_at
        if wake_at:
            delay = max(0, wake_at - self._clock()) / 1000
            self._alarm = self._loop.call_later(delay, self._ring)

    def _ring(self) -> None:
        self._alarm_at = 0
        self._alarm = None
        self.post(Tick())

    # --- effects that end here -------------------------------------------------------------------------------------

    def _answer(self, effect: Reply | Accepted) -> None:
        answer = self._answers.pop(effect.ticket, None)
        if answer is not None:
            answer(effect)

    def _forget(self, effect: Forget) -> None:
        for seq in effect.seqs:
            self.payloads.release(seq)

    def _complain(self, effect: Complain) -> None:
        _log.warning("%s", effect.text)

    def _purge(self, effect: Purge) -> None:
        self.journal.purge(effect.session_id, effect.upto)


def _nothing() -> None:
    pass

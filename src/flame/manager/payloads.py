"""Bodies of records: in memory while they are needed, read back from the journal otherwise.

A body is *held* from its record on: that of a submission until its tasks have ended, that of results until it has been
delivered. What nobody holds any more stays for a while among the *recent* ones, for those who look at a task just
after it ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from flame.engine.effects import Record, RecordKind
from flame.journal import JournalError, JournalWriter
from flame.manager.recent import Recent
from flame.proto import link_pb2

HELD_BYTES = 512 * 1024 * 1024
RECENT_BYTES = 16 * 1024 * 1024
PARSED_BYTES = 8 * 1024 * 1024

Bodies = dict[int, bytes]


class Payloads:
    """All payload bytes of the session manager, by the seq of their record."""

    def __init__(self, journal: JournalWriter, *, durable: bool, held_bytes: int = HELD_BYTES) -> None:
        """Above `held_bytes` submissions to a durable journal are not held, but read back when their turn comes."""
        self._journal = journal
        self._durable = durable
        self._held_bytes = held_bytes
        self._held: Bodies = {}
        self._holders: dict[int, int] = {}  # of those with more than one
        self._recent: Recent[bytes] = Recent(RECENT_BYTES)
        self._submits: Recent[link_pb2.Submit] = Recent(PARSED_BYTES)
        self._results: Recent[link_pb2.Results] = Recent(PARSED_BYTES)
        self.held_size = 0

    # --- keeping -----------------------------------------------------------------------------------------------------

    def keep(self, records: Iterable[Record]) -> None:
        """Hold the bodies of new records."""
        for record in records:
            if record.body:
                self._held[record.seq] = record.body
                self.held_size += len(record.body)

    def settle(self, records: Iterable[Record]) -> None:
        """The records are durable, and what waited for that was said: results are not needed any more."""
        for record in records:
            if record.body and (
                record.kind != RecordKind.SUBMITTED or (self._durable and self.held_size > self._held_bytes)
            ):
                self.release(record.seq)

    def hold(self, seq: int) -> None:
        """Keep a body that is in memory until `release`; one that is not comes from the journal when it is used."""
        if seq in self._held:
            self._holders[seq] = self._holders.get(seq, 1) + 1
        elif not self._durable:
            body = self._recent.get(seq)
            if body is not None:
                self._recent.drop(seq)
                self._held[seq] = body
                self.held_size += len(body)

    def release(self, seq: int) -> None:
        """One holder less."""
        count = self._holders.get(seq, 1)
        if count > 2:
            self._holders[seq] = count - 1
        elif count == 2:
            del self._holders[seq]
        else:
            body = self._held.pop(seq, None)
            if body is not None:
                self.held_size -= len(body)
                self._recent.put(seq, body, len(body))

    # --- using -------------------------------------------------------------------------------------------------------

    def get(self, seq: int) -> bytes | None:
        """The body, when it is in memory."""
        body = self._held.get(seq)
        return body if body is not None else self._recent.get(seq)

    def load(self, seqs: Iterable[int], done: Callable[[Bodies, JournalError | None], None]) -> None:
        """Give `done` these bodies; those of purged records are missing. With an error some others may be too."""
        found: Bodies = {}
        missing: list[int] = []
        for seq in dict.fromkeys(seqs):
            body = self.get(seq)
            if body is None:
                missing.append(seq)
            else:
                found[seq] = body
        if not missing:
            done(found, None)
            return

        def loaded(bodies: Bodies, error: JournalError | None) -> None:
            for seq, body in bodies.items():
                self._recent.put(seq, body, len(body))
            done(found | bodies, error)

        self._journal.load(missing, loaded)

    async def fetch(self, seqs: Iterable[int]) -> Bodies:
        """As `load`; raises JournalError. Does not wait when everything is in memory."""
        outcome: list[tuple[Bodies, JournalError | None]] = []
        waiter: asyncio.Future[None] | None = None

        def done(bodies: Bodies, error: JournalError | None) -> None:
            outcome.append((bodies, error))
            if waiter is not None and not waiter.done():
                waiter.set_result(None)

        self.load(seqs, done)
        if not outcome:
            waiter = asyncio.get_running_loop().create_future()
            await waiter
        bodies, error = outcome[0]
        if error is not None:
            raise error
        return bodies

    def parsed_submit(self, seq: int, body: bytes | None = None) -> link_pb2.Submit | None:
        """The submission as a message, when it is in memory or given."""
        message = self._submits.get(seq)
        if message is None:
            body = body if body is not None else self.get(seq)
            if body is not None:
                message = link_pb2.Submit.FromString(body)
                self._submits.put(seq, message, len(body))
        return message

    def parsed_results(self, seq: int, body: bytes | None = None) -> link_pb2.Results | None:
        """The results as a message, when they are in memory or given."""
        message = self._results.get(seq)
        if message is None:
            body = body if body is not None else self.get(seq)
            if body is not None:
                message = link_pb2.Results.FromString(body)
                self._results.put(seq, message, len(body))
        return message

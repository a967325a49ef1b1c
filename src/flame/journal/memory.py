"""The journal of `storage: none`: nothing outlives the process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from flame.engine.effects import Record

DEFAULT_CAPACITY = 256 * 1024 * 1024


class MemoryJournal:
    """Keeps bodies of finished work readable while they fit into `capacity` bytes; the oldest go first.

    Bodies still needed to run or deliver tasks are held by the manager itself, so dropping one here loses nothing
    but the payloads that a later look at an old task would show.
    """

    durable = False
    last_seq = 0

    def __init__(self, capacity: int = DEFAULT_CAPACITY) -> None:
        self._capacity = capacity
        self._bodies: dict[int, bytes] = {}
        self._sessions: dict[str, list[int]] = {}
        self._size = 0

    def open(self) -> None:
        """Nothing to lock."""

    def replay(self) -> Iterator[Record]:
        """There is never anything from before."""
        return iter(())

    def append(self, records: Sequence[Record]) -> None:
        """Remember the bodies; always succeeds."""
        for record in records:
            if not record.body:
                continue
            self._bodies[record.seq] = record.body
            self._sessions.setdefault(record.session, []).append(record.seq)
            self._size += len(record.body)
        while self._size > self._capacity:
            self._drop(next(iter(self._bodies)))

    def load(self, seqs: Sequence[int]) -> dict[int, bytes]:
        """The bodies that are still here."""
        return {seq: self._bodies[seq] for seq in seqs if seq in self._bodies}

    def purge(self, session: str, upto: int) -> None:
        """Drop the session's bodies at once."""
        seqs = self._sessions.pop(session, [])
        for seq in seqs:
            if seq <= upto:
                self._drop(seq)
        later = [seq for seq in seqs if seq > upto]
        if later:
            self._sessions[session] = later

    def maintain(self) -> bool:
        """Nothing is ever waiting."""
        return False

    def close(self) -> None:
        """Forget everything."""
        self._bodies.clear()
        self._sessions.clear()
        self._size = 0

    def _drop(self, seq: int) -> None:
        body = self._bodies.pop(seq, None)
        if body is not None:
            self._size -= len(body)

"""What a store of the journal promises. `flame.testing.journal` has the tests that every store must pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from flame.engine.effects import Record
from flame.model.errors import ReadOnlyError


class JournalError(ReadOnlyError):
    """The store can't be opened, read or written. A failed write left nothing behind: it may be tried again."""


class Journal(Protocol):
    """Durable records in order of their `seq`. All calls come from one thread at a time; every call may block."""

    durable: bool
    """Whether records outlive the process. When they do not, whoever needs a body keeps it."""
    last_seq: int
    """After `replay`: no record up to this seq may be appended again. Some that were purged may still be there."""

    def open(self) -> None:
        """Lock the store for this process and check that it is whole. Raises JournalError."""
        ...

    def replay(self) -> Iterator[Record]:
        """All records in order of seq, their bodies left out. Raises JournalError when one is damaged."""
        ...

    def append(self, records: Sequence[Record]) -> None:
        """Make the records durable: all of them when this returns, none of them when it raises JournalError."""
        ...

    def load(self, seqs: Sequence[int]) -> dict[int, bytes]:
        """The bodies of these records; those that were purged are missing. Raises JournalError."""
        ...

    def purge(self, session: str, upto: int) -> None:
        """Forget the records of a session with a seq of `upto` or less.

        They never come back from `replay`, also after a crash; the room they take is given back by `maintain`.
        """
        ...

    def maintain(self) -> bool:
        """Do one bounded piece of housekeeping (at most some tens of milliseconds). True when more is waiting."""
        ...

    def close(self) -> None:
        """Give the store free. Closing twice is harmless."""
        ...

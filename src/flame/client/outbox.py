"""Batches that have left and are not accepted: numbered, kept until the cluster has them, numbered anew when need be.

A refused batch makes no task, so the cluster goes on waiting for its number and refuses what comes after it. When all
answers are in (or can't come any more), the innocent ones get new numbers from the first refused one on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from flame.client.batches import Batch
from flame.client.chunks import unwanted
from flame.client.futures import TaskFuture
from flame.client.held import Held
from flame.model.errors import ExhaustedError, FlameError, ProtocolError

# Bytes that may be under way; what comes later waits in the buffer, where it can still be cancelled.
_MOST_BYTES = 32 << 20


class Outbox:
    """See above. Invariant: the numbers of `batches` ascend without gaps up to next_seq."""

    def __init__(self) -> None:
        self.next_seq = 1  # the number of the next task
        self.batches: deque[Batch] = deque()  # sent, or to be sent as soon as there is a connection
        self.held = Held()  # those that wait for room
        self._bytes = 0  # of `batches`
        self._refused_at = 0  # the first number that was refused, 0 = none
        self._innocent: list[Batch] = []  # came after that one, and were refused for it

    def __bool__(self) -> bool:
        return bool(self.batches or self._innocent or self.held.batches)

    def __iter__(self) -> Iterator[Batch]:
        yield from self.batches
        yield from self._innocent
        yield from self.held.batches

    @property
    def full(self) -> bool:
        """Whether so much is under way that the rest waits."""
        return self._bytes > _MOST_BYTES

    @property
    def stuck(self) -> bool:
        """Whether one was refused, and nothing can be sent until those after it have new numbers."""
        return self._refused_at > 0

    @property
    def answered(self) -> bool:
        """Whether all answers to old numbers are in."""
        return not self.batches

    @property
    def first_seq(self) -> int:
        """The first number that is not accepted."""
        return self.batches[0].first_seq if self.batches else self.next_seq

    def add(self, batch: Batch) -> None:
        """It has the next number."""
        self.next_seq += batch.count
        self.batches.append(batch)
        self._bytes += len(batch.body)

    def add_again(self, batch: Batch) -> None:
        """It gets the next number."""
        batch.renumber(self.next_seq)
        self.add(batch)

    def take(self, first_seq: int) -> Batch | None:
        """The batch that was answered. Answers come in order, so it is nearly always the first."""
        for index, batch in enumerate(self.batches):
            if batch.first_seq == first_seq:
                del self.batches[index]
                self._bytes -= len(batch.body)
                return batch
        return None

    def refuse(self, batch: Batch, error: FlameError) -> bool:
        """It was refused; whether it shall try again, now or later."""
        if self._refused_at and isinstance(error, ProtocolError):
            self._innocent.append(batch)
            return True
        if not self._refused_at:
            self._refused_at = batch.first_seq
        if self.held.bears(batch, error):
            self.held.hold(batch, error)
            return True
        others = batch.cut(batch.count // 2) if _too_many(batch, error) else None
        if others is None:
            return False
        self._innocent += (batch, others)
        return True

    def renumber(self) -> list[Batch]:
        """Give the innocent ones new numbers; those that are to be sent again, in order."""
        if not self._refused_at:
            return []
        again = [*self._innocent, *self.batches]
        if self.held.error is not None:
            self.held.add(batch for batch in again if isinstance(batch.owner, tuple))
            again = [batch for batch in again if not isinstance(batch.owner, tuple)]
        self.batches.clear()
        self._innocent.clear()
        self.next_seq, self._refused_at, self._bytes = self._refused_at, 0, 0
        for batch in again:
            self.add_again(batch)
        return again

    def clear(self) -> list[Batch]:
        """Forget all; answers what was there."""
        batches = list(self)
        self.batches.clear()
        self._innocent.clear()
        self.held.batches.clear()
        return batches

    # --- single tasks ----------------------------------------------------------------------------------------------

    def seq_of(self, future: TaskFuture) -> int:
        """The number of a task; 0 when it is in no batch that was sent."""
        for batch in self.batches:
            if isinstance(batch.owner, list) and future in batch.owner:
                return batch.first_seq + batch.owner.index(future)
        return 0

    def unwanted(self) -> Iterator[tuple[int, int]]:
        """Ranges of numbers whose results nobody wants."""
        for batch in self.batches:
            for first, last in unwanted(batch.owner, batch.count):
                yield batch.first_seq + first, batch.first_seq + last


def _too_many(batch: Batch, error: FlameError) -> bool:
    """Whether it is refused only since so many tasks left together; the user submitted them one by one."""
    return batch.count > 1 and isinstance(error, ExhaustedError) and not error.retryable

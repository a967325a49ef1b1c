"""Back-pressure of a full quota: tasks of `map` that the cluster refused for now wait here and are sent again.

They go one batch at a time, in smaller batches the more often they are refused, when something happened that may have
made room (a result, an acceptance), else after pauses that double.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from flame.client.batches import BATCH_TASKS, Batch
from flame.model.errors import ExhaustedError, FlameError

SHORTEST_PAUSE, LONGEST_PAUSE = 0.05, 2.0  # seconds


class Held:
    """Batches that wait for room, in the order in which they were submitted. Invariant: all are those of a `map`."""

    def __init__(self) -> None:
        self.batches: deque[Batch] = deque()
        self.error: FlameError | None = None  # the last refusal, while there are any
        self.probe: Batch | None = None  # the one that was sent again and is not answered
        self.limit = BATCH_TASKS  # tasks of a batch that may be accepted
        self.pause = SHORTEST_PAUSE

    @staticmethod
    def bears(batch: Batch, error: FlameError) -> bool:
        """Whether a refused batch can wait, as it is or in pieces: a future is told at once, an iteration takes its
        time."""
        full = isinstance(error, ExhaustedError) and isinstance(batch.owner, tuple)
        return full and (error.retryable or batch.count > 1)

    def hold(self, batch: Batch, error: FlameError) -> None:
        """It was refused."""
        self.limit = max(1, batch.count // 2)
        self.error = error
        if self.probe is not batch:
            self.batches.append(batch)
            return
        self.probe = None
        self.batches.appendleft(batch)
        if error.retryable:
            self.pause = min(2 * self.pause, LONGEST_PAUSE)

    def add(self, batches: Iterable[Batch]) -> None:
        """They came after the one that was refused, and would be refused as well."""
        for batch in batches:
            if batch is self.probe:
                self.probe = None
                self.batches.appendleft(batch)
            else:
                self.batches.append(batch)

    def concerned(self, batch: Batch) -> bool:
        """Whether the acceptance of this batch is news here."""
        return self.limit < BATCH_TASKS or self.probe is batch

    def accepted(self, batch: Batch) -> None:
        """There is room."""
        if self.probe is batch:
            self.probe = None
        if batch.count >= self.limit:
            self.limit = min(BATCH_TASKS, 2 * self.limit)
        self.pause = SHORTEST_PAUSE

    def take(self) -> Batch | None:
        """The batch to send now; None when there is none, or one that was sent again is not answered yet."""
        self.drop_unwanted()
        if self.probe is not None or not self.batches:
            return None
        self.probe = self.batches.popleft()
        others = self.probe.cut(self.limit)
        if others is not None:
            self.batches.appendleft(others)
        return self.probe

    def drop_unwanted(self) -> None:
        """Forget what nobody waits for any more."""
        if any(_unwanted(batch) for batch in self.batches):
            self.batches = deque(batch for batch in self.batches if not _unwanted(batch))
        if not self.batches and self.probe is None:
            self.error = None


def _unwanted(batch: Batch) -> bool:
    assert isinstance(batch.owner, tuple)
    gather = batch.owner[0]
    return gather.closed or gather.error is not None

"""The results of `map`: many tasks, one consumer, in order, without an object per task.

The stream's thread puts results in, the consumer takes them out by their position. Both sides only use operations of
dict that are atomic, each number has one writer, and whoever waits looks again after it has announced itself, so there
is no lock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from flame.client.freeing import free, free_outputs
from flame.client.futures import Settled
from flame.model.errors import FlameError

DEFAULT_WINDOW = 16384
_FIRST_WINDOW = 2048  # until it is known how large results are
_SMALLEST_WINDOW = 64
# Bytes that one map may hold: inputs that the cluster has not accepted, and results that wait for those before them.
_BUDGET = 128 << 20


class Missing:
    """The type of MISSING."""


MISSING: Final = Missing()


class Gather:
    """Results of tasks 0, 1, 2, ... in the order in which they were submitted.

    `wake` is called (by the stream's thread) when the result that the consumer said it wants is there, when there is
    room again for one that said it is starved, or when an error ends everything.
    """

    __slots__ = (
        "accepted_bytes",
        "closed",
        "consumed",
        "error",
        "limit",
        "parcels",
        "received",
        "received_bytes",
        "results",
        "sent",
        "starved",
        "submitted",
        "submitted_bytes",
        "wake",
        "wanted",
        "window",
    )

    def __init__(self, wake: Callable[[], object], window: int) -> None:
        self.wake = wake
        self.window = window
        self.results: dict[int, Settled] = {}
        self.error: FlameError | None = None
        self.closed = False
        # written by the consumer's side only; consumed <= submitted
        self.wanted = -1
        self.starved = False
        self.submitted = 0
        self.submitted_bytes = 0
        self.consumed = 0
        self.parcels: dict[int, bytes] = {}  # inputs that lie in the object cache until their tasks have ended
        # written by the stream's thread only; sent <= submitted
        self.sent = 0  # put into batches
        self.accepted_bytes = 0
        self.received = 0
        self.received_bytes = 0
        self.limit = min(window, _FIRST_WINDOW)

    # --- the stream's thread ---------------------------------------------------------------------------------------

    def put(self, index: int, values: Sequence[Settled]) -> None:
        """Results of the tasks index, index + 1, ..."""
        if self.parcels:
            for parcel in filter(None, (self.parcels.pop(index + place, None) for place in range(len(values)))):
                free(parcel)
        if self.closed:
            free_outputs(values)
            return
        self.results.update(zip(range(index, index + len(values)), values, strict=True))
        if index <= self.wanted < index + len(values):
            self.wanted = -1
            self.wake()

    def weigh(self, count: int, size: int) -> None:
        """`count` results were `size` bytes long: the larger they are, the fewer may wait."""
        self.received += count
        self.received_bytes += size
        fitting = _BUDGET * self.received // max(1, self.received_bytes)
        self.limit = min(self.window, max(_SMALLEST_WINDOW, fitting))

    def accept(self, size: int) -> None:
        """The cluster holds `size` bytes more of the inputs."""
        self.accepted_bytes += size
        if self.starved:
            self.starved = False
            self.wake()

    def fail(self, error: FlameError) -> None:
        """No further results will come."""
        self.error = error
        self.wake()

    # --- the consumer ----------------------------------------------------------------------------------------------

    def take(self) -> Settled | Missing:
        """The next result if it is there."""
        value = self.results.pop(self.consumed, MISSING)
        if value is not MISSING:
            self.consumed += 1
        return value

    def close(self) -> None:
        """Nobody wants further results."""
        self.closed = True
        free_outputs(list(self.results.values()))
        self.results.clear()

    @property
    def room(self) -> int:
        """How many more tasks may be submitted now; 0 or less = none."""
        if self.submitted_bytes - self.accepted_bytes >= _BUDGET:
            return 0
        return self.limit - (self.submitted - self.consumed)

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
# Bytes that inputs of one map may have in the object cache while their tasks have not ended; some may always be there,
# so that several instances have work.
_STORED = 512 << 20
_STORED_TASKS = 4


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
        "freed_bytes",
        "limit",
        "parcels",
        "received",
        "received_bytes",
        "results",
        "sent",
        "starved",
        "stored_bytes",
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
        # inputs that lie in the object cache until their tasks have ended: what stands for them, and their bytes
        self.parcels: dict[int, tuple[bytes, int]] = {}
        self.stored_bytes = 0
        # written by the stream's thread only; sent <= submitted
        self.sent = 0  # put into batches
        self.accepted_bytes = 0
        self.freed_bytes = 0
        self.received = 0
        self.received_bytes = 0
        self.limit = min(window, _FIRST_WINDOW)

    # --- the stream's thread ---------------------------------------------------------------------------------------

    def put(self, index: int, values: Sequence[Settled]) -> None:
        """Results of the tasks index, index + 1, ..."""
        if self.parcels:
            self._free(range(index, index + len(values)))
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
        self._tell_room()

    def fail(self, error: FlameError) -> None:
        """No further results will come."""
        self.error = error
        self.wake()

    def _free(self, indexes: range) -> None:
        """These tasks have ended: their inputs may go from the object cache."""
        for index in indexes:
            parcel, size = self.parcels.pop(index, (b"", 0))
            if parcel:
                free(parcel)
                self.freed_bytes += size
        self._tell_room()

    def _tell_room(self) -> None:
        if self.starved:
            self.starved = False
            self.wake()

    # --- the consumer ----------------------------------------------------------------------------------------------

    def store(self, parcel: bytes, size: int) -> None:
        """The input of the next task, of `size` bytes, lies in the object cache."""
        self.parcels[self.submitted] = parcel, size
        self.stored_bytes += size

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
        if self.stored_bytes - self.freed_bytes >= _STORED and len(self.parcels) >= _STORED_TASKS:
            return 0
        return self.limit - (self.submitted - self.consumed)

"""Taking the inputs of `map` from an iterable, as many as there is room for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from flame.client.gather import Gather
from flame.client.snapshot import payload_of
from flame.client.stream import TaskStream
from flame.proto import types_pb2 as ty


class Feeder:
    """Moves inputs from an iterator to a stream while there is room. Used by one thread."""

    __slots__ = ("exhausted", "gather", "options", "source", "stream")

    def __init__(
        self, stream: TaskStream, gather: Gather, source: Iterator[Any], options: ty.TaskOptions | None
    ) -> None:
        self.stream = stream
        self.gather = gather
        self.source = source
        self.options = options
        self.exhausted = False

    def submit(self, value: Any) -> None:
        """One input. Raises TooLargeError, InvalidArgumentError, or what ended the stream."""
        gather = self.gather
        gather.submitted_bytes += self.stream.submit(payload_of(value), gather, self.options)
        gather.submitted += 1

    def feed(self, limit: int) -> int:
        """Submit inputs until `limit`, the end, the window or a ready result; answers how many."""
        if self.exhausted:
            return 0
        gather = self.gather
        results = gather.results
        count = 0
        for value in self.source:
            self.submit(value)
            count += 1
            if count >= limit or gather.consumed in results or gather.room <= 0:
                return count
        self.exhausted = True
        return count

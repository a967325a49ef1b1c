"""What a command printed and who has it: bounded, whoever reads or not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from contextlib import contextmanager

from flame.sandbox.wire import POLL_S

SIZE = 2 * 1024**2  # of one stream of one command
_PATIENCE_S = POLL_S + 10  # after which a client that does not come back has gone


class Buffer:
    """The end of a stream. `end` counts all bytes that came; those before `start` are gone.

    While somebody follows, nothing that he does not have is dropped: the buffer gets full, and the command waits. When
    nobody does, the oldest go.
    """

    def __init__(self, freed: Callable[[], None]) -> None:
        """`freed` is called when it may want more again."""
        self.start = 0
        self.end = 0
        self._data = bytearray()
        self._freed = freed
        self._readers: dict[object, int] = {}  # where those who wait for more are
        self._place = 0  # where the last one was
        self._awaited: asyncio.TimerHandle | None = None  # while he may come back

    @property
    def wants_more(self) -> bool:
        return not self._followed or self.end - self._needed < SIZE

    @property
    def _followed(self) -> bool:
        return bool(self._readers) or self._awaited is not None

    @property
    def _needed(self) -> int:
        """From where on it is needed."""
        return max(self.start, min([*self._readers.values(), *([self._place] if self._awaited is not None else [])]))

    def add(self, data: bytes) -> None:
        self._data += data
        self.end += len(data)
        self._drop()

    def expect(self) -> None:
        """Somebody is going to follow."""
        if self._awaited is not None:
            self._awaited.cancel()
        self._awaited = asyncio.get_running_loop().call_later(_PATIENCE_S, self._forget)

    @contextmanager
    def followed(self, place: int) -> Generator[None]:
        """Somebody has what is before this place, and waits for more."""
        key = object()
        self._readers[key] = place
        if self._awaited is not None:
            self._awaited.cancel()
            self._awaited = None
        try:
            yield
        finally:
            del self._readers[key]
            self.expect()

    def take(self, place: int, most: int) -> tuple[bytes, int, int]:
        """Up to `most` bytes from this place on, where they end, and how many before them are gone."""
        begin = min(max(place, self.start), self.end)
        data = bytes(self._data[begin - self.start : begin - self.start + most])
        self._place = begin + len(data)
        return data, begin + len(data), begin - min(place, begin)

    def _drop(self) -> None:
        """Keep the last SIZE bytes, and what is needed besides."""
        keep = self.end - SIZE
        if self._followed:
            keep = min(keep, self._needed)
        if keep > self.start:
            del self._data[: keep - self.start]
            self.start = keep

    def _forget(self) -> None:
        self._awaited = None
        self._drop()
        self._freed()

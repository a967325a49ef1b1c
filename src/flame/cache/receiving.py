"""Payloads that arrive in pieces: into shared memory as long as there is some, else straight to disk."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from flame.cache.cache import ObjectCache, Room
from flame.cache.disk import Draft

_FIRST = 256 * 1024


class Receiving:
    """A payload that grows. `write` pieces, then `finish` it or `abandon` it. `size`: how long it will be, if known."""

    def __init__(self, cache: ObjectCache, *, table: bool, size: int = -1) -> None:
        self._cache = cache
        self._table = table
        self._got = 0
        self._room: Room | None = None
        self._draft: Draft | None = None
        self._grow(size if size >= 0 else _FIRST)

    def write(self, data: Any) -> int:
        """Append bytes, a memoryview or an Arrow buffer. Raises ExhaustedError."""
        view = memoryview(data).cast("B")
        if self._room is not None and self._got + len(view) > self._room.size:
            self._grow(max(2 * self._room.size, self._got + len(view)))
        if self._room is not None:
            self._cache.view(self._room)[self._got : self._got + len(view)] = view
        elif self._draft is not None:
            self._draft.write(view)
        self._got += len(view)
        return len(view)

    def finish(self) -> Room | Draft:
        """The whole payload, for ObjectCache.commit."""
        if self._draft is not None:
            return self._draft
        assert self._room is not None
        return self._cache.shrink(self._room, self._got)

    def abandon(self) -> None:
        """Forget what came."""
        if self._room is not None:
            self._cache.give_back(self._room)
        if self._draft is not None:
            self._draft.abandon()
        self._room = self._draft = None

    def _grow(self, size: int) -> None:
        old = self._room
        room = self._cache.reserve(size, table=self._table)
        if room is None:
            self._draft = self._cache.draft(table=self._table)
        if old is not None:
            have = self._cache.view(old)[: self._got]
            if room is not None:
                self._cache.view(room)[: self._got] = have
            elif self._draft is not None:
                self._draft.write(have)
            self._cache.give_back(old)
        self._room = room


class Sink:
    """A Receiving as a file that Arrow writes to."""

    def __init__(self, receiving: Receiving) -> None:
        self._receiving = receiving
        self.closed = False

    def write(self, data: Any) -> int:
        """Append."""
        return self._receiving.write(data)

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """The payload itself stays open."""
        self.closed = True


def stream_writer(receiving: Receiving, schema: pa.Schema) -> Any:
    """A writer of an Arrow IPC stream into a payload."""
    sink: Any = Sink(receiving)
    return pa.ipc.new_stream(pa.PythonFile(sink, "w"), schema)

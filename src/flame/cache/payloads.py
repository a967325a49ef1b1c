"""Payloads for readers: from memory, from disk, from the object store, wherever they are."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import NamedTuple

import pyarrow as pa

from flame.cache.arena import Arena
from flame.cache.blobs import Blob, Pin
from flame.cache.disk import Disk, GoneError, StoredFile
from flame.cache.eviction import Memory
from flame.cache.far import Far
from flame.cache.store import Reading, Versioned
from flame.model.errors import UnavailableError

_log = logging.getLogger("flame.cache")
_STRIPES = 64


class Loaded(NamedTuple):
    """A payload to read. `offset` in shared memory; None when it is only on disk, and `source` maps the file.

    `pin` keeps it there, so does `buffer`, which is not made before somebody wants it: clients of the node don't.
    """

    version: int
    size: int
    offset: int | None
    pin: Pin
    source: Arena | pa.Buffer

    @property
    def buffer(self) -> pa.Buffer:
        """The bytes."""
        if isinstance(self.source, Arena):
            return self.source.buffer(self.offset or 0, self.size, self.pin)
        return self.source

    def to_bytes(self) -> bytes:
        """A copy of the bytes."""
        if isinstance(self.source, Arena):
            return bytes(self.source.view(self.offset or 0, self.size))
        return self.source.to_pybytes()


class Content(NamedTuple):
    """What a get answers, in terms of `Reading`."""

    version: int
    born: int
    table: bool
    full: bool
    parts: tuple[Loaded, ...]


class Payloads:
    """Brings payloads to where they can be read. `lock` is the one of the cache."""

    def __init__(self, memory: Memory, disk: Disk | None, far: Far | None, lock: threading.Lock) -> None:
        self._memory = memory
        self._disk = disk
        self._far = far
        self._lock = lock
        self._loading = [threading.Lock() for _ in range(_STRIPES)]

    def pin(self, wanted: Reading) -> list[Pin]:
        """Keep the payloads of an answer where they are. Whoever calls holds the lock."""
        self._memory.settle()
        pins: list[Pin] = []
        for part in wanted.parts:
            part.blob.pins += 1
            self._memory.touch(part.blob)
            pins.append(Pin(part.blob, self._memory.ended))
        return pins

    def content(self, wanted: Reading, pins: list[Pin]) -> Content:
        """The answer with its payloads at hand. Raises GoneError, CorruptedError."""
        parts = tuple(self._load(part, pin) for part, pin in zip(wanted.parts, pins, strict=True))
        return Content(wanted.version, wanted.born, wanted.table, wanted.full, parts)

    def _load(self, part: Versioned, pin: Pin) -> Loaded:
        blob = part.blob
        if blob.offset is None:
            with self._loading[id(blob) % _STRIPES]:
                if blob.offset is None:
                    mapped = self._fetch(blob)
                    if mapped is not None:
                        return Loaded(part.version, blob.size, None, pin, mapped)
        offset = blob.offset + blob.lead if blob.offset is not None else 0
        return Loaded(part.version, blob.size, offset, pin, self._memory.arena)

    def _fetch(self, blob: Blob) -> pa.Buffer | None:
        """Bring a payload from disk into memory; if there is no room, its mapped file."""
        if blob.file is None or self._disk is None:
            raise GoneError("the copy of an object left memory")
        file = self._near(blob, blob.file)
        with self._lock:
            offset = self._memory.take(blob.room)
        if offset is None:
            return pa.py_buffer(self._disk.map(file)).slice(file.offset, blob.size)
        try:
            self._disk.read_into(file, self._memory.arena.view(offset + blob.lead, blob.size))
        except BaseException:
            with self._lock:
                self._memory.give(offset, blob.room)
            raise
        with self._lock:
            blob.offset = offset
            self._memory.hold(blob)
        return None

    def _near(self, blob: Blob, file: StoredFile) -> StoredFile:
        """The file of a payload on this disk, brought back if it is in the object store."""
        file.used = self._memory.takes
        if not file.remote:
            return file
        if self._far is None:
            raise UnavailableError(
                f"object {file.description.key!r} is in an object store", remedy="set cache.object_store again"
            )
        near = self._far.bring(file)
        near.used = self._memory.takes
        self._exchange(blob, file, near)
        self._far.forget(file)
        return near

    def _exchange(self, blob: Blob, old: StoredFile, new: StoredFile) -> None:
        """The payload has another file now; if its object went away meanwhile, neither is needed."""
        with self._lock:
            wanted = blob.file is old and not blob.dropped
            if wanted:
                blob.file = new
        if self._disk is not None and old.path.exists():
            self._disk.remove(old)
        if not wanted:
            self.remove(new)
            raise GoneError(f"object {old.description.key!r} was replaced")

    def send_far(self, blobs: Sequence[Blob], limit: int) -> None:
        """Send files to the object store, those not used for longest first, until the disk has `limit` bytes."""
        disk, far = self._disk, self._far
        if disk is None or far is None:
            return
        files = [(blob.file.used, index) for index, blob in enumerate(blobs) if blob.file and not blob.file.remote]
        sent = 0
        for _, index in sorted(files):
            blob, file = blobs[index], blobs[index].file
            if disk.used <= limit or file is None:
                break
            try:
                with self._loading[id(blob) % _STRIPES]:
                    self._exchange(blob, file, far.send(file))
                sent += 1
            except GoneError:
                continue  # deleted meanwhile
            except UnavailableError as error:
                _log.error("object_store_fails why=%r", error.message)
                break
        if sent:
            _log.info("files_sent_away count=%d", sent)

    def remove(self, file: StoredFile) -> None:
        """A file is not needed, wherever it is."""
        if self._disk is not None:
            self._disk.remove(file)
        if file.remote and self._far is not None:
            self._far.forget(file)

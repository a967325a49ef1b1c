"""The object cache without its doors: payloads in memory and on disk, and what may be done with them.

Everything here may be called from any thread. Payloads are written where nobody sees them and then become visible at
once; a key has a lock only for the moment in which its next version is decided and put on disk.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

from flame.cache.arena import Arena, rounded
from flame.cache.blobs import Blob
from flame.cache.copies import Copies
from flame.cache.disk import CorruptedError, Description, Disk, Draft, GoneError, StoredFile
from flame.cache.eviction import Memory
from flame.cache.far import Far
from flame.cache.payloads import Content, Payloads
from flame.cache.recovery import recover
from flame.cache.store import Object, Planned, Store
from flame.model.errors import FlameError, NotFoundError
from flame.objects.keys import ObjectKey
from flame.objects.messages import LEAD, CacheStatus, ObjectInfo, Options

_log = logging.getLogger("flame.cache")
_STRIPES = 64


class Room(NamedTuple):
    """Memory that a payload is being written into: `size` bytes behind `lead` unused ones."""

    offset: int
    lead: int
    size: int


class ObjectCache:
    """All objects of one cache. `session_quota`: bytes that isolated instances may store for one session. `retention`:
    seconds that objects outlive their session. `spill`: the disk is for what memory has no room for; otherwise all
    objects are on disk too."""

    def __init__(
        self,
        *,
        max_memory: int,
        disk: Disk | None = None,
        spill: bool = False,
        far: Far | None = None,
        max_disk: int | None = None,
        evict: bool = True,
        max_objects: int | None = None,
        quotas: dict[str, int] | None = None,
        session_quota: int | None = None,
        retention: float = 3600.0,
    ) -> None:
        self.arena = Arena(max_memory)
        self.memory = Memory(self.arena, evict=evict, max_objects=max_objects)
        self.disk = disk
        self._spill = spill
        self.retention = retention
        self.store = Store(quotas, None if disk is not None and evict else max_objects, session_quota)
        self._lock = threading.Lock()
        self.payloads = Payloads(self.memory, disk, far, self._lock)
        self.copies = Copies(self.memory, self.payloads, self._lock)
        self._max_disk = max_disk
        self._key_locks = [threading.Lock() for _ in range(_STRIPES)]
        self._corrupted: dict[str, str] = {}

    # --- writing ----------------------------------------------------------------------------------------------------

    def check(self, key: ObjectKey, size: int, options: Options) -> None:
        """Raise what `commit` would, as far as that can be told before the payload is here."""
        with self._lock:
            self._plan(key.to_key() or f"{key}/", size, options, time.time())

    def _plan(self, full: str, size: int, options: Options, now: float) -> Planned:
        return self.store.plan(
            full,
            size,
            options.expected,
            options.tenant,
            now,
            patch=options.patch,
            isolated=options.isolated,
        )

    def reserve(self, size: int, *, table: bool) -> Room | None:
        """Memory to write a payload into; None when there is none and the disk has to do. Raises ExhaustedError."""
        lead = 0 if table else LEAD
        with self._lock:
            offset = self.memory.take(lead + size)
            if offset is not None:
                return Room(offset, lead, size)
            if self.disk is None:
                raise self.memory.exhausted(lead + size)
        return None

    def view(self, room: Room) -> memoryview:
        """The writable bytes of a room."""
        return self.arena.view(room.offset + room.lead, room.size)

    def give_back(self, room: Room) -> None:
        """The room is not needed."""
        with self._lock:
            self.memory.give(room.offset, room.lead + room.size)

    def shrink(self, room: Room, size: int) -> Room:
        """Give the end of a room back."""
        kept, whole = rounded(room.lead + size), rounded(room.lead + room.size)
        if kept < whole:
            with self._lock:
                self.memory.give(room.offset + kept, whole - kept)
        return Room(room.offset, room.lead, size)

    def discard(self, payload: Room | Draft) -> None:
        """A written payload is not needed."""
        if isinstance(payload, Draft):
            payload.abandon()
        else:
            self.give_back(payload)

    def draft(self, *, table: bool) -> Draft:
        """A file to write a payload into. Raises ExhaustedError, also when the cache has no disk."""
        if self.disk is None:
            with self._lock:
                raise self.memory.exhausted(self.arena.size + 1)
        return self.disk.draft(0 if table else LEAD)

    def put_bytes(self, key: ObjectKey, data: bytes | memoryview, options: Options) -> tuple[str, int]:
        """Store a payload; its key and version. Raises FlameError."""
        room = self.reserve(len(data), table=options.table)
        if room is None:
            draft = self.draft(table=options.table)
            try:
                draft.write(memoryview(data))
            except FlameError:
                draft.abandon()
                raise
            return self.commit(key, draft, options)
        self.view(room)[:] = data
        return self.commit(key, room, options)

    def commit(self, key: ObjectKey, payload: Room | Draft, options: Options) -> tuple[str, int]:
        """Make a written payload the object of a key (of a new one under a prefix), or a patch of it.

        Its key and version. The payload is the cache's in any case. Raises FlameError.
        """
        full = (key if key.object_id is not None else key.with_generated_id()).to_key() or ""
        draft = payload if isinstance(payload, Draft) else None
        now = time.time()
        expires = now + options.ttl if options.ttl is not None else None
        try:
            with self._key_lock(full):
                with self._lock:
                    plan = self._plan(full, payload.size, options, now)
                if self.disk is not None and (draft is not None or not self._spill):
                    draft = draft or self._copy_to_disk(payload, self.disk)
                    file = self.disk.publish(draft, _describe(full, plan, options), expires)
                    draft = None
                else:
                    file = None
                with self._lock:
                    blob = self._blob(payload, file)
                    if options.patch:
                        self.store.patch(full, plan, blob)
                        freed: list[Blob] = []
                    else:
                        freed = self.store.put(full, plan, blob, table=options.table, expires=expires)
                        self._corrupted.pop(full, None)
                    files = self._free(freed)
                self._remove(files)
        except BaseException:
            self.discard(payload)
            if draft is not None:
                draft.abandon()
            raise
        return full, plan.version

    def _copy_to_disk(self, payload: Room | Draft, disk: Disk) -> Draft:
        assert isinstance(payload, Room)
        draft = disk.draft(payload.lead)
        try:
            draft.write(self.view(payload))
        except BaseException:
            draft.abandon()
            raise
        return draft

    def _blob(self, payload: Room | Draft, file: StoredFile | None) -> Blob:
        if isinstance(payload, Draft):
            return Blob(payload.size, payload.offset % 64, None, file)
        blob = Blob(payload.size, payload.lead, payload.offset, file)
        self.memory.hold(blob)
        return blob

    def delete(self, key: ObjectKey) -> None:
        """Delete what a key or prefix means; nothing is fine too."""
        with self._lock:
            keys = list(self.store.matching(key))
        for one in keys:
            self._delete_one(one)
        for one in [one for one in self._corrupted if key.matches_key(one)]:
            self._corrupted.pop(one, None)

    def _delete_one(self, key: str) -> None:
        with self._key_lock(key):
            with self._lock:
                files = self._free(self.store.take(key))
            self._remove(files)

    def _free(self, blobs: Sequence[Blob]) -> list[StoredFile]:
        for blob in blobs:
            self.memory.drop(blob)
        return [blob.file for blob in blobs if blob.file is not None]

    def _remove(self, files: Sequence[StoredFile]) -> None:
        for file in files:
            self.payloads.remove(file)

    # --- reading ----------------------------------------------------------------------------------------------------

    def read(self, full: str, known: int = 0, born: int = 0) -> Content:
        """What somebody lacks who has version `known` of a key. Raises NotFoundError, CorruptedError."""
        while True:
            with self._lock:
                why = self._corrupted.get(full)
                if why is not None:
                    raise CorruptedError(why, remedy="put the object again")
                wanted = self.store.read(full, known, born, time.time())
                pins = self.payloads.pin(wanted)
            try:
                return self.payloads.content(wanted, pins)
            except GoneError:
                continue  # it was replaced or deleted just now
            except CorruptedError as error:
                self._condemn(full, error)
                raise

    def _condemn(self, key: str, error: CorruptedError) -> None:
        """An object with a bad file is no more; who asks for it is told so until it is put again."""
        with self._key_lock(key), self._lock:
            if key in self.store.objects:
                files = self._free(self.store.take(key))
                self._remove(files)
                self._corrupted[key] = error.message

    def info(self, key: ObjectKey) -> ObjectInfo | None:
        """What there is under a key."""
        now = time.time()
        with self._lock:
            try:
                return _info(self.store.find(key.to_key() or "", now), now)
            except NotFoundError:
                return None

    def list(self, prefix: ObjectKey, after: str = "", limit: int = 1000) -> list[ObjectInfo]:
        """The objects under a prefix, by key."""
        now = time.time()
        with self._lock:
            return [_info(found, now) for found in self.store.list(prefix, after, limit, now)]

    def all(self) -> list[ObjectInfo]:
        """All objects."""
        now = time.time()
        with self._lock:
            return [_info(found, now) for found in self.store.objects.values()]

    # --- times ------------------------------------------------------------------------------------------------------

    def expire(self, key: ObjectKey, after: float | None) -> None:
        """Let an object go away after so many seconds; None: it stays. Raises NotFoundError."""
        full = key.to_key() or ""
        now = time.time()
        with self._key_lock(full):
            with self._lock:
                time_of_end = now + after if after is not None else None
                self.store.expire_at(full, time_of_end, now)
                file = self.store.objects[full].base.blob.file
            self._remember_time([(file, time_of_end)])

    def prefixes(self) -> list[ObjectKey]:
        """The sessions that objects are here of, as prefixes."""
        with self._lock:
            return [ObjectKey.from_prefix(prefix) for prefix in self.store.prefixes()]

    def belongs(self, prefix: ObjectKey, tenant: str) -> None:
        """The objects of a session count for this tenant, whatever clients say."""
        with self._lock:
            self.store.belongs(prefix.to_prefix(), tenant)

    def end_session(self, prefix: ObjectKey, after: float | None) -> None:
        """Let the objects of a session go away after so many seconds (None: the cache's retention)."""
        time_of_end = time.time() + (self.retention if after is None else after)
        with self._lock:
            keys = self.store.end_session(prefix.to_prefix(), time_of_end)
            found = [self.store.objects[key] for key in keys]
            files = [(one.base.blob.file, one.expires) for one in found]
        self._remember_time(files)

    def _remember_time(self, files: Sequence[tuple[StoredFile | None, float | None]]) -> None:
        for file, expires in files:
            if file is not None and self.disk is not None:
                try:
                    self.disk.set_expires(file, expires)
                except FileNotFoundError:
                    pass  # deleted, replaced or moved just now

    def sweep(self) -> None:
        """Remove what is over; called now and then."""
        now = time.time()
        with self._lock:
            self.memory.settle()
            due = self.store.due(now)
        for key in due:
            self._delete_one(key)
        if due:
            _log.info("objects_expired count=%d", len(due))

    def make_room_on_disk(self) -> None:
        """Send files to the object store as long as the disk has more than it should."""
        if self.disk is None or self._max_disk is None or self.disk.used <= self._max_disk:
            return
        with self._lock:
            blobs = [blob for one in self.store.objects.values() for blob in one.blobs()]
        self.payloads.send_far(blobs, self._max_disk)

    def trim(self) -> None:
        """Give unused memory back to the system."""
        with self._lock:
            self.memory.settle()
            self.arena.trim()

    def status(self, endpoint: str) -> CacheStatus:
        """What the cache holds."""
        with self._lock:
            self.memory.settle()
            return CacheStatus(
                endpoint=endpoint,
                objects=len(self.store.objects),
                bytes=self.store.bytes,
                memory=self.memory.used,
                max_memory=self.arena.size,
                leased=self.memory.leased,
                disk=self.disk.used if self.disk is not None else 0,
                stored_objects=sum(one.base.blob.file is not None for one in self.store.objects.values()),
                tenants=dict(self.store.used),
            )

    # --- start ------------------------------------------------------------------------------------------------------

    def recover(self) -> None:
        """Take up what is on disk. Raises FlameError when the folder can't be used."""
        if self.disk is None:
            return
        self.disk.open()
        stale = recover(self.disk, self.store)
        for broken in self.disk.broken:
            whole = self.store.objects.get(broken.key)
            if whole is None or broken.age > (whole.born, whole.version):  # else: what it held was replaced
                self._corrupted[broken.key] = broken.why
        self._remove(stale)
        if self.store.objects:
            _log.info("objects_recovered count=%d stale_files=%d", len(self.store.objects), len(stale))

    def close(self) -> None:
        """Give the folder up."""
        if self.disk is not None:
            self.disk.close()

    def _key_lock(self, key: str) -> threading.Lock:
        return self._key_locks[hash(key) % _STRIPES]


def _describe(key: str, plan: Planned, options: Options) -> Description:
    return Description(key, plan.version, plan.born, options.table, options.patch, plan.tenant)


def _info(found: Object, now: float) -> ObjectInfo:
    expires = found.expires - now if found.expires is not None else None
    return ObjectInfo(found.key, found.version, found.size, found.table, expires, len(found.patches))

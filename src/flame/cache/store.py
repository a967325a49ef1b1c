"""Which objects there are: versions, patches, times, quotas. Pure: no files, no clocks, no memory.

A method that takes payloads out of the store answers with them; whoever calls frees them.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import msgspec

from flame.cache.blobs import Blob
from flame.model.errors import ExhaustedError, InvalidArgumentError, InvalidStateError, NotFoundError
from flame.objects.keys import ObjectKey

MAX_PATCHES = 1000  # of one object; then it has to be written anew
DEFAULT_TENANT = "default"


class Versioned(NamedTuple):
    """One payload and the version that it made."""

    version: int
    blob: Blob


class Object(msgspec.Struct):
    """An object. `base_version` <= the versions of `patches`, which have no gaps. Times in seconds since 1970."""

    key: str
    born: int
    table: bool
    tenant: str
    base: Versioned
    patches: list[Versioned] = []
    expires: float | None = None
    origin: str = ""

    @property
    def version(self) -> int:
        """The current version."""
        return self.patches[-1].version if self.patches else self.base.version

    @property
    def size(self) -> int:
        """Bytes of base and patches."""
        return self.base.blob.size + sum(patch.blob.size for patch in self.patches)

    def blobs(self) -> Iterator[Blob]:
        """Base and patches."""
        yield self.base.blob
        for patch in self.patches:
            yield patch.blob


class Planned(NamedTuple):
    """What a payload about to be stored will be."""

    version: int
    born: int
    tenant: str


class Reading(NamedTuple):
    """The answer to a get: `parts` begin with the base when it is `full`, else they are the patches that lack."""

    version: int
    born: int
    table: bool
    full: bool
    parts: tuple[Versioned, ...]


class Store:
    """The objects of a cache by key."""

    def __init__(
        self,
        quotas: dict[str, int] | None = None,
        max_objects: int | None = None,
        session_quota: int | None = None,
    ) -> None:
        self.objects: dict[str, Object] = {}
        self.bytes = 0
        self.used: dict[str, int] = {}
        self._prefixes: dict[str, dict[str, None]] = {}
        self._tenants: dict[str, str] = {}  # of sessions, by prefix, as far as they are known
        self._ended: dict[str, float] = {}  # sessions that are over, and when their objects go
        self._by_session: dict[str, int] = {}  # bytes, by the session's id: also its parcels, which have another prefix
        self._quotas = quotas or {}
        self._session_quota = session_quota
        self._max_objects = max_objects
        self._last_born = 0
        self._times: list[tuple[float, str]] = []  # a heap of when objects go; stale entries are skipped

    # --- reading ----------------------------------------------------------------------------------------------------

    def find(self, key: str, now: float) -> Object:
        """Raises NotFoundError."""
        found = self.objects.get(key)
        if found is None or (found.expires is not None and found.expires <= now):
            raise NotFoundError(f"object {key!r} not found", remedy="it may have been deleted, or its time may be over")
        return found

    def read(self, key: str, known: int, born: int, now: float) -> Reading:
        """What somebody lacks who has version `known` (0: nothing) of the object `born` (0: of whichever it is)."""
        return reading(self.find(key, now), known, born)

    def list(self, prefix: ObjectKey, after: str, limit: int, now: float) -> list[Object]:
        """The first `limit` objects under a prefix whose keys come after `after`, by key."""
        keys = sorted(key for key in self.matching(prefix) if key > after)
        found = (self.objects[key] for key in keys)
        return [one for one in found if one.expires is None or one.expires > now][:limit]

    def matching(self, key: ObjectKey) -> Iterable[str]:
        """The keys that a key or prefix means."""
        full = key.to_key()
        if full is not None:
            return [full] if full in self.objects else []
        if not key.is_all_sessions():
            return list(self._prefixes.get(key.to_prefix(), ()))
        start = f"{key.app_name}/"
        return [one for prefix, keys in self._prefixes.items() if prefix.startswith(start) for one in keys]

    # --- writing ----------------------------------------------------------------------------------------------------

    def plan(
        self,
        key: str,
        size: int,
        expected: int | None,
        tenant: str,
        now: float,
        *,
        patch: bool,
        isolated: bool = False,
    ) -> Planned:
        """What storing so many bytes under a key would make.

        Raises NotFoundError (a patch of nothing), InvalidStateError (the version is not the expected one),
        InvalidArgumentError (too many patches), ExhaustedError (a quota or the number of objects). The quota of a
        session is for those that are `isolated`.
        """
        found = self.objects.get(key)
        if found is not None and found.expires is not None and found.expires <= now:
            found = None
        current = found.version if found is not None else 0
        if patch and found is None:
            self.find(key, now)
        if expected is not None and expected != current:
            raise InvalidStateError(
                f"object {key!r} has version {current}, not {expected}", remedy="get it again and repeat the change"
            )
        if patch and found is not None and len(found.patches) >= MAX_PATCHES:
            raise InvalidArgumentError(
                f"object {key!r} has {MAX_PATCHES} patches", remedy="update it: that begins anew with a whole object"
            )
        if found is None and self._max_objects is not None and len(self.objects) >= self._max_objects:
            raise ExhaustedError(
                f"the cache has {self._max_objects} objects in memory and no disk for more",
                remedy="delete some, raise cache.eviction.max_objects, or set cache.storage",
            )
        said = found.tenant if found is not None and not tenant else tenant or DEFAULT_TENANT
        tenant = self._tenants.get(key.rpartition("/")[0], said)
        more = size - (found.size if found is not None and not patch else 0)
        self._check_quota(tenant, more)
        if isolated:
            self._check_session(_session_of(key), more)
        if found is not None:
            return Planned(current + 1, found.born, found.tenant if patch else tenant)
        self._last_born = max(int(now * 1e6), self._last_born + 1)
        return Planned(1, self._last_born, tenant)

    def _check_quota(self, tenant: str, more: int) -> None:
        quota = self._quotas.get(tenant)
        used = self.used.get(tenant, 0)
        if quota is not None and more > 0 and used + more > quota:
            raise ExhaustedError(
                f"tenant {tenant!r} has {used} of {quota} bytes in the cache, {more} more don't fit",
                remedy=f"delete objects, or raise cache.quotas.{tenant}",
            )

    def _check_session(self, session_id: str, more: int) -> None:
        used = self._by_session.get(session_id, 0)
        if self._session_quota is not None and more > 0 and used + more > self._session_quota:
            raise ExhaustedError(
                f"session {session_id!r} has {used} bytes in the cache, and its isolated instances may fill"
                f" {self._session_quota}; {more} more don't fit",
                remedy="delete objects of the session, or raise cache.session_quota",
            )

    def belongs(self, prefix: str, tenant: str) -> None:
        """A session is this tenant's: so are its objects from now on, those that are here and those that come, whatever
        clients say. They are counted even if its quota does not allow for them; it allows for no more then."""
        if self._tenants.get(prefix) == tenant:
            return
        self._tenants[prefix] = tenant
        for key in self._prefixes.get(prefix, ()):
            found = self.objects[key]
            self._count(found, -found.size)
            found.tenant = tenant
            self._count(found, found.size)

    def put(self, key: str, plan: Planned, blob: Blob, *, table: bool, expires: float | None) -> list[Blob]:
        """Make this the object, as planned; what it replaces."""
        freed = self.take(key)
        prefix = key.rpartition("/")[0]
        ends = [time for time in (expires, self._ended.get(prefix)) if time is not None]
        self._add(
            Object(key, plan.born, table, plan.tenant, Versioned(plan.version, blob), [], min(ends, default=None))
        )
        return freed

    def patch(self, key: str, plan: Planned, blob: Blob) -> None:
        """Append a patch, as planned."""
        found = self.objects[key]
        found.patches.append(Versioned(plan.version, blob))
        self._count(found, blob.size)

    def adopt(self, found: Object) -> None:
        """An object that was on disk when the cache started."""
        self._last_born = max(self._last_born, found.born)
        self._add(found)

    def _add(self, made: Object) -> None:
        self.objects[made.key] = made
        self._prefixes.setdefault(made.key.rpartition("/")[0], {})[made.key] = None
        self._count(made, made.size)
        self._remember(made)

    def take(self, key: str) -> list[Blob]:
        """Take an object out, if it is there; its payloads."""
        found = self.objects.pop(key, None)
        if found is None:
            return []
        prefix = key.rpartition("/")[0]
        keys = self._prefixes[prefix]
        del keys[key]
        if not keys:
            del self._prefixes[prefix]
        self._count(found, -found.size)
        return list(found.blobs())

    # --- times ------------------------------------------------------------------------------------------------------

    def expire_at(self, key: str, time: float | None, now: float) -> None:
        """When an object goes away; None: it stays. Raises NotFoundError."""
        found = self.find(key, now)
        found.expires = time
        self._remember(found)

    def end_session(self, prefix: str, time: float) -> list[str]:
        """Let all objects of a session go at that time, also those that still come; the keys of those there are."""
        self._ended[prefix] = time
        keys = list(self._prefixes.get(prefix, ()))
        for key in keys:
            found = self.objects[key]
            found.expires = time if found.expires is None else min(found.expires, time)
            self._remember(found)
        return keys

    def prefixes(self) -> list[str]:
        """Of all objects that are here, each once."""
        return list(self._prefixes)

    def due(self, now: float) -> list[str]:
        """The keys of objects whose time is over."""
        for prefix in [prefix for prefix, time in self._ended.items() if time <= now - 3600]:
            del self._ended[prefix]
            self._tenants.pop(prefix, None)
        keys: dict[str, None] = {}
        while self._times and self._times[0][0] <= now:
            key = heapq.heappop(self._times)[1]
            found = self.objects.get(key)
            if found is not None and found.expires is not None and found.expires <= now:
                keys[key] = None
        return list(keys)

    def _remember(self, found: Object) -> None:
        if found.expires is not None:
            heapq.heappush(self._times, (found.expires, found.key))

    def _count(self, found: Object, size: int) -> None:
        self.bytes += size
        _add(self.used, found.tenant, size)
        _add(self._by_session, _session_of(found.key), size)


def _add(counts: dict[str, int], name: str, size: int) -> None:
    count = counts.get(name, 0) + size
    if count:
        counts[name] = count
    else:
        counts.pop(name, None)


def _session_of(key: str) -> str:
    return key.split("/")[1]


def reading(found: Object, known: int, born: int) -> Reading:
    """What of an object somebody lacks who has version `known` of it."""
    if born not in (0, found.born):
        known = 0
    if known and known == found.version:
        return Reading(found.version, found.born, found.table, False, ())
    if known and found.base.version <= known < found.version:
        parts = tuple(patch for patch in found.patches if patch.version > known)
        return Reading(found.version, found.born, found.table, False, parts)
    return Reading(found.version, found.born, found.table, True, (found.base, *found.patches))

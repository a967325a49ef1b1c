"""Objects in the cache: put, get, change, delete.

A client on the node of its cache reads objects where they lie in shared memory and writes them there; elsewhere they
come over Arrow Flight and are remembered, up to so many bytes. What `get` returns is read-only (arrays, tables) or the
caller's own: changing it never changes what somebody else gets.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Self

import msgspec

from flame.config import TlsConfig, load_context
from flame.config.context import DEFAULT_CLIENT_CACHE_ENDPOINT
from flame.model.errors import InvalidArgumentError, PermissionDeniedError, UnavailableError
from flame.model.object_keys import check_key
from flame.objects import codecs
from flame.objects import messages as m
from flame.objects.fetched import Fetched
from flame.objects.files import download_to, file_payload, file_pieces
from flame.objects.held import DEFAULT_BYTES, Held, joined
from flame.objects.keys import ObjectKey, ObjectRef
from flame.objects.links import Link
from flame.objects.nearby import cache_of_user
from flame.objects.remote import location, same_cache

Deserializer = Callable[[Any, list[Any]], Any]


class ObjectClient:
    """A client of object caches; may be used by several threads.

    `endpoint` (`grpc://` or `grpcs://` HOST:PORT, `unix:PATH`, in a sandbox `relay:PATH`) is the cache that new objects
    go to, by default that of this user's context, else that of the cluster on this machine; references are followed to
    their own caches, through that one where it knows them. `cache_bytes`: what is remembered of objects of other nodes.
    `shared_memory` False: stream on the cache's own node too. Methods raise FlameError: InvalidArgumentError (which is
    a ValueError for keys), NotFoundError, InvalidStateError (another version), ExhaustedError, UnavailableError, in a
    sandbox PermissionDeniedError.
    """

    def __init__(
        self,
        endpoint: str | None = None,
        *,
        tls: TlsConfig | None = None,
        cache_bytes: int = DEFAULT_BYTES,
        shared_memory: bool = True,
    ) -> None:
        configured = load_context().cache
        if endpoint is None:
            endpoint = cache_of_user() or DEFAULT_CLIENT_CACHE_ENDPOINT
        if configured is not None and endpoint == configured.endpoint:
            tls = tls or configured.tls
        self.endpoint = location(endpoint)
        self._tls = tls
        self._held = Held(cache_bytes)
        self._shared_memory = shared_memory
        self._lock = threading.Lock()
        self._links: dict[str, Link] = {}
        self._pid = os.getpid()

    def close(self) -> None:
        """End the connections. Arrays and tables that were got stay valid."""
        with self._lock:
            links, self._links = self._links, {}
        for link in links.values():
            link.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- writing ----------------------------------------------------------------------------------------------------

    def put(
        self, key_or_prefix: str, value: Any, *, expected: int | None = None, ttl: float | None = None, tenant: str = ""
    ) -> ObjectRef:
        """Store an object under a key, or under a new one below `APPLICATION/SESSION`.

        `expected`: only if the current version is this one (0: only if there is none yet). `ttl`: seconds until it goes
        away. `tenant`: whose quota it counts in.
        """
        key = _writable(key_or_prefix)
        return self._put(self._link(self.endpoint), key, value, m.Options(expected, ttl, tenant))

    def update(self, ref: ObjectRef, value: Any, *, expected: int | None = None, ttl: float | None = None) -> ObjectRef:
        """Replace an object and its patches. `expected=ref.version` refuses to overwrite what somebody else wrote."""
        key = ObjectKey.from_key(_key_of(ref))
        return self._put(self._link_of(ref), key, value, m.Options(expected, ttl))

    def patch(self, ref: ObjectRef, delta: Any, *, expected: int | None = None) -> ObjectRef:
        """Append a patch to an object; its base stays as it is."""
        key = ObjectKey.from_key(_key_of(ref))
        payload = codecs.encode_patch(delta)
        link = self._link_of(ref)
        stored = link.put(str(key), payload, m.Options(expected, patch=True), again=False)
        self._held.forget(key)
        return stored

    def upload(self, key_or_prefix: str, path: str | os.PathLike[str], *, ttl: float | None = None) -> ObjectRef:
        """Store a file as it is, of any size. Raises FileNotFoundError."""
        key = _writable(key_or_prefix)
        source = Path(path)
        size = source.stat().st_size
        pieces = partial(file_pieces, source, size)
        options = m.Options(ttl=ttl, size=size)
        stored = self._link(self.endpoint).upload(str(key), file_payload(source, size), pieces, options)
        self._held.forget(key)
        return stored

    def _put(self, link: Link, key: ObjectKey, value: Any, options: m.Options) -> ObjectRef:
        payload = codecs.encode(value)
        stored = link.put(str(key), payload, options, again=options.expected is None)
        if key.object_id is not None:
            self._held.forget(key)
        return stored

    # --- reading ----------------------------------------------------------------------------------------------------

    def get(self, ref: ObjectRef, deserializer: Deserializer | None = None) -> Any:
        """The object. With patches, `deserializer(base, patches)` says what it is; without one it is the base.

        `ref.version` is not looked at, except that 0 fetches everything anew.
        """
        check_key(_key_of(ref))
        fetched = self._fetch(ref)
        base = codecs.decode(fetched.parts[0].payload, table=fetched.table)
        if deserializer is None:
            return base
        return deserializer(base, [codecs.decode(part.payload, table=False) for part in fetched.parts[1:]])

    def download(self, ref: ObjectRef, path: str | os.PathLike[str]) -> None:
        """Write an object's payload to a file, which is whole or not there. Folders are made."""
        check_key(_key_of(ref))
        link = self._link(ref.endpoint)
        origin = self._nearest(location(ref.endpoint))[1] if link.relayed else ""
        download_to(Path(path), lambda write: link.download(ref.key, write, origin))

    def _fetch(self, ref: ObjectRef) -> Fetched:
        place = location(ref.endpoint)
        link, origin = self._nearest(place)
        known = self._held.find(place, ref.key) if ref.version and self._held.bytes else None
        for _ in range(2):
            version, born = (known.version, known.born) if known is not None else (0, 0)
            answer = link.get(ref.key, version, born, origin)
            whole = joined(known, answer)
            if whole is not None:
                if not whole.shared:
                    self._held.keep(place, ref.key, whole)
                return whole
            known = None
        raise UnavailableError(f"object {ref.key!r} changes quicker than it can be read")

    def _nearest(self, place: str) -> tuple[Link, str]:
        """Through whom a reference is followed, and what to tell them."""
        link = self._link(place)
        if link.relayed:
            return link, "" if place == self.endpoint else place
        if place != self.endpoint and place in self._link(self.endpoint).peers():
            return self._link(self.endpoint), place
        return link, ""

    # --- everything else --------------------------------------------------------------------------------------------

    def delete(self, target: ObjectRef | str) -> None:
        """Delete an object, or all of `APPLICATION/SESSION` or `APPLICATION/*`. Nothing there is fine."""
        key = ObjectKey.from_path(target if isinstance(target, str) else _key_of(target))
        link = self._link(self.endpoint) if isinstance(target, str) else self._link_of(target)
        link.call("DELETE", str(key).encode())
        self._held.forget(key)

    def delete_many(self, refs: Iterable[ObjectRef]) -> None:
        """Delete objects by reference, in as few requests as there are caches. Those that are gone are fine."""
        by_cache: dict[Link, list[str]] = {}
        for ref in refs:
            key = str(ObjectKey.from_key(_key_of(ref)))
            by_cache.setdefault(self._link_of(ref), []).append(key)
        for link, keys in by_cache.items():
            link.call("DELETE_MANY", msgspec.json.encode(m.KeysRequest(keys)))
            for key in keys:
                self._held.forget(ObjectKey.from_key(key))

    def exists(self, target: ObjectRef | str) -> m.ObjectInfo | None:
        """Version and size of an object, None when there is none."""
        key, link = self._target(target)
        return self._ask(link, "EXISTS", m.KeyRequest(str(key)), m.ObjectInfo | None)

    def list(self, prefix: str, *, page: int = 1000) -> Iterator[m.ObjectInfo]:
        """The objects of `APPLICATION/SESSION` or `APPLICATION/*` in this client's cache, by key; they are asked for in
        pages of so many."""
        key = ObjectKey.from_path(prefix)
        page = min(max(page, 1), m.MAX_LISTED)
        after = ""
        while True:
            request = m.KeyRequest(str(key), after, page)
            infos = self._ask(self._link(self.endpoint), "LIST", request, list[m.ObjectInfo])
            yield from infos
            if len(infos) < page:
                return
            after = infos[-1].key

    def expire(self, target: ObjectRef | str, after: float | None) -> None:
        """Let an object go away after so many seconds; None: it stays."""
        key, link = self._target(target)
        link.call("TTL", msgspec.json.encode(m.TtlRequest(str(key), after)))

    def end_session(self, prefix: str, after: float | None = None) -> None:
        """Let all objects of `APPLICATION/SESSION` go away after so many seconds (None: as the cache is told)."""
        request = m.TtlRequest(ObjectKey.from_prefix(prefix).to_prefix(), after)
        self._link(self.endpoint).call("END_SESSION", msgspec.json.encode(request))

    def status(self) -> m.CacheStatus:
        """What this client's cache holds."""
        return msgspec.json.decode(self._link(self.endpoint).call("STAT", b""), type=m.CacheStatus)

    def _target(self, target: ObjectRef | str) -> tuple[ObjectKey, Link]:
        if isinstance(target, str):
            return ObjectKey.from_key(target), self._link(self.endpoint)
        return ObjectKey.from_key(_key_of(target)), self._link_of(target)

    def _ask(self, link: Link, action: str, request: msgspec.Struct, kind: Any) -> Any:
        return msgspec.json.decode(link.call(action, msgspec.json.encode(request)), type=kind)

    def _link_of(self, ref: ObjectRef) -> Link:
        """The way to the cache that has an object. Raises PermissionDeniedError where that is out of reach."""
        link = self._link(ref.endpoint)
        if link.relayed and not same_cache(ref.endpoint, (self.endpoint, link.endpoint())):
            raise PermissionDeniedError(
                f"{ref.key!r} is in the cache at {ref.endpoint}; from a sandbox only objects of the node's own cache "
                "can be changed"
            )
        return link

    def _link(self, endpoint: str) -> Link:
        place = self.endpoint if self.endpoint.startswith(m.RELAY) else location(endpoint)
        link = self._links.get(place)
        if link is not None and self._pid == os.getpid():
            return link
        with self._lock:
            if self._pid != os.getpid():
                self._links = {place: link.after_fork() for place, link in self._links.items()}
                self._pid = os.getpid()
            link = self._links.get(place)
            if link is None:
                link = self._links[place] = Link(place, self._tls, shared_memory=self._shared_memory)
            return link


def end_session(endpoint: str, prefix: str, after: float | None = None, *, tls: TlsConfig | None = None) -> None:
    """Let all objects of `APPLICATION/SESSION` at a cache go away; for whoever closes sessions and has no client."""
    with ObjectClient(endpoint, tls=tls) as client:
        client.end_session(prefix, after)


def _key_of(ref: ObjectRef) -> str:
    key: object = getattr(ref, "key", None)
    if not isinstance(key, str):
        raise InvalidArgumentError(
            f"{ref!r:.200} is no reference to an object",
            remedy="give what put returned, or objects.ObjectRef(client.endpoint, key)",
        )
    return key


def _writable(key_or_prefix: str) -> ObjectKey:
    key = ObjectKey.from_path(key_or_prefix)
    if key.is_all_sessions():
        raise InvalidArgumentError(f"can't store under {key}", remedy="'*' is for deleting and listing")
    return key

"""The way to one cache: shared memory where it is on this node, Flight else."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import msgspec

from flame.model.errors import FlameError, UnavailableError
from flame.objects import messages as m
from flame.objects.codecs import Payload
from flame.objects.fetched import Fetched
from flame.objects.keys import ObjectRef
from flame.objects.remote import RemoteClient, location
from flame.objects.shared import SharedClient

if TYPE_CHECKING:
    from flame.config import TlsConfig

T = TypeVar("T")


class Link:
    """Connections to the cache at a place, made when they are needed. May be used by several threads."""

    def __init__(self, place: str, tls: TlsConfig | None) -> None:
        self.place = place
        self._tls = tls
        self._lock = threading.Lock()
        self._remote: RemoteClient | None = None
        self._shared: SharedClient | None = None
        self._door: m.LocalDoor | None = None

    def close(self) -> None:
        """End the connections; shared memory that is still read keeps its own."""
        with self._lock:
            remote, self._remote, self._shared, self._door = self._remote, None, None, None
        if remote is not None:
            remote.close()

    def peers(self) -> frozenset[str]:
        """The places of other caches whose objects this one fetches."""
        self._try_shared()
        return frozenset(location(peer) for peer in self._door.peers) if self._door is not None else frozenset()

    def remote(self) -> RemoteClient:
        """The Flight connection."""
        with self._lock:
            return self._flight()

    def put(self, key: str, payload: Payload, options: m.Options, *, again: bool) -> ObjectRef:
        """Store a payload; `again`: storing it twice does no harm, so a lost connection is no reason to give up."""
        stored = self.put_shared(key, payload, options, again=again)
        return stored or self.remote().put(key, payload, options)

    def put_shared(self, key: str, payload: Payload, options: m.Options, *, again: bool = True) -> ObjectRef | None:
        """Store it through shared memory; None where there is none, or not enough."""

        def put(shared: SharedClient) -> ObjectRef | None:
            stored = shared.put(key, payload, options)
            return ObjectRef(shared.endpoint, stored.key, stored.version) if stored is not None else None

        return self._with_shared(put, again=again)

    def get(self, key: str, version: int = 0, born: int = 0, origin: str = "") -> Fetched:
        """What the cache answers."""
        shared = self.get_shared(key, version, born, origin)
        return shared or self.remote().get(key, version, born, origin)

    def get_shared(self, key: str, version: int = 0, born: int = 0, origin: str = "") -> Fetched | None:
        """The same from shared memory; None where there is none, or the object is not in it."""
        return self._with_shared(lambda shared: shared.get(key, version, born, origin), again=True)

    def call(self, action: str, body: bytes) -> bytes:
        """Run an action."""
        answer = self._with_shared(lambda shared: shared.call(action, body), again=True)
        return answer if answer is not None else self.remote().call(action, body)

    def _with_shared(self, action: Callable[[SharedClient], T | None], *, again: bool) -> T | None:
        shared = self._try_shared()
        if shared is None:
            return None
        try:
            return action(shared)
        except UnavailableError:
            if not again or shared.usable:
                raise
        shared = self._try_shared()  # the cache was started anew, or it is gone
        return action(shared) if shared is not None else None

    def _try_shared(self) -> SharedClient | None:
        shared = self._shared
        if shared is not None and shared.usable:
            return shared
        with self._lock:
            if self._shared is None or not self._shared.usable:
                if self._shared is not None or self._door is None:
                    self._shared = None
                    self._door = self._ask_for_door()
                if self._door.path and self._door.uid == os.getuid():
                    with contextlib.suppress(OSError, FlameError):
                        self._shared = SharedClient(self._door)
            return self._shared

    def _ask_for_door(self) -> m.LocalDoor:
        try:
            return msgspec.json.decode(self._flight().call("LOCAL", b""), type=m.LocalDoor)
        except UnavailableError:
            raise
        except FlameError:
            return m.LocalDoor()  # a cache of another make: Flight only

    def _flight(self) -> RemoteClient:
        if self._remote is None:
            self._remote = RemoteClient(self.place, self._tls)
        return self._remote

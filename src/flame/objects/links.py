"""The way to one cache: shared memory where it is on this node, else plain TCP where that is allowed, else Flight. In a
sandbox there is one way, the relay: a socket at which the executor manager passes on what is allowed there."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Generator, Iterable
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

import msgspec

from flame.model.errors import FlameError, UnavailableError
from flame.objects import messages as m
from flame.objects.codecs import Payload
from flame.objects.fetched import Fetched
from flame.objects.keys import ObjectRef
from flame.objects.remote import RemoteClient, location
from flame.objects.shared import SharedClient
from flame.objects.streams import StreamClient, UnsentError

if TYPE_CHECKING:
    from flame.config import TlsConfig

T = TypeVar("T")
_left_behind: list[object] = []  # connections of the process that forked this one; ending them would disturb it


class Link:
    """Connections to the cache at a place, made when they are needed. May be used by several threads."""

    def __init__(self, place: str, tls: TlsConfig | None, *, shared_memory: bool = True) -> None:
        self.place = place
        self._tls = tls
        self.relayed = place.startswith(m.RELAY)
        self._here = place.startswith(m.UNIX)
        self._shared_memory = shared_memory or self._here
        self._lock = threading.Lock()  # of whoever makes a connection
        self._closed = False
        self._remote: RemoteClient | None = None
        self._shared: SharedClient | None = None
        self._stream: StreamClient | None = None
        self._door: m.LocalDoor | None = None

    def close(self) -> None:
        """End the connections, and what is under way over a network; shared memory that is still read keeps its own.

        It waits for nobody: a connection that is just being made is ended by who makes it.
        """
        self._closed = True
        self._end()

    def _end(self) -> None:
        remote, stream, self._remote, self._stream = self._remote, self._stream, None, None
        self._shared = self._door = None
        if remote is not None:
            remote.close()
        if stream is not None:
            stream.close()

    @contextlib.contextmanager
    def _connecting(self) -> Generator[None]:
        """One at a time makes connections. Raises UnavailableError when the link was closed."""
        with self._lock:
            try:
                self._check_open()
                yield
            finally:
                if self._closed:
                    self._end()
            self._check_open()

    def _check_open(self) -> None:
        if self._closed:
            raise UnavailableError(f"the connection to the cache at {self.place} was closed here")

    def after_fork(self) -> Link:
        """A link of its own for a process that was forked, to the same place. Connections don't survive a fork.

        It knows the door already, since gRPC does not work in a fork of a process that used it.
        """
        link = Link(self.place, self._tls, shared_memory=self._shared_memory)
        link._door = self._door
        _left_behind.append(self)
        return link

    def endpoint(self) -> str:
        """What the cache calls itself in references. Raises FlameError."""
        if self.relayed:
            return self._through_relay(lambda relay: relay.endpoint, again=True)
        return msgspec.json.decode(self.call("STAT", b""), type=m.CacheStatus).endpoint

    def peers(self) -> frozenset[str]:
        """The places of other caches whose objects this one fetches."""
        self._try_shared()
        return frozenset(location(peer) for peer in self._door.peers) if self._door is not None else frozenset()

    def remote(self) -> RemoteClient:
        """The Flight connection."""
        with self._connecting():
            return self._flight()

    def put(self, key: str, payload: Payload, options: m.Options, *, again: bool) -> ObjectRef:
        """Store a payload; `again`: storing it twice does no harm, so a lost connection is no reason to give up."""
        if self.relayed:
            return self._through_relay(lambda relay: _ref(relay, relay.put(key, payload, options)), again=again)
        stored = self.put_shared(key, payload, options, again=again)
        if stored is not None:
            return stored
        sent = self._with_stream(lambda stream: stream.put(key, payload, options), again=again)
        if sent is not None:
            return ObjectRef(self.place, sent.key, sent.version)
        return self.remote().put(key, payload, options)

    def put_shared(self, key: str, payload: Payload, options: m.Options, *, again: bool = True) -> ObjectRef | None:
        """Store it through shared memory; None where there is none, or not enough."""

        def put(shared: SharedClient) -> ObjectRef | None:
            stored = shared.put(key, payload, options)
            return ObjectRef(shared.endpoint, stored.key, stored.version) if stored is not None else None

        return self._with_shared(put, again=again)

    def upload(
        self, key: str, payload: Payload, pieces: Callable[[], Iterable[bytes]], options: m.Options
    ) -> ObjectRef:
        """Store a payload that may be too large for memory: whichever of its two forms fits."""
        if self.relayed:
            return self._through_relay(lambda relay: _ref(relay, relay.upload(key, pieces(), options)), again=True)
        return self.put_shared(key, payload, options) or self.remote().upload(key, pieces(), options)

    def download(self, key: str, write: Callable[[memoryview], object], origin: str = "") -> None:
        """Hand the base of an object to `write`, piece by piece."""
        if self.relayed:
            self._through_relay(lambda relay: relay.download(key, write, origin), again=False)
            return
        shared = self.get_shared(key, origin=origin)
        if shared is not None:
            write(memoryview(shared.parts[0].payload))
        else:
            self.remote().download(key, write)

    def get(self, key: str, version: int = 0, born: int = 0, origin: str = "") -> Fetched:
        """What the cache answers."""
        if self.relayed:
            return self._through_relay(lambda relay: relay.get(key, version, born, origin), again=True)
        fetched = self.get_shared(key, version, born, origin)
        if fetched is None:
            fetched = self._with_stream(lambda stream: stream.get(key, version, born, origin), again=True)
        return fetched or self.remote().get(key, version, born, origin)

    def get_shared(self, key: str, version: int = 0, born: int = 0, origin: str = "") -> Fetched | None:
        """The same from shared memory; None where there is none, or the object is not in it."""
        return self._with_shared(lambda shared: shared.get(key, version, born, origin), again=True)

    def call(self, action: str, body: bytes) -> bytes:
        """Run an action."""
        if self.relayed:
            return self._through_relay(lambda relay: relay.call(action, body), again=True)
        answer = self._with_shared(lambda shared: shared.call(action, body), again=True)
        return answer if answer is not None else self.remote().call(action, body)

    def _through_relay(self, action: Callable[[StreamClient], T], *, again: bool) -> T:
        """In a sandbox. Raises UnavailableError when the connection breaks, with `again` when it does so twice."""
        if self.place == m.RELAY_LINK:
            raise UnavailableError(
                "no socket reaches this sandbox, and only the link of a service carries objects",
                remedy="make it a service (flame.run), or use isolation process",
            )
        while True:
            try:
                with self._connecting():
                    stream = self._stream
                    if stream is None:
                        stream = self._stream = StreamClient(self.place.removeprefix(m.RELAY))
                return action(stream)
            except (FileNotFoundError, ConnectionRefusedError) as error:
                raise UnavailableError(f"nothing passes on to the object cache here: {error}") from error
            except (OSError, EOFError) as error:
                self._check_open()
                if not again and not isinstance(error, UnsentError):
                    raise UnavailableError(f"the connection to the object cache broke: {error}") from error
                again = False

    def _with_shared(self, action: Callable[[SharedClient], T | None], *, again: bool) -> T | None:
        shared = self._try_shared()
        if shared is not None and not again and not shared.alive():
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

    def _with_stream(self, action: Callable[[StreamClient], T], *, again: bool) -> T | None:
        """Over plain TCP; None where there is no such way, or it broke: Flight does it, or says what is wrong."""
        with self._connecting():
            door = self._door = self._door or self._ask_for_door()
            stream = self._stream
            if stream is None and door.port:
                try:
                    address = (urlsplit(self.place).hostname or "", door.port)
                    stream = self._stream = StreamClient(address, door.token)
                except (OSError, EOFError, FlameError):
                    self._door = msgspec.structs.replace(door, port=0)
        if stream is None:
            return None
        try:
            return action(stream)
        except (OSError, EOFError) as error:
            with self._connecting():
                self._stream = self._door = None
            if not again and not isinstance(error, UnsentError):
                raise UnavailableError(f"the connection to the cache at {self.place} broke: {error}") from error
        return None

    def _try_shared(self) -> SharedClient | None:
        shared = self._shared
        if shared is not None and shared.usable:
            return shared
        with self._connecting():
            shared = self._shared
            if shared is not None and not shared.usable:
                shared = self._door = None  # the cache was started anew, or it is gone
            if shared is None:
                shared = self._shared = self._enter()
            return shared

    def _enter(self) -> SharedClient | None:
        """Through the door that is known, or the one that the cache names now; None when this is another node."""
        known = self._door is not None
        door = self._door = self._door or self._ask_for_door()
        if not self._shared_memory or not door.path or door.uid != os.getuid():
            return None
        try:
            return SharedClient(door)
        except (OSError, FlameError):
            self._door = None if known or self._here else msgspec.structs.replace(door, path="")
        return self._enter() if known else None

    def _ask_for_door(self) -> m.LocalDoor:
        if self._here:
            return m.LocalDoor(self.place.removeprefix(m.UNIX), "", os.getuid())
        fresh = self._remote is None
        try:
            return msgspec.json.decode(self._flight().call("LOCAL", b""), type=m.LocalDoor)
        except UnavailableError:
            if fresh or self._closed:
                raise
            # Connections to a cache that was away pause before they try again; a new one does not.
            self._remote = None
            return self._ask_for_door()
        except FlameError:
            return m.LocalDoor()  # a cache of another make: Flight only

    def _flight(self) -> RemoteClient:
        remote = self._remote
        if remote is None:
            remote = self._remote = RemoteClient(self.place, self._tls)
        return remote


def _ref(client: StreamClient, stored: m.Stored) -> ObjectRef:
    return ObjectRef(client.endpoint, stored.key, stored.version)

"""A cache with its doors open."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from flame.cache.actions import Actions
from flame.cache.cache import ObjectCache
from flame.cache.disk import Disk
from flame.cache.dropped import Dropped
from flame.cache.far import Far
from flame.cache.local_server import LocalServer
from flame.cache.payloads import Content
from flame.cache.replication import Replicas
from flame.cache.server import CacheServer
from flame.cache.sessions import Sessions
from flame.cache.settings import CacheSettings
from flame.cache.stream_server import StreamServer
from flame.cache.visitors import Tokens
from flame.model.errors import InvalidConfigError, NotFoundError, UnavailableError
from flame.objects.keys import ObjectKey
from flame.objects.messages import UNIX, GetTicket, LocalDoor, flight_beside

_log = logging.getLogger("flame.cache")
_FOLDER = "flame-cache-"
QUIET = 30.0  # seconds without a request until unused memory goes back to the system


class Running:
    """One cache: its objects, the Flight server and the door for clients of this node."""

    def __init__(self, settings: CacheSettings) -> None:
        self._settings = settings
        disk = Disk(settings.storage) if settings.storage is not None else None
        self.cache = ObjectCache(
            max_memory=settings.max_memory,
            disk=disk,
            spill=settings.spill,
            far=Far(settings.object_store, disk) if disk is not None and settings.object_store else None,
            max_disk=settings.max_disk,
            evict=settings.evict,
            max_objects=settings.max_objects,
            quotas=settings.quotas,
            session_quota=session_quota(settings),
            retention=settings.retention,
        )
        self._sessions: Sessions | None = None
        if settings.manager is not None:
            self._sessions = Sessions(self.cache, settings.manager, settings.manager_tls)
        self._dropped = Dropped(settings.storage, self.cache) if settings.storage is not None else None
        self._replicas = Replicas(self.cache, settings.peers, settings.tls)
        self._folder = door_folder(settings.door)
        self._flight: CacheServer | None = None
        self._local: LocalServer | None = None
        self._stream: StreamServer | None = None
        self._seen = 0
        self._quiet_since = time.monotonic()

    def start(self) -> None:
        """Recover what is on disk and listen. Raises FlameError."""
        settings = self._settings
        self.cache.recover()
        if self._dropped is not None:
            self._dropped.take_all()
        if settings.endpoint.startswith(UNIX):
            self._start_here(Path(settings.endpoint.removeprefix(UNIX)))
        else:
            self._start_there()
        if self._sessions is not None:
            self._sessions.start()

    def _start_here(self, path: Path) -> None:
        """For clients of this user on this node: the door is where the endpoint says, and Flight beside it."""
        settings = self._settings
        door = LocalDoor(str(path), "", os.getuid())
        tokens = Tokens("")
        actions = Actions(self.cache, settings.endpoint, door, tokens, self._dropped)
        flight_beside(path).unlink(missing_ok=True)
        # First, since who comes through the door may want it at once.
        self._listen(f"grpc+unix://{flight_beside(path)}", actions)
        self._local = LocalServer(path, tokens, settings.endpoint, self.cache, actions, self.read, settings.listener)
        self._local.start()

    def _start_there(self) -> None:
        """For clients everywhere."""
        settings = self._settings
        tokens = Tokens()
        path = self._folder / "door"
        if settings.tls is None:
            host = urlsplit(settings.location).hostname or "127.0.0.1"
            self._stream = StreamServer(host, tokens, settings.endpoint, self.cache, self.read)
        port = self._stream.port if self._stream is not None else 0
        door = LocalDoor(str(path), "", os.getuid(), port, settings.peers)
        actions = Actions(self.cache, settings.endpoint, door, tokens, self._dropped)
        self._local = LocalServer(path, tokens, settings.endpoint, self.cache, actions, self.read)
        self._local.start()
        self._listen(settings.location, actions)

    def _listen(self, location: str, actions: Actions) -> None:
        settings = self._settings
        try:
            self._flight = CacheServer(location, settings.endpoint, self.cache, actions, self.read, **_tls(settings))
        except Exception as error:
            self.stop()
            raise UnavailableError(
                f"can't listen at {location}: {_reason(error)}", remedy="another process may have the port"
            ) from None

    def read(self, ticket: GetTicket) -> Content:
        """What a client asks for. Raises FlameError."""
        if ticket.origin and ticket.origin != self._settings.endpoint:
            return self._replicas.read(ticket)
        try:
            return self.cache.read(ticket.key, ticket.version, ticket.born)
        except NotFoundError:
            key = ObjectKey.from_key(ticket.key)  # what is no key has no object either
            if self._dropped is None or not self._dropped.take(key):
                raise
            return self.cache.read(ticket.key, ticket.version, ticket.born)

    def tidy(self) -> None:
        """Once a second: remove what is over, make room on disk, and after a while of quiet give memory back."""
        self.cache.sweep()
        self.cache.make_room_on_disk()
        if self.cache.memory.takes != self._seen:
            self._seen, self._quiet_since = self.cache.memory.takes, time.monotonic()
        elif self._quiet_since and time.monotonic() - self._quiet_since > QUIET:
            self._quiet_since = 0.0
            self.cache.trim()

    def stop(self) -> None:
        """Close the doors."""
        if self._sessions is not None:
            self._sessions.stop()
        if self._local is not None:
            self._local.stop()
        if self._stream is not None:
            self._stream.stop()
        if self._flight is not None:
            self._flight.shutdown()
        self.cache.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def session_quota(settings: CacheSettings) -> int:
    """Bytes that isolated instances may store for one session: what is set, or half of the memory, or of the file
    system where the cache has one."""
    if settings.session_quota is not None:
        return settings.session_quota
    if settings.storage is None:
        return settings.max_memory // 2
    folder = settings.storage.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).total // 2


def door_folder(parent: Path | None) -> Path:
    """A new private folder for the unix socket; those of caches that were killed are removed."""
    base = parent or Path(tempfile.gettempdir())
    for door in base.glob(f"{_FOLDER}*/door"):
        try:
            with socket.socket(socket.AF_UNIX) as probe:
                probe.connect(str(door))
        except ConnectionRefusedError:
            shutil.rmtree(door.parent, ignore_errors=True)
        except OSError:
            continue  # somebody else's
    return Path(tempfile.mkdtemp(prefix=_FOLDER, dir=base))


def _tls(settings: CacheSettings) -> dict[str, Any]:
    tls = settings.tls
    if tls is None or tls.cert_file is None or tls.key_file is None:
        return {}
    try:
        options: dict[str, Any] = {"tls_certificates": [(tls.cert_file.read_bytes(), tls.key_file.read_bytes())]}
        if settings.verify_clients and tls.ca_file is not None:
            options |= {"verify_client": True, "root_certificates": tls.ca_file.read_bytes()}
    except OSError as error:
        raise InvalidConfigError(f"can't read {error.filename}: {error.strerror}") from None
    return options


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__

"""Objects of closed sessions go away, and those of all sessions count for their tenants: the cache asks the session
manager how the sessions fare whose objects it holds.

It asks instead of being told, so that no end is missed while one of them is down. What was put under a name that no
session ever had stays: that is not for a cache to judge. Only parcels, which the SDK makes, are always of a session:
where it is unknown for two looks, it has ended and was forgotten between them.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from ssl import SSLContext

from flame.cache.cache import ObjectCache
from flame.cache.store import DEFAULT_TENANT
from flame.config import TlsConfig
from flame.link import Address, Link, connect
from flame.model.errors import FlameError, NotFoundError
from flame.objects import parcels
from flame.objects.keys import SHARED_SESSION, ObjectKey
from flame.proto import frontend_pb2, link_pb2, types_pb2

_log = logging.getLogger("flame.cache")

PAUSE = 15.0  # seconds between two looks
TIMEOUT = 3.0  # seconds for an answer
_NO_SESSIONS = frozenset({SHARED_SESSION, "pkg"})


class Sessions:
    """A thread that looks every `pause` seconds. While it holds nothing of a session it asks nobody."""

    def __init__(self, cache: ObjectCache, manager: Address, tls: TlsConfig | None, pause: float = PAUSE) -> None:
        self._cache = cache
        self._manager = manager
        self._tls = tls
        self._pause = pause
        self._seen: set[str] = set()  # prefixes of sessions that there were at some time
        self._ended: set[str] = set()  # whose objects have a time
        self._unknown: set[str] = set()  # prefixes of parcels whose session there was not at the last look
        self._complained = ""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sessions", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """No further looks; returns when the one under way is over."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while True:
            try:
                asyncio.run(self._look())
                self._complained = ""
            except (FlameError, OSError) as error:
                if str(error) != self._complained:  # as long as it lasts, once
                    self._complained = str(error)
                    _log.info("sessions_unknown manager=%s error=%s", self._manager, error)
            if self._stopping.wait(self._pause):
                return

    async def _look(self) -> None:
        held = [key for key in self._cache.prefixes() if key.session_id not in _NO_SESSIONS]
        names = {key.to_prefix() for key in held}
        self._seen &= names
        self._ended &= names
        self._unknown &= names
        if not held:
            return
        link = await self._connect()
        try:
            for key in held:  # also those of closed sessions, which somebody may delete before their time
                await self._ask(link, key)
        finally:
            link.close()
            await link.wait_closed()

    async def _ask(self, link: Link, key: ObjectKey) -> None:
        prefix = key.to_prefix()
        request = frontend_pb2.GetSessionRequest(session_id=key.session_id)
        try:
            answer = await link.call("GetSession", request.SerializeToString(), timeout=TIMEOUT)
        except NotFoundError:
            if prefix in self._seen:  # it was purged, so nobody can ask for its results any more
                self._seen.discard(prefix)
                self._end(key, 0.0)
            elif key.app_name == parcels.APPLICATION and prefix not in self._ended:
                if prefix in self._unknown:
                    self._end(key, self._cache.retention)
                self._unknown.add(prefix)
            return
        self._unknown.discard(prefix)
        session = types_pb2.Session.FromString(answer)
        if key.app_name not in (session.spec.application, parcels.APPLICATION):
            return
        self._seen.add(prefix)
        self._cache.belongs(key, session.spec.tenant or DEFAULT_TENANT)
        if session.status.state == types_pb2.Closed and prefix not in self._ended:
            closed_for = time.time() - session.status.completion_time / 1000
            self._end(key, max(0.0, self._cache.retention - closed_for))

    def _end(self, key: ObjectKey, after: float) -> None:
        self._ended.add(key.to_prefix())
        self._cache.end_session(key, after)
        _log.info("session_ended prefix=%s objects_go_in=%.0fs", key, after)

    async def _connect(self) -> Link:
        hello = link_pb2.Hello(role="client", id=f"cache-{os.urandom(8).hex()}", software="flame-object-cache")
        return await connect(
            self._manager, hello, ssl=self._context(), timeout=TIMEOUT, on_frames=_ignore, on_closed=_ignore
        )

    def _context(self) -> SSLContext | None:
        if self._tls is None:
            return None
        from flame.security import client_ssl

        return client_ssl(self._tls)


def _ignore(*_: object) -> None:
    """Nothing comes unasked: no session is attached to this link."""

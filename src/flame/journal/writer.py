"""The thread that writes the journal: everything that waits becomes one transaction."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

from flame.engine.effects import Record
from flame.journal.store import Journal, JournalError

_log = logging.getLogger(__name__)

_GROUP_BYTES = 32 * 1024 * 1024
_IDLE_S = 0.02
# A commit in the event loop holds up everybody: only while the disk answers this fast, and for this little.
_QUICK_S = 0.002
_SMALL_BYTES = 64 * 1024
_NUDGE_EVERY = 256  # writes in the loop, after which the thread looks whether there is housekeeping
_RETRY_FIRST_S = 0.1
_RETRY_LAST_S = 5.0

Done = Callable[[], None]
Loaded = Callable[[dict[int, bytes], JournalError | None], None]


class _Append(NamedTuple):
    records: Sequence[Record]
    done: Done
    size: int


class _Load(NamedTuple):
    seqs: Sequence[int]
    done: Loaded


class _Purge(NamedTuple):
    session: str
    upto: int


class _Nudge(NamedTuple):
    """Look after housekeeping."""


_Job = _Append | _Load | _Purge | _Nudge | None


class JournalWriter:
    """Owns an opened journal. All methods are called in the event loop; all callbacks run in it, in order.

    A write that fails is tried again with growing pauses, the same records and nothing else, until they are durable
    or the writer is closed; `on_failure` hears of the first failure and of the end of the trouble (None). Bodies can
    be loaded meanwhile.
    """

    def __init__(
        self, journal: Journal, loop: asyncio.AbstractEventLoop, on_failure: Callable[[JournalError | None], None]
    ) -> None:
        self._journal = journal
        self._loop = loop
        self._on_failure = on_failure
        self._queue: SimpleQueue[_Job] = SimpleQueue()
        self._pending: deque[_Append] = deque()
        self._purges: deque[_Purge] = deque()
        self._housekeeping = True
        self._closing = False
        self._give_up = False
        self._lock = threading.Lock()  # held by whoever uses the journal
        self._outstanding = 0  # submissions that the thread has not finished
        self._quick = True  # how the last write was
        self._written_here = 0
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self.backlog = 0
        """Bytes of records that are not durable yet."""
        self.commits = 0
        self.written = 0
        """Groups of records that became durable since the start, and their bytes."""

    def start(self) -> None:
        """Start the thread."""
        if self._journal.durable:
            self._thread.start()

    def submit(self, records: Sequence[Record], done: Done, *, at_once: bool = False) -> None:
        """Make records durable; `done` is called once they are, after those of all earlier submissions.

        With `at_once` a small group is written here and now, when nothing else waits and the disk has been quick:
        handing a lonely group to the thread and back takes as long again as writing it. `done` then runs inside.
        """
        size = 0
        for record in records:
            size += len(record.body) + len(record.meta)
        if self._write_here(records, size, at_once):
            done()
            return
        self._outstanding += 1
        self.backlog += size
        self._queue.put(_Append(records, done, size))

    def _write_here(self, records: Sequence[Record], size: int, at_once: bool) -> bool:
        if not self._journal.durable:
            self._journal.append(records)
            return True
        if not at_once or not self._quick or self._outstanding or size >= _SMALL_BYTES:
            return False
        if not self._lock.acquire(blocking=False):
            return False
        try:
            written = self._append(records, size) is None  # else the thread tries again and tells of the trouble
        finally:
            self._lock.release()
        self._written_here += 1
        if self._written_here % _NUDGE_EVERY == 0:
            self._queue.put(_Nudge())
        return written

    def load(self, seqs: Sequence[int], done: Loaded) -> None:
        """Read bodies of durable records; `done` gets those found, and the error when reading failed."""
        if self._journal.durable:
            self._queue.put(_Load(seqs, done))
        else:
            done(self._journal.load(seqs), None)

    def purge(self, session: str, upto: int) -> None:
        """Forget the session's records up to this seq, when nothing else waits."""
        if self._journal.durable:
            self._queue.put(_Purge(session, upto))
        else:
            self._journal.purge(session, upto)

    def close(self, timeout: float) -> bool:
        """Write what waits, close the journal. False when it could not be written within `timeout` seconds.

        Blocks; callbacks of what was written still come through the loop.
        """
        if not self._thread.is_alive():
            self._journal.close()
            return True
        self._queue.put(None)
        self._thread.join(timeout)
        if self._thread.is_alive():
            self._give_up = True
            self._queue.put(None)  # it may be in the pause between two attempts
            self._thread.join(timeout)
        return not self._thread.is_alive() and not self._pending

    # --- in the thread -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._closing:
                loads = self._take()
                with self._lock:
                    self._write_pending()
                    for job in loads:
                        self._load(job)
                    while self._purges:
                        self._purge(self._purges.popleft())
        finally:
            self._journal.close()

    def _take(self) -> list[_Load]:
        """Wait for a job, doing housekeeping while there is some; then take everything that waits."""
        queue = self._queue
        loads: list[_Load] = []
        while self._housekeeping:
            try:
                self._sort(queue.get(timeout=_IDLE_S), loads)
                break
            except Empty:
                with self._lock:
                    self._housekeeping = self._maintain()
        else:
            self._sort(queue.get(), loads)
        self._take_rest(loads)
        return loads

    def _take_rest(self, loads: list[_Load]) -> None:
        try:
            while True:
                self._sort(self._queue.get_nowait(), loads)
        except Empty:
            pass

    def _sort(self, job: _Job, loads: list[_Load]) -> None:
        if isinstance(job, _Append):
            self._pending.append(job)
        elif isinstance(job, _Load):
            loads.append(job)
        elif isinstance(job, _Purge):
            self._purges.append(job)
        elif isinstance(job, _Nudge):
            self._housekeeping = True
        else:
            self._closing = True

    def _write_pending(self) -> None:
        while self._pending:
            group, size = self._next_group()
            records = [record for job in group for record in job.records]
            if not self._write(records, size):
                return
            for _ in group:
                self._pending.popleft()
            self._tell(self._finish, group, size)
            self._housekeeping = True

    def _next_group(self) -> tuple[list[_Append], int]:
        group: list[_Append] = []
        size = 0
        for job in self._pending:
            if group and size + job.size > _GROUP_BYTES:
                break
            group.append(job)
            size += job.size
        return group, size

    def _write(self, records: list[Record], size: int) -> bool:
        """True once the records are durable; False when the writer is closed before."""
        error = self._append(records, size)
        if error is None:
            return True
        self._tell(self._on_failure, error)
        pause = _RETRY_FIRST_S
        while self._serve_reads(pause):
            if self._append(records, size) is None:
                self._tell(self._on_failure, None)
                return True
            pause = min(pause * 2, _RETRY_LAST_S)
        return False

    def _append(self, records: Sequence[Record], size: int) -> JournalError | None:
        began = time.monotonic()
        try:
            self._journal.append(records)
        except JournalError as error:
            return error
        except Exception as error:  # a fault of the store must not end the thread: everybody would wait for ever
            _log.exception("journal_write_fault")
            return JournalError(f"can't write the journal: {error!r}")
        self._quick = time.monotonic() - began < _QUICK_S
        self.commits += 1
        self.written += size
        return None

    def _serve_reads(self, seconds: float) -> bool:
        """Wait before the next attempt; loads are served meanwhile. False when the writer gives up."""
        end = time.monotonic() + seconds
        while not self._give_up and (left := end - time.monotonic()) > 0:
            loads: list[_Load] = []
            try:
                self._sort(self._queue.get(timeout=left), loads)
            except Empty:
                break
            for job in loads:
                self._load(job)
        return not self._give_up

    def _load(self, job: _Load) -> None:
        try:
            bodies = self._journal.load(job.seqs)
        except JournalError as error:
            self._tell(job.done, {}, error)
        else:
            self._tell(job.done, bodies, None)

    def _purge(self, job: _Purge) -> None:
        try:
            self._journal.purge(job.session, job.upto)
        except JournalError as error:
            # Nothing is lost: the rows only stay, and the session is known to be gone from its own last record.
            _log.warning("journal_purge_failed session=%s error=%s", job.session, error)
        self._housekeeping = True

    def _maintain(self) -> bool:
        try:
            return self._journal.maintain()
        except JournalError as error:
            _log.warning("journal_housekeeping_failed error=%s", error)
            return False

    def _tell(self, callback: Callable[..., None], *args: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to hear it
            self._loop.call_soon_threadsafe(callback, *args)

    # --- in the loop -------------------------------------------------------------------------------------------------

    def _finish(self, group: list[_Append], size: int) -> None:
        self.backlog -= size
        self._outstanding -= len(group)
        for job in group:
            job.done()

"""The journal in one SQLite file: write-ahead log, synchronous=FULL, one row per record.

One connection, locked exclusively, used by one thread. What matters for speed here:

- a group of records is one INSERT with many rows where possible: each statement is one release of the interpreter
  lock, and getting it back from a busy event loop costs more than the insert;
- the write-ahead log is written full of zeros ahead of use: a sync that changes the length of a file costs about
  twice as much as one that does not;
- there is no index: it would be a quarter of each small commit, and only purging looks for a session's records. They
  lie between its first record, which is remembered, and its last;
- checkpoints happen here and not inside a commit: when the log has grown and nothing waits, or when it is very long.
"""

from __future__ import annotations

import os
import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from flame.engine.effects import Record
from flame.journal.store import JournalError

_APPLICATION_ID = 0x464C4D4A  # "FLMJ", in the file's header
_SCHEMA_VERSION = 1
_SCHEMA = (
    """CREATE TABLE records (
        seq INTEGER PRIMARY KEY, session TEXT NOT NULL, kind INTEGER NOT NULL,
        meta BLOB NOT NULL, meta_sum INTEGER NOT NULL, body_sum INTEGER NOT NULL, body BLOB NOT NULL)""",
    # Sessions whose records up to `upto` count as gone although their rows may still be there.
    "CREATE TABLE purged (session TEXT PRIMARY KEY, upto INTEGER NOT NULL) WITHOUT ROWID",
)
_CORRUPT_REMEDY = "restore it from a backup or start with a new file"
_ROW = "(?,?,?,?,?,?,?)"
_GROUPS = (32, 8, 2, 1)  # rows per statement; few sizes, so that each stays compiled
_INSERT = {rows: f"INSERT INTO records VALUES {','.join([_ROW] * rows)}" for rows in _GROUPS}

_PREALLOCATED = 16 * 1024 * 1024
_CHECKPOINT_IDLE = 8 * 1024 * 1024
_CHECKPOINT_FORCED = 64 * 1024 * 1024
_ZEROS = bytes(1024 * 1024)
_PURGE_ROWS = 512  # looked at in one go
_PURGE_BYTES = 8 * 1024 * 1024
_LOAD_ROWS = 128


class SqliteJournal:
    """A journal in the file `path` (made with mode 0600 when missing, with its folders)."""

    durable = True

    def __init__(self, path: Path) -> None:
        self.path = path
        self.last_seq = 0
        self._wal = Path(f"{path}-wal")
        self._connection: sqlite3.Connection | None = None
        self._log_size = 0  # bytes of the write-ahead log in use, estimated from what was written
        self._preallocate = True
        self._spans: dict[str, list[int]] = {}  # session -> seqs of its first and its last record
        self._purging: dict[str, int] = {}  # session -> the last seq to remove
        self._purged: dict[str, int] = {}  # of those: how far removing came

    def open(self) -> None:
        """Lock the file and check its header and version. Raises JournalError with what to do."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
        except OSError as error:
            text = f"can't open the journal {self.path}: {error.strerror}"
            raise JournalError(text, remedy="check cluster.storage") from error
        try:
            self._connection = sqlite3.connect(
                self.path, timeout=0, isolation_level=None, check_same_thread=False, cached_statements=32
            )
            self._lock()
            self._check_schema()
        except sqlite3.Error as error:
            self.close()
            raise self._explain("open", error) from error
        except JournalError:
            self.close()
            raise

    def replay(self) -> Iterator[Record]:
        """All records in order of seq without their bodies; each is checked against its checksum."""
        rows = self._cursor().execute("SELECT seq, session, kind, meta, meta_sum FROM records ORDER BY seq")
        last = 0
        try:
            for seq, session, kind, meta, meta_sum in rows:
                if seq <= last or _sum_of(seq, session, kind, meta) != meta_sum:
                    raise self._damaged(seq)
                last = seq
                self._extend_span(session, seq)
                if seq > self._purging.get(session, 0):
                    yield Record(seq, kind, session, meta)
            self.last_seq = max(last, *self._purging.values(), 0)
        except sqlite3.Error as error:
            raise self._explain("read", error) from error

    def append(self, records: Sequence[Record]) -> None:
        """One transaction; durable when this returns."""
        connection = self._opened()
        rows = [
            (r.seq, r.session, r.kind, r.meta, _sum_of(r.seq, r.session, r.kind, r.meta), zlib.crc32(r.body), r.body)
            for r in records
        ]
        try:
            if len(rows) == 1:
                connection.execute(_INSERT[1], rows[0])
            elif rows:
                self._insert(connection, rows)
        except sqlite3.Error as error:
            if connection.in_transaction:
                connection.rollback()
            raise self._explain("write", error) from error
        for record in records:
            self._extend_span(record.session, record.seq)
        self._log_size += sum(len(r.body) + len(r.meta) for r in records) + 8_192
        if self._log_size > _CHECKPOINT_FORCED:
            self._checkpoint()

    def load(self, seqs: Sequence[int]) -> dict[int, bytes]:
        """The bodies of these records, each checked against its checksum."""
        cursor = self._cursor()
        bodies: dict[int, bytes] = {}
        try:
            for start in range(0, len(seqs), _LOAD_ROWS):
                part = seqs[start : start + _LOAD_ROWS]
                marks = ",".join("?" * len(part))
                cursor.execute(f"SELECT seq, body_sum, body FROM records WHERE seq IN ({marks})", part)
                for seq, body_sum, body in cursor:
                    if zlib.crc32(body) != body_sum:
                        raise self._damaged(seq)
                    bodies[seq] = body
        except sqlite3.Error as error:
            raise self._explain("read", error) from error
        return bodies

    def purge(self, session: str, upto: int) -> None:
        """Mark the session's records as gone; `maintain` removes them."""
        try:
            self._opened().execute("INSERT OR REPLACE INTO purged VALUES (?,?)", (session, upto))
        except sqlite3.Error as error:
            raise self._explain("write", error) from error
        self._purging[session] = upto

    def maintain(self) -> bool:
        """Remove some purged rows, lengthen the write-ahead log, or move it into the file."""
        try:
            if self._preallocate:
                self._preallocate = self._lengthen_log()
            elif self._purging:
                self._remove_some(next(iter(self._purging)))
            elif self._log_size > _CHECKPOINT_IDLE:
                self._checkpoint()
        except sqlite3.Error as error:
            raise self._explain("write", error) from error
        return self._preallocate or bool(self._purging)

    def close(self) -> None:
        """Move the write-ahead log into the file and give it free."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # --- opening -----------------------------------------------------------------------------------------------------

    def _lock(self) -> None:
        connection = self._opened()
        connection.execute("PRAGMA locking_mode=EXCLUSIVE")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA wal_autocheckpoint=0")
        connection.execute("PRAGMA cache_size=-8192")
        connection.execute("BEGIN EXCLUSIVE")
        connection.execute("COMMIT")

    def _check_schema(self) -> None:
        connection = self._opened()
        (identity,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if identity == 0 and tables == 0:
            connection.execute("BEGIN IMMEDIATE")
            for statement in _SCHEMA:
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id={_APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version={_SCHEMA_VERSION}")
            connection.execute("COMMIT")
        elif identity != _APPLICATION_ID:
            raise JournalError(f"{self.path} is not a journal of Flame", remedy="name another file in cluster.storage")
        elif version != _SCHEMA_VERSION:
            raise JournalError(
                f"the journal {self.path} has version {version}, this Flame reads version {_SCHEMA_VERSION}",
                remedy="use the version of Flame that wrote it, or another file",
            )
        self._purging = dict(connection.execute("SELECT session, upto FROM purged"))

    # --- housekeeping ------------------------------------------------------------------------------------------------

    def _insert(self, connection: sqlite3.Connection, rows: Sequence[tuple[object, ...]]) -> None:
        connection.execute("BEGIN IMMEDIATE")
        start = 0
        for size in _GROUPS:
            while len(rows) - start >= size:
                part = rows[start : start + size]
                connection.execute(_INSERT[size], [value for row in part for value in row])
                start += size
        connection.execute("COMMIT")

    def _extend_span(self, session: str, seq: int) -> None:
        span = self._spans.get(session)
        if span is None:
            self._spans[session] = [seq, seq]
        else:
            span[1] = seq

    def _lengthen_log(self) -> bool:
        """Write zeros behind the log. They end where valid frames end, so a recovery stops there as at end of file."""
        try:
            # The log carries no lock of SQLite's, so closing this second descriptor takes none away.
            descriptor = os.open(self._wal, os.O_WRONLY)
        except OSError:
            return False
        try:
            size = os.fstat(descriptor).st_size
            if size >= _PREALLOCATED:
                return False
            os.pwrite(descriptor, _ZEROS, size)
            os.fsync(descriptor)
        except OSError:
            return False  # a full disk shows at the next commit
        finally:
            os.close(descriptor)
        return True

    def _checkpoint(self) -> None:
        self._opened().execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        self._log_size = 0

    def _remove_some(self, session: str) -> None:
        """Remove records of a purged session: at most so many rows, or so many bytes of bodies."""
        connection = self._opened()
        upto = self._purging[session]
        span = self._spans.get(session, [1, upto])
        done = self._purged.get(session, span[0] - 1)
        end = min(done + _PURGE_ROWS, upto)
        query = "SELECT seq, length(body) FROM records WHERE seq>? AND seq<=? AND session=? ORDER BY seq"
        size = 0
        for seq, length in connection.execute(query, (done, end, session)).fetchall():
            if size and size + length > _PURGE_BYTES:
                end = seq - 1
                break
            size += length
        connection.execute("DELETE FROM records WHERE seq>? AND seq<=? AND session=?", (done, end, session))
        self._log_size += size // 16 + 65_536
        self._purged[session] = end
        if end >= upto:
            connection.execute("DELETE FROM purged WHERE session=? AND upto=?", (session, upto))
            del self._purging[session], self._purged[session]
            if span[1] <= upto:
                self._spans.pop(session, None)
            else:
                span[0] = upto + 1  # there is another session of that name

    # --- errors ------------------------------------------------------------------------------------------------------

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            raise JournalError(f"the journal {self.path} is closed")
        return self._connection

    def _cursor(self) -> sqlite3.Cursor:
        return self._opened().cursor()

    def _damaged(self, seq: int) -> JournalError:
        return JournalError(f"the journal {self.path} is damaged at record {seq}", remedy=_CORRUPT_REMEDY)

    def _explain(self, what: str, error: sqlite3.Error) -> JournalError:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            text = f"the journal {self.path} is in use by another session manager"
            return JournalError(text, remedy="stop that one first")
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return JournalError(f"the journal {self.path} is damaged: {error}", remedy=_CORRUPT_REMEDY)
        if code == sqlite3.SQLITE_FULL:
            return JournalError(f"can't {what} the journal {self.path}: the disk is full", remedy="free some space")
        return JournalError(f"can't {what} the journal {self.path}: {error}", remedy="check the disk")


def _sum_of(seq: int, session: str, kind: int, meta: bytes) -> int:
    return zlib.crc32(meta, zlib.crc32(f"{seq} {kind} {session}".encode()))

"""SQLite passes the suite for stores and notices damage; the memory journal keeps what fits."""

from __future__ import annotations

import multiprocessing
import resource
import sqlite3
import stat
from pathlib import Path

import pytest

from flame.journal import JournalError, MemoryJournal, SqliteJournal, open_journal
from flame.model.errors import InvalidConfigError
from flame.testing.journal import JournalConformance, drain, record


class TestSqlite(JournalConformance):
    def make(self, place: Path) -> SqliteJournal:
        return SqliteJournal(place / "flame.db")


def sqlite_journal(path: Path) -> SqliteJournal:
    journal = SqliteJournal(path)
    journal.open()
    return journal


def test_the_file_is_private(tmp_path: Path) -> None:
    journal = sqlite_journal(tmp_path / "deep" / "folder" / "flame.db")
    assert stat.S_IMODE(journal.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(journal.path.parent.stat().st_mode) == 0o700
    journal.close()


def test_a_foreign_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE mine (a)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(JournalError, match="is not a journal of Flame"):
        SqliteJournal(path).open()
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("mine",)]
    connection.close()
    assert len(path.read_bytes()) == len(before)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "flame.db"
    path.write_bytes(b"not a database at all" * 500)
    with pytest.raises(JournalError, match="damaged"):
        SqliteJournal(path).open()


def test_a_later_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "flame.db"
    sqlite_journal(path).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version=7")
    connection.close()
    with pytest.raises(JournalError, match="has version 7, this Flame reads version 1"):
        SqliteJournal(path).open()


def filled(path: Path) -> None:
    journal = sqlite_journal(path)
    for seq in range(1, 200):
        journal.append([record(seq, meta=b"meta-%d" % seq, body=b"body-%d|" % seq * 100)])
    journal.close()


def read_all(path: Path) -> None:
    journal = sqlite_journal(path)
    try:
        seqs = [r.seq for r in journal.replay()]
        journal.load(seqs)
    finally:
        journal.close()
    assert seqs == list(range(1, 200)), "a damaged journal must not lose records in silence"


def test_a_flipped_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "flame.db"
    filled(path)
    whole = path.read_bytes()
    for text in (b"meta-77", b"body-150|"):
        at = whole.index(text)
        path.write_bytes(whole[:at] + b"X" + whole[at + 1 :])
        with pytest.raises(JournalError, match="damaged at record"):
            read_all(path)


def test_a_truncated_file_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "flame.db"
    filled(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(JournalError, match="damaged"):
        read_all(path)


def test_an_unfinished_commit_is_as_if_never_made(tmp_path: Path) -> None:
    """The end of the log was torn in a crash: what was durable before it is whole."""
    path = tmp_path / "flame.db"
    journal = sqlite_journal(path)
    journal.append([record(1)])
    end = _used(Path(f"{path}-wal"))
    journal.append([record(2)])
    saved, log = path.read_bytes(), Path(f"{path}-wal").read_bytes()
    journal.close()
    torn = tmp_path / "torn.db"
    torn.write_bytes(saved)
    Path(f"{torn}-wal").write_bytes(log[: end + 1000])
    again = sqlite_journal(torn)
    assert [r.seq for r in again.replay()] == [1]
    again.append([record(2)])
    assert [r.seq for r in again.replay()] == [1, 2]
    again.close()


def _used(log: Path) -> int:
    return len(log.read_bytes().rstrip(b"\0"))


def test_a_log_lengthened_ahead_of_use_recovers(tmp_path: Path) -> None:
    path = tmp_path / "flame.db"
    journal = sqlite_journal(path)
    drain(journal)
    log = Path(f"{path}-wal")
    length = log.stat().st_size
    assert length >= 16 * 1024 * 1024
    journal.append([record(seq) for seq in range(1, 100)])
    assert log.stat().st_size == length
    crashed = tmp_path / "crashed.db"
    crashed.write_bytes(path.read_bytes())
    Path(f"{crashed}-wal").write_bytes(log.read_bytes())
    journal.close()
    again = sqlite_journal(crashed)
    assert [r.seq for r in again.replay()] == list(range(1, 100))
    again.close()


def _write_until_full(path: str, results: multiprocessing.Queue[tuple[int, str]]) -> None:
    journal = sqlite_journal(Path(path))
    resource.setrlimit(resource.RLIMIT_FSIZE, (4 * 1024 * 1024, resource.RLIM_INFINITY))
    seq = 0
    try:
        while seq < 1000:
            journal.append([record(seq + 1, body=bytes(100_000))])
            seq += 1
    except JournalError as error:
        results.put((seq, str(error)))
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    journal.append([record(seq + 1, body=b"after the trouble")])
    journal.close()


def test_a_full_disk_is_an_error_and_then_writing_goes_on(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    results: multiprocessing.Queue[tuple[int, str]] = context.Queue()
    process = context.Process(target=_write_until_full, args=(str(tmp_path / "flame.db"), results))
    process.start()
    written, text = results.get(timeout=60)
    process.join()
    assert process.exitcode == 0
    assert 0 < written < 1000
    assert "can't write the journal" in text
    journal = sqlite_journal(tmp_path / "flame.db")
    assert [r.seq for r in journal.replay()] == list(range(1, written + 2))
    assert journal.load([written + 1]) == {written + 1: b"after the trouble"}
    journal.close()


def test_memory_keeps_bodies_until_they_do_not_fit() -> None:
    journal = MemoryJournal(capacity=100)
    journal.open()
    journal.append([record(1, body=b"a" * 40), record(2, body=b"b" * 40)])
    journal.append([record(3, "other", body=b"c" * 40)])
    assert list(journal.load([1, 2, 3])) == [2, 3]
    journal.purge("s", 3)
    assert list(journal.load([1, 2, 3])) == [3]
    assert list(journal.replay()) == []


def test_memory_purge_spares_a_later_session_of_the_same_name() -> None:
    journal = MemoryJournal()
    journal.append([record(1), record(2), record(3)])
    journal.purge("s", 2)
    assert journal.load([1, 2, 3]) == {3: b"body"}


@pytest.mark.parametrize(
    ("storage", "file"),
    [("sqlite://{}/a.db", "a.db"), ("fs://{}/folder", "folder/flame.db"), ("file://{}/f", "f/flame.db")],
)
def test_storage_names_a_place(tmp_path: Path, storage: str, file: str) -> None:
    open_journal(storage.format(tmp_path)).close()
    assert (tmp_path / file).exists()


def test_storage_none_is_not_durable() -> None:
    journal = open_journal("none")
    assert not journal.durable
    journal.close()


@pytest.mark.parametrize(
    ("storage", "text"),
    [
        ("", "invalid storage"),
        ("sqlite://", "invalid storage"),
        ("flame.db", "invalid storage"),
        ("mysql://x", "'mysql'"),
    ],
)
def test_other_storage_is_refused(storage: str, text: str) -> None:
    with pytest.raises(InvalidConfigError, match=text):
        open_journal(storage)


def test_a_place_that_can_not_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError, match="can't open the journal"):
        open_journal(f"sqlite://{tmp_path}/file/flame.db")

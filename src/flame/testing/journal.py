"""What every durable journal must do. A store's tests subclass `JournalConformance` and run under pytest."""

from __future__ import annotations

from pathlib import Path

import pytest

from flame.engine.effects import Record
from flame.journal.store import Journal, JournalError


def record(seq: int, session: str = "s", meta: bytes = b"meta", body: bytes = b"body", kind: int = 7) -> Record:
    """A record that names only what a test is about."""
    return Record(seq, kind, session, meta, body)


def drain(journal: Journal) -> None:
    """Do all housekeeping that waits."""
    while journal.maintain():
        pass


class JournalConformance:
    """Subclass it, name the subclass `Test...` and define `make`, which gives an unopened journal kept at `place`."""

    def make(self, place: Path) -> Journal:
        """A journal that keeps everything at `place`; two of the same place are the same journal."""
        raise TypeError(f"{type(self).__name__} defines no make()")

    def opened(self, place: Path) -> Journal:
        journal = self.make(place)
        journal.open()
        return journal

    def test_a_new_journal_is_empty(self, tmp_path: Path) -> None:
        journal = self.opened(tmp_path)
        assert list(journal.replay()) == []
        journal.close()

    def test_replays_in_order_without_bodies(self, tmp_path: Path) -> None:
        journal = self.opened(tmp_path)
        journal.append([record(1, kind=1, session=""), record(2, "a", b"x", b"one")])
        journal.append([record(3, "b", b"", b"")])
        expected = [record(1, kind=1, session="", body=b""), record(2, "a", b"x", b""), record(3, "b", b"", b"")]
        assert list(journal.replay()) == expected
        journal.close()

    def test_survives_a_restart(self, tmp_path: Path) -> None:
        journal = self.opened(tmp_path)
        journal.append([record(seq, body=b"%d" % seq) for seq in range(1, 101)])
        journal.close()
        again = self.opened(tmp_path)
        assert [r.seq for r in again.replay()] == list(range(1, 101))
        assert again.load([1, 57, 100]) == {1: b"1", 57: b"57", 100: b"100"}
        again.append([record(101)])
        assert [r.seq for r in again.replay()][-1] == 101
        again.close()

    def test_loads_many_and_large_bodies(self, tmp_path: Path) -> None:
        journal = self.opened(tmp_path)
        bodies = {seq: bytes([seq % 251]) * (seq * 37) for seq in range(1, 400)}
        bodies[400] = bytes(range(256)) * 40_000
        journal.append([record(seq, body=body) for seq, body in bodies.items()])
        assert journal.load(list(bodies)) == bodies
        assert journal.load([]) == {}
        assert journal.load([4000]) == {}
        journal.close()

    def test_a_refused_append_leaves_nothing(self, tmp_path: Path) -> None:
        journal = self.opened(tmp_path)
        journal.append([record(1)])
        with pytest.raises(JournalError):
            journal.append([record(2), record(1)])
        assert [r.seq for r in journal.replay()] == [1]
        journal.append([record(2)])
        assert [r.seq for r in journal.replay()] == [1, 2]
        journal.close()

    def test_purge_forgets_one_session(self, tmp_path: Path) -> None:
        journal = self.opened(tmp_path)
        journal.append([record(1, "a"), record(2, "b"), record(3, "a"), record(4, "")])
        journal.purge("a", 3)
        assert [r.seq for r in journal.replay()] == [2, 4]
        drain(journal)
        assert [r.seq for r in journal.replay()] == [2, 4]
        assert journal.load([1, 2]) == {2: b"body"}
        journal.close()

    def test_purge_spares_a_later_session_of_the_same_name(self, tmp_path: Path) -> None:
        journal = self.opened(tmp_path)
        journal.append([record(1, "a"), record(2, "a"), record(3, "a", b"new")])
        journal.purge("a", 2)
        drain(journal)
        journal.append([record(4, "a", b"new")])
        assert [(r.seq, r.meta) for r in journal.replay()] == [(3, b"new"), (4, b"new")]
        journal.append([record(5, "b")])
        journal.purge("a", 4)
        drain(journal)
        assert journal.load([1, 2, 3, 4, 5]) == {5: b"body"}
        journal.close()

    def test_purge_gives_the_room_back_of_many_sessions_among_each_other(self, tmp_path: Path) -> None:
        journal = self.opened(tmp_path)
        for start in range(1, 3001, 3):
            journal.append([record(start, "a"), record(start + 1, "b"), record(start + 2, "c")])
        journal.purge("b", 3000)
        journal.purge("c", 3000)
        drain(journal)
        left = journal.load(range(1, 3001))
        assert sorted(left) == list(range(1, 3001, 3))
        journal.close()

    def test_an_unfinished_purge_goes_on_after_a_restart(self, tmp_path: Path) -> None:
        journal = self.opened(tmp_path)
        journal.append([record(seq, "a") for seq in range(1, 2001)])
        journal.append([record(2001, "b")])
        journal.purge("a", 2000)
        journal.maintain()
        journal.close()
        again = self.opened(tmp_path)
        assert [r.seq for r in again.replay()] == [2001]
        drain(again)
        assert again.load([1, 1000, 2000, 2001]) == {2001: b"body"}
        again.close()

    def test_after_a_restart_new_records_stay_clear_of_those_on_their_way_out(self, tmp_path: Path) -> None:
        journal = self.opened(tmp_path)
        journal.append([record(1, "a"), record(2, "b"), record(3, "b")])
        journal.purge("b", 3)
        journal.close()
        again = self.opened(tmp_path)
        assert [r.seq for r in again.replay()] == [1]
        assert again.last_seq == 3
        again.append([record(again.last_seq + 1, "b", b"new")])
        drain(again)
        assert [(r.seq, r.meta) for r in again.replay()] == [(1, b"meta"), (4, b"new")]
        assert again.last_seq == 4
        again.close()

    def test_two_managers_can_not_share_it(self, tmp_path: Path) -> None:
        first = self.opened(tmp_path)
        with pytest.raises(JournalError, match="in use"):
            self.make(tmp_path).open()
        first.append([record(1)])
        first.close()
        second = self.opened(tmp_path)
        assert [r.seq for r in second.replay()] == [1]
        second.close()

    def test_closing_twice_is_harmless(self, tmp_path: Path) -> None:
        journal = self.opened(tmp_path)
        journal.close()
        journal.close()
        with pytest.raises(JournalError):
            journal.append([record(1)])

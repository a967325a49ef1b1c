"""Durable records: what must survive a crash of the session manager. What a record means is not known here."""

from __future__ import annotations

from pathlib import Path

from flame.journal.memory import MemoryJournal
from flame.journal.sqlite import SqliteJournal
from flame.journal.store import Journal, JournalError
from flame.journal.writer import JournalWriter
from flame.model.errors import InvalidConfigError

__all__ = ["Journal", "JournalError", "JournalWriter", "MemoryJournal", "SqliteJournal", "open_journal"]

_FILE_IN_FOLDER = "flame.db"


def open_journal(storage: str) -> Journal:
    """The opened journal that `cluster.storage` names.

    `none`; `sqlite://PATH`, a file (relative to the working directory, absolute after a further slash); `fs://PATH`,
    `file://PATH` or `filesystem://PATH`, a folder. Raises InvalidConfigError for other text, JournalError when the
    journal is in use, damaged or can't be opened.
    """
    journal: Journal
    if storage == "none":
        journal = MemoryJournal()
    else:
        scheme, separator, path = storage.partition("://")
        if not separator or not path:
            raise InvalidConfigError(f"invalid storage {storage!r}", remedy="write none, sqlite://PATH or fs://PATH")
        if scheme == "sqlite":
            journal = SqliteJournal(Path(path))
        elif scheme in ("fs", "file", "filesystem"):
            journal = SqliteJournal(Path(path) / _FILE_IN_FOLDER)
        else:
            raise InvalidConfigError(
                f"unknown storage {scheme!r} in {storage!r}", remedy="the known ones are none, sqlite and fs"
            )
    journal.open()
    return journal

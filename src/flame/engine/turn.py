"""What one turn collects: records that must be durable, what may be done at once, what may be said afterwards."""

from __future__ import annotations

from typing import Any

import msgspec

from flame.engine.effects import Effect, Record, RecordKind, Reply
from flame.engine.records import pack
from flame.model.errors import FlameError


class Draft:
    """The answer of the turn under way."""

    __slots__ = ("after", "now", "now_ms", "records", "seq")

    def __init__(self, now_ms: int, seq: int) -> None:
        self.now_ms = now_ms
        self.seq = seq  # of the last record
        self.records: list[Record] = []
        self.now: list[Effect] = []
        self.after: list[Effect] = []

    def record(self, kind: RecordKind, session: str, meta: msgspec.Struct, body: bytes = b"") -> int:
        """Add a durable fact; answers its seq."""
        self.seq += 1
        self.records.append(Record(self.seq, int(kind), session, pack(meta), body))
        return self.seq

    def reply(self, ticket: int, value: Any = None) -> None:
        self.after.append(Reply(ticket, value))

    def refuse(self, ticket: int, error: FlameError) -> None:
        self.after.append(Reply(ticket, None, error))

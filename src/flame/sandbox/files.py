"""Files of a sandbox, read, written and listed by its client."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from flame.client.values import short_name
from flame.model.errors import InvalidStateError, NotFoundError
from flame.sandbox import wire
from flame.sandbox.steps import Steps, ask, ask_all
from flame.sandbox.values import FileInfo

_AHEAD = 8  # pieces under way at once


def read(path: str) -> Steps[bytes]:
    """All of a file."""
    parts: list[bytes] = []
    first = yield from ask(wire.ReadFile(path), wire.Content)
    parts.append(first.data)
    offset = len(first.data)
    while offset < first.size or (not first.size and parts[-1]):
        # A file whose size is 0 may have content all the same, as those of /proc have.
        last = max(first.size, offset + 1)
        offsets = range(offset, last, wire.PIECE)[:_AHEAD]
        pieces = yield from ask_all([wire.ReadFile(path, each) for each in offsets], wire.Content)
        for piece in pieces:
            if piece.file != first.file:
                raise InvalidStateError(f"{path} was replaced while it was read", remedy="read it again")
            parts.append(piece.data)
            offset += len(piece.data)
            if len(piece.data) < wire.PIECE:
                break
        if not parts[-1]:
            break
    return b"".join(parts)


def write(path: str, data: bytes, mode: int | None = None) -> Steps[None]:
    """Put a file in place of what has this name."""
    view = memoryview(data)
    yield from write_pieces(path, (bytes(view[at : at + wire.PIECE]) for at in range(0, len(view), wire.PIECE)), mode)


def write_pieces(path: str, pieces: Iterator[bytes], mode: int | None = None) -> Steps[None]:
    """As write, of pieces of whatever length up to that of a piece."""
    name = short_name("file")
    offset = 0
    calls: list[wire.WriteFile] = []
    waiting = next(pieces, b"")
    while True:
        data, after = waiting, next(pieces, None)
        calls.append(wire.WriteFile(path, name, offset, data, after is None, mode))
        offset += len(data)
        # The first one alone: if it is refused, nothing else is sent.
        if after is None or len(calls) >= _AHEAD or len(data) == offset:
            yield from ask_all(calls, wire.Done)
            calls = []
        if after is None:
            return
        waiting = after


def listed(path: str) -> Steps[list[FileInfo]]:
    """All entries of a folder, by name."""
    found: list[FileInfo] = []
    start = ""
    while True:
        part = yield from ask(wire.ListFolder(path, start), wire.Files)
        found += map(_info, part.files)
        start = part.next
        if not start:
            return found


def find(path: str) -> Steps[FileInfo | None]:
    """What has this name."""
    found = yield from ask(wire.Stat(path), wire.Files)
    return _info(found.files[0]) if found.files else None


def stat(path: str) -> Steps[FileInfo]:
    """As find. Raises NotFoundError."""
    found = yield from find(path)
    if found is None:
        raise NotFoundError(f"there is no {path}")
    return found


def exists(path: str) -> Steps[bool]:
    return (yield from find(path)) is not None


def _info(file: wire.File) -> FileInfo:
    modified = datetime.fromtimestamp(file.modified, UTC)
    return FileInfo(file.name, file.path, file.kind, file.size, file.mode, modified, file.target)

"""Files of a sandbox, read, written and listed by its client."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

from flame.client.values import short_name
from flame.model.errors import InvalidStateError, NotFoundError, TooLargeError
from flame.sandbox import wire
from flame.sandbox.steps import Steps, ask, ask_all, do
from flame.sandbox.values import FileEvent, FileInfo

_AHEAD = 8  # pieces under way at once


def read(path: str, max_size: int) -> Steps[bytes]:
    """All of a file. Raises TooLargeError when it has more bytes than that."""
    parts: list[bytes] = []
    size = 0

    def take(piece: bytes) -> None:
        nonlocal size
        size += len(piece)
        if size > max_size:
            raise TooLargeError(f"{path} has more than {max_size} bytes", remedy="raise max_size, or download it")
        parts.append(piece)

    yield from read_into(path, take)
    return b"".join(parts)


def read_into(path: str, take: Callable[[bytes], object]) -> Steps[None]:
    """All of a file, piece by piece."""
    first = yield from ask(wire.ReadFile(path), wire.Content)
    take(first.data)
    offset = len(first.data)
    # A file whose size is 0 may have content all the same, as those of /proc have.
    more = offset < first.size or (not first.size and offset > 0)
    while more:
        offsets = range(offset, max(first.size, offset + 1), wire.PIECE)[:_AHEAD]
        for content in (yield from ask_all([wire.ReadFile(path, each) for each in offsets], wire.Content)):
            if content.file != first.file:
                raise InvalidStateError(f"{path} was replaced while it was read", remedy="read it again")
            take(content.data)
            offset += len(content.data)
            more = bool(content.data) and (offset < first.size or not first.size)
            if len(content.data) < wire.PIECE:
                break  # those behind it do not follow on


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


class Watcher:
    """One watch of a client."""

    def __init__(self, path: str, *, recursive: bool) -> None:
        self.id = short_name("watch")
        self._begin = wire.Watch(self.id, path, recursive)
        self._ready: deque[FileEvent] = deque()

    def begin(self) -> Steps[None]:
        yield from do(self._begin)

    def next(self) -> Steps[FileEvent]:
        """The next event; waits for it."""
        while not self._ready:
            found = yield from ask(wire.FollowWatch(self.id), wire.Changes)
            self._ready.extend(FileEvent(each.kind, each.path, each.folder, each.old) for each in found.changes)
        return self._ready.popleft()

    def end(self) -> Steps[None]:
        yield from do(wire.EndWatch(self.id))


def _info(file: wire.File) -> FileInfo:
    modified = datetime.fromtimestamp(file.modified, UTC)
    return FileInfo(file.name, file.path, file.kind, file.size, file.mode, modified, file.target)

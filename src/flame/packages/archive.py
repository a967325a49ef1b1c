"""Unpacking archives that nobody vouches for: .tar, .tar.gz, .zip, .whl.

Nothing lands outside the folder, nothing but plain files, folders and links within it, no special permission bits, not
more than the limits allow. Links are made last and then followed to see where they lead, so that nothing is written
through one.
"""

from __future__ import annotations

import io
import os
import stat
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import IO, cast

from flame.model.errors import FlameError, InvalidArgumentError, TooLargeError
from flame.packages.limits import ArchiveLimits

_PIECE = 256 * 1024
_MOST_AT_ONCE = 4 * 1024 * 1024  # a header of an archive that wants more than this of memory is no honest one
_MAX_LINK = 4096

# What tarfile and zipfile raise for damaged or strange content.
_DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError)


def unpack(archive: Path, name: str, folder: Path, limits: ArchiveLimits) -> None:
    """Unpack into `folder`, which does not exist yet; what is there after an error is the caller's to remove.

    `name` is what people call the archive. Raises InvalidArgumentError for content that is damaged or not allowed,
    TooLargeError, and OSError when the disk is full.
    """
    folder.mkdir(mode=0o755)
    target = _Target(folder, name, archive.stat().st_size, limits)
    try:
        with archive.open("rb") as stream:
            head = stream.read(512)
            stream.seek(0)
            if head.startswith(b"PK"):
                _unzip(stream, target)
            else:
                _untar(stream, head, target)
    except FlameError:
        raise
    except (*_DAMAGED, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise InvalidArgumentError(
            f"package {name} is damaged or no archive: {error}", remedy="send a .tar.gz, .tgz, .tar, .zip or .whl"
        ) from None
    target.finish()


class _Target:
    """The folder, what was put in it, and what must not be put in it."""

    def __init__(self, folder: Path, name: str, packed: int, limits: ArchiveLimits) -> None:
        self._folder = folder
        self._name = name
        self._limits = limits
        self._allowed = min(limits.max_bytes, max(limits.ratio_from, packed * limits.max_ratio))
        self._packed = packed
        self._bytes = 0
        self._entries = 0
        self._files: set[str] = set()
        self._links: list[tuple[str, str]] = []

    def expect(self, entries: int) -> None:
        """So many come, if the archive tells the truth. Raises TooLargeError before the first is made."""
        if entries > self._limits.max_files:
            raise self._too_many()

    def folder(self, entry: str) -> None:
        path = self._path(entry)
        self._count()
        self._make(path, entry)

    def file(self, entry: str, source: IO[bytes], mode: int) -> None:
        """Raises InvalidArgumentError, TooLargeError."""
        path = self._path(entry)
        self._count()
        self._make(path.parent, entry)
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            raise self._refused(f"holds {entry!r} twice") from None
        with open(handle, "wb") as out:  # noqa: PTH123 - a descriptor
            while piece := source.read(_PIECE):
                self.grow(len(piece))
                out.write(piece)
            os.fchmod(handle, (mode & 0o755) | 0o600)
        self._files.add(os.path.relpath(path, self._folder))

    def link(self, entry: str, target: str) -> None:
        """A symbolic link, made later."""
        self._path(entry)
        self._count()
        if target.startswith("/") or "\0" in target or len(target) > _MAX_LINK:
            raise self._refused(f"holds a link that leads out of it: {entry!r} to {target[:200]!r}")
        self._links.append((entry, target))

    def hard_link(self, entry: str, target: str) -> None:
        path, old = self._path(entry), self._path(target)
        self._count()
        if os.path.relpath(old, self._folder) not in self._files:
            raise self._refused(f"holds a link {entry!r} to {target[:200]!r}, which is not a file before it")
        self._make(path.parent, entry)
        try:
            path.hardlink_to(old)
        except FileExistsError:
            raise self._refused(f"holds {entry!r} twice") from None
        self._files.add(os.path.relpath(path, self._folder))

    def refuse(self, entry: str, what: str) -> InvalidArgumentError:
        return self._refused(f"holds {what}: {entry[:200]!r}")

    def grow(self, size: int) -> None:
        """So many further bytes were unpacked. Raises TooLargeError."""
        self._bytes += size
        if self._bytes > self._allowed:
            if self._allowed == self._limits.max_bytes:
                text = f"unpacks to more than {self._allowed:,} bytes"
            else:
                text = f"unpacks {self._packed:,} bytes to more than {self._allowed:,}: it looks like a bomb"
            raise TooLargeError(f"package {self._name} {text}", remedy="leave large data out of the package")

    def finish(self) -> None:
        """Make the links and look where they lead. Raises InvalidArgumentError."""
        made: list[tuple[Path, str]] = []
        for entry, target in self._links:
            path = self._path(entry)
            self._make(path.parent, entry)
            try:
                path.symlink_to(target)
            except FileExistsError:
                raise self._refused(f"holds {entry!r} twice") from None
            # At once, since the next may stand below it; and again at the end, since a later one may bend it.
            self._check_link(path, target)
            made.append((path, target))
        for path, target in made:
            self._check_link(path, target)

    def _check_link(self, path: Path, target: str) -> None:
        real, root = os.path.realpath(path), os.path.realpath(self._folder)
        if real != root and not real.startswith(root + os.sep):
            raise self._refused(f"holds a link that leads out of it: {path.name!r} to {target[:200]!r}")

    def _count(self) -> None:
        self._entries += 1
        if self._entries > self._limits.max_files:
            raise self._too_many()

    def _too_many(self) -> TooLargeError:
        return TooLargeError(
            f"package {self._name} holds more than {self._limits.max_files:,} files",
            remedy="leave large data out of the package",
        )

    def _path(self, entry: str) -> Path:
        parts = [part for part in entry.split("/") if part not in ("", ".")]
        if entry.startswith("/") or "\\" in entry or "\0" in entry or ".." in parts:
            raise self._refused(f"holds a name that leads out of it: {entry[:200]!r}")
        return self._folder.joinpath(*parts)

    def _make(self, path: Path, entry: str) -> None:
        """A folder. The links are not made yet, so every part of the path is one, or the archive contradicts itself."""
        try:
            path.mkdir(mode=0o755, parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise self._refused(f"holds {entry!r} as a file and as a folder") from None

    def _refused(self, problem: str) -> InvalidArgumentError:
        return InvalidArgumentError(f"package {self._name} {problem}", remedy="pack it again without that")


# --- tar -------------------------------------------------------------------------------------------------------------


class _Measured(io.RawIOBase):
    """A decompressed stream that counts what is read, and reads no more at once than an honest archive needs."""

    def __init__(self, source: IO[bytes], target: _Target) -> None:
        self._source = source
        self._target = target
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        if not 0 <= size <= _MOST_AT_ONCE:
            raise ValueError(f"a header of {size:,} bytes")
        piece = self._source.read(size)
        self._position += len(piece)
        return piece

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        if whence != os.SEEK_SET or offset < self._position:
            raise ValueError("its parts are not in their order")
        while self._position < offset:
            skipped = len(self.read(min(_PIECE, offset - self._position)))
            if not skipped:
                break
            self._target.grow(skipped)
        return self._position


def _untar(stream: IO[bytes], head: bytes, target: _Target) -> None:
    with _decompressed(stream, head) as source:
        measured = cast("IO[bytes]", _Measured(source, target))
        with tarfile.open(fileobj=measured, mode="r:", errorlevel=1) as archive:
            while (member := archive.next()) is not None:
                archive.members = []  # pyright: ignore[reportAttributeAccessIssue] - it would remember all of them
                if member.isdir():
                    target.folder(member.name)
                elif member.isreg():
                    content = archive.extractfile(member)
                    assert content is not None
                    target.file(member.name, content, member.mode)
                elif member.issym():
                    target.link(member.name, member.linkname)
                elif member.islnk():
                    target.hard_link(member.name, member.linkname)
                else:
                    raise target.refuse(member.name, "a device or a pipe")


def _decompressed(stream: IO[bytes], head: bytes) -> IO[bytes]:
    if head.startswith(b"\x1f\x8b"):
        import gzip

        return cast("IO[bytes]", gzip.GzipFile(fileobj=stream))
    return stream


# --- zip -------------------------------------------------------------------------------------------------------------


def _unzip(stream: IO[bytes], target: _Target) -> None:
    with zipfile.ZipFile(stream) as archive:
        target.expect(len(archive.infolist()))
        for info in archive.infolist():
            mode = info.external_attr >> 16
            kind = stat.S_IFMT(mode)
            if info.flag_bits & 0x1:
                raise target.refuse(info.filename, "an encrypted file")
            if info.is_dir():
                target.folder(info.filename)
            elif kind == stat.S_IFLNK:
                with archive.open(info) as content:
                    where = content.read(_MAX_LINK + 1)
                target.link(info.filename, os.fsdecode(where))
            elif kind in (0, stat.S_IFREG):
                with archive.open(info) as content:
                    target.file(info.filename, content, mode & 0o777 or 0o644)
            else:
                raise target.refuse(info.filename, "a device or a pipe")

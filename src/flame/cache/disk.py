"""Objects on disk. A file is whole or not there: it is written under another name, forced to the disk, then renamed.

`<folder>/<application>/<session>/<object>@<born>-<version>.flame` is a base, with `.patch` at its end a patch. No name
is used twice, so a reader never finds something else than it looked for. A file begins with a fixed head (lengths,
checksums, when it goes away), then what it is in msgpack, then the payload, so placed that Arrow can read it where it
is mapped. Checksums are compared when a payload is read into memory or mapped; a file that does not match goes to
`<folder>/.quarantine` and is never served.
"""

from __future__ import annotations

import errno
import itertools
import logging
import mmap
import os
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from flame.model.errors import ExhaustedError, FlameError, InternalError, NotFoundError
from flame.objects.keys import InvalidKeyError, ObjectKey
from flame.objects.messages import LEAD

_log = logging.getLogger("flame.cache")

_MAGIC = b"FLMOBJ1\n"
# magic, expires (seconds since 1970, 0 = stays), payload: offset, bytes, CRC-32; head's length and CRC-32 from 16 on
_HEAD = struct.Struct("<8sdQQIII")
_EXPIRES = struct.Struct("<d")
_STEP = 8 * 1024 * 1024  # bytes that are read, written and summed at once
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
BASE, PATCH, HEAD = ".flame", ".patch", ".head"


class Description(msgspec.Struct, frozen=True, array_like=True):
    """What a file is."""

    key: str
    version: int
    born: int
    table: bool
    patch: bool
    tenant: str
    remote: bool = False  # the payload is in the object store, here is the head only


class StoredFile(msgspec.Struct):
    """A file of a payload. `used`: a number that grows with each use."""

    path: Path
    description: Description
    offset: int
    size: int
    crc: int
    used: int = 0

    @property
    def remote(self) -> bool:
        """Whether only the head is here."""
        return self.description.remote


class CorruptedError(InternalError):
    """A file does not hold what was written."""


class GoneError(NotFoundError):
    """A file was removed while somebody was about to read it: its object was replaced or deleted."""


class Found(NamedTuple):
    """A file that was there at the start. `expires` in seconds since 1970."""

    file: StoredFile
    expires: float | None


class Broken(NamedTuple):
    """A file whose head can't be read, by its name. `age`: its object's born and version; `why`: what to tell users."""

    key: str
    age: tuple[int, int]
    why: str


class Draft:
    """A file that is being written: `write` the payload, then `Disk.publish` it or `abandon` it."""

    def __init__(self, path: Path, offset: int) -> None:
        self.path = path
        self.offset = offset
        self.size = 0
        self.crc = 0
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def write(self, data: memoryview) -> None:
        """Append to the payload. Raises ExhaustedError when the disk is full."""
        for start in range(0, len(data), _STEP):
            step = data[start : start + _STEP]
            _write_at(self.fd, step, self.offset + self.size)
            self.crc = zlib.crc32(step, self.crc)
            self.size += len(step)

    def abandon(self) -> None:
        """Remove what was written."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        self.path.unlink(missing_ok=True)


class Disk:
    """The files below a folder. One process at a time uses it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._drafts = folder / ".drafts"
        self._quarantine = folder / ".quarantine"
        self._lock = -1
        self._numbers = itertools.count(1)  # of drafts; its steps are atomic
        self._counting = threading.Lock()
        self.used = 0
        self.broken: list[Broken] = []  # files that were there at the start

    def open(self) -> None:
        """Make the folders, take the lock, remove drafts of before. Raises FlameError."""
        try:
            for path in (self.folder, self._drafts, self._quarantine):
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.lockf(self._lock, os.F_TLOCK, 0)
            for path in self._drafts.iterdir():
                path.unlink()
        except BlockingIOError:
            raise ExhaustedError(
                f"another cache uses {self.folder}", remedy="stop it, or give this one a cache.storage of its own"
            ) from None
        except OSError as error:
            raise InternalError(
                f"can't use {self.folder}: {error.strerror}", remedy="look at cache.storage and its permissions"
            ) from None

    def close(self) -> None:
        """Give the folder up."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    # --- writing ----------------------------------------------------------------------------------------------------

    def draft(self, lead: int) -> Draft:
        """A new file whose payload begins `lead` bytes behind a multiple of 64. Raises ExhaustedError."""
        try:
            return Draft(self._drafts / f"{next(self._numbers)}", 4096 + lead)
        except OSError as error:
            raise _disk_error(error, self.folder) from None

    def publish(self, draft: Draft, description: Description, expires: float | None) -> StoredFile:
        """Give a draft its name. Raises FlameError; the draft is gone then."""
        path = self.path_of(description)
        try:
            _write_at(draft.fd, _head(draft.offset, draft.size, draft.crc, description, expires), 0)
            os.fsync(draft.fd)
            _place(draft.path, path)
        except OSError as error:
            draft.abandon()
            raise _disk_error(error, self.folder) from None
        except FlameError:
            draft.abandon()
            raise
        os.close(draft.fd)
        draft.fd = -1
        self._count(draft.size + draft.offset)
        return StoredFile(path, description, draft.offset, draft.size, draft.crc)

    def name_of(self, description: Description) -> str:
        """The name of a file below the folder."""
        key = ObjectKey.from_key(description.key)
        ending = PATCH if description.patch else BASE
        name = f"{_file_name(str(key.object_id))}@{description.born:x}-{description.version}{ending}"
        return f"{_file_name(key.app_name)}/{_file_name(key.session_id)}/{name}"

    def path_of(self, description: Description) -> Path:
        """Where a file of that description is."""
        return self.folder / (self.name_of(description) + (HEAD if description.remote else ""))

    def leave_head(self, file: StoredFile, description: Description) -> StoredFile:
        """Remove a file and leave only its head, under the name of the description. Raises FileNotFoundError."""
        expires = self.expires_of(file)
        draft = self.draft(0)
        draft.offset, draft.size, draft.crc = file.offset, file.size, file.crc
        head = self.publish(draft, description, expires)
        self._count(_size_of(head.path) - file.size - file.offset)
        self.remove(file)
        return head

    def expires_of(self, file: StoredFile) -> float | None:
        """When an object goes away."""
        with file.path.open("rb") as stream:
            return _EXPIRES.unpack(os.pread(stream.fileno(), 8, 8))[0] or None

    def remove(self, file: StoredFile) -> None:
        """Remove a file and the folders that are empty then."""
        size = _size_of(file.path)
        try:
            file.path.unlink()
        except FileNotFoundError:
            return
        self._count(-size)
        for folder in (file.path.parent, file.path.parent.parent):
            try:
                folder.rmdir()
            except OSError:
                return

    def set_expires(self, file: StoredFile, expires: float | None) -> None:
        """Remember when an object goes away."""
        with file.path.open("r+b") as stream:
            os.pwrite(stream.fileno(), _EXPIRES.pack(expires or 0.0), 8)

    def _count(self, size: int) -> None:
        with self._counting:
            self.used += size

    # --- reading ----------------------------------------------------------------------------------------------------

    def read_into(self, file: StoredFile, buffer: memoryview) -> None:
        """The payload. Raises CorruptedError (the file is in quarantine then), GoneError."""
        crc = 0
        try:
            with file.path.open("rb", buffering=0) as stream:
                stream.seek(file.offset)
                for start in range(0, file.size, _STEP):
                    step = buffer[start : min(start + _STEP, file.size)]
                    got = _read_all(stream.fileno(), step)
                    if got < len(step):
                        raise self.quarantine(file, f"it ends after {start + got} of {file.size} bytes")
                    crc = zlib.crc32(step, crc)
        except FileNotFoundError:
            raise GoneError(f"object {file.description.key!r} not found: {file.path} is gone") from None
        except OSError as error:
            raise self.quarantine(file, f"it can't be read: {error.strerror}") from None
        if crc != file.crc:
            raise self.quarantine(file, "its checksum does not match")

    def map(self, file: StoredFile) -> mmap.mmap:
        """The whole file, to read; its payload is verified now. Raises CorruptedError, GoneError."""
        try:
            with file.path.open("rb") as stream:
                if os.fstat(stream.fileno()).st_size < file.offset + file.size:
                    raise self.quarantine(file, "it is shorter than it was")
                mapped = mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ)
        except FileNotFoundError:
            raise GoneError(f"object {file.description.key!r} not found: {file.path} is gone") from None
        crc = 0
        view = memoryview(mapped)
        for start in range(file.offset, file.offset + file.size, _STEP):
            crc = zlib.crc32(view[start : min(start + _STEP, file.offset + file.size)], crc)
        if crc != file.crc:
            raise self.quarantine(file, "its checksum does not match")
        return mapped

    def quarantine(self, file: StoredFile, why: str) -> CorruptedError:
        """Put a bad file aside; the error that says so."""
        into = self._quarantine / f"{file.path.name}.{os.getpid()}.{next(self._numbers)}"
        try:
            file.path.rename(into)
            if file.offset:  # else it was never counted
                self._count(-_size_of(into))
        except OSError:
            into = file.path
        _log.error("object_corrupted key=%s file=%s why=%r", file.description.key, into, why)
        return CorruptedError(
            f"the file of object {file.description.key!r} is corrupted: {why}; it is now {into}",
            remedy="put the object again",
        )

    def scan(self) -> Iterator[Found]:
        """All files with a valid head. What is broken goes to quarantine."""
        for path in sorted(self.folder.glob("*/*/*")):
            if path.suffix not in (BASE, PATCH, HEAD) or path.parts[-3].startswith(".") or not path.is_file():
                continue
            try:
                yield self._read_head(path)
            except (ValueError, struct.error, msgspec.MsgspecError, InvalidKeyError, OSError) as error:
                key, age = _named(path)
                unknown = Description(key, 0, 0, False, False, "")
                bad = self.quarantine(StoredFile(path, unknown, 0, 0, 0), f"its head is broken: {error}")
                self.broken.append(Broken(key, age, bad.message))

    def _read_head(self, path: Path) -> Found:
        with path.open("rb") as stream:
            head = stream.read(4096)
            length = os.fstat(stream.fileno()).st_size
        magic, expires, offset, size, crc, head_size, head_crc = _HEAD.unpack_from(head)
        if magic != _MAGIC or zlib.crc32(head[16 : _HEAD.size - 4] + head[_HEAD.size : head_size]) != head_crc:
            raise ValueError("not a file of the object cache")
        description = msgspec.msgpack.decode(head[_HEAD.size : head_size], type=Description)
        if self.path_of(description) != path:
            raise ValueError(f"it belongs to {description.key}")
        if not description.remote and length < offset + size:
            raise ValueError(f"it ends after {length} of {offset + size} bytes")
        self._count(length)
        return Found(StoredFile(path, description, offset, size, crc), expires or None)


def _head(offset: int, size: int, crc: int, description: Description, expires: float | None) -> bytes:
    text = msgspec.msgpack.encode(description)
    length = _HEAD.size + len(text)
    fixed = _HEAD.pack(_MAGIC, expires or 0.0, offset, size, crc, length, 0)
    total = zlib.crc32(fixed[16:-4] + text)
    return fixed[:-4] + struct.pack("<I", total) + text


def _file_name(part: str) -> str:
    """A part of a key as the name of a file: never hidden, never like those that the cache makes itself."""
    safe = part.replace("%", "%25").replace("@", "%40")
    return f"%2E{safe[1:]}" if safe.startswith(".") else safe


def _named(path: Path) -> tuple[str, tuple[int, int]]:
    """Whose file it is, and of which age, by its name alone; age (0, 0) when the name does not say."""
    name, _, rest = path.name.rpartition("@")
    parts = (path.parent.parent.name, path.parent.name, name)
    key = "/".join(part.replace("%2E", ".").replace("%40", "@").replace("%25", "%") for part in parts)
    born, _, version = rest.partition(".")[0].partition("-")
    try:
        return key, (int(born, 16), int(version))
    except ValueError:
        return key, (0, 0)


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _write_at(fd: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        try:
            done = os.pwrite(fd, view, offset)
        except OSError as error:
            raise _disk_error(error, None) from None
        view = view[done:]
        offset += done


def _read_all(fd: int, buffer: memoryview) -> int:
    got = 0
    while got < len(buffer):
        count = os.readv(fd, [buffer[got:]])
        if not count:
            break
        got += count
    return got


def _place(draft: Path, path: Path) -> None:
    """Rename a draft; its folder may be removed by whoever deletes the last file in it, and is made again then."""
    while True:
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            draft.rename(path)
        except FileNotFoundError:
            if not draft.exists():
                raise
            continue
        _sync_folder(path.parent)
        return


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _disk_error(error: OSError, folder: Path | None) -> FlameError:
    where = f" at {folder}" if folder is not None else ""
    if error.errno in _FULL:
        return ExhaustedError(
            f"the disk of the cache{where} is full", remedy="free some room, delete objects, or move cache.storage"
        )
    return InternalError(f"the disk of the cache{where} can't be written: {error.strerror or error}")


LEADS = {True: 0, False: LEAD}  # by whether the payload is a table

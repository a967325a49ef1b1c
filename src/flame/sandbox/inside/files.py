"""Files of the sandbox, as far as its user may reach them. Paths that are not absolute start at the working folder.

Links mean here what they mean to programs: reading, writing and listing go through them, removing and renaming take
the link itself. A link can lead anywhere, since it leads nowhere that code in the sandbox could not go by itself.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from bisect import bisect_right
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from flame.model.errors import (
    AlreadyExistsError,
    ExhaustedError,
    FlameError,
    InternalError,
    InvalidArgumentError,
    InvalidStateError,
    NotFoundError,
    PermissionDeniedError,
)
from flame.sandbox.wire import Content, File, Files, ReadFile, WriteFile

DRAFT = ".flame-draft-"  # what the names of files begin with that are being written
MAX_LISTED = 2000  # names in one answer
MAX_PIECE = 8 * 1024**2
_ABANDONED_S = 120.0  # after which a file that is not sent further is given up


class _Draft:
    """A file that is being written."""

    def __init__(self, path: Path, target: Path, descriptor: int) -> None:
        self.path = path
        self.target = target
        self.descriptor = descriptor
        self.touched = time.monotonic()

    def give_up(self) -> None:
        os.close(self.descriptor)
        self.path.unlink(missing_ok=True)


class Folder:
    """The working folder and what can be reached from it."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._drafts: dict[str, _Draft] = {}

    def resolve(self, path: str) -> Path:
        """Where a path of the user leads. Raises InvalidArgumentError."""
        if not path or "\0" in path:
            raise InvalidArgumentError(f"{path!r} is no path")
        return Path(self.folder, path)

    def stat(self, path: str) -> File | None:
        """What has this name; a link is told as the link. None when nothing has."""
        found = self.resolve(path)
        try:
            return described(found)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _in_words(error, path) from None

    def list(self, path: str, start: str) -> Files:
        """The folder's entries by name; a limited number of them."""
        folder = self.resolve(path)
        with _told(path):
            if not stat.S_ISDIR(folder.stat().st_mode):
                raise InvalidArgumentError(f"{path} is no folder")
            names = sorted(os.fsencode(entry.name) for entry in folder.iterdir())
        names = names[bisect_right(names, bytes.fromhex(start)) :] if start else names
        found: list[File] = []
        for name in names[:MAX_LISTED]:
            try:
                found.append(described(folder / os.fsdecode(name)))
            except OSError:
                continue  # it went meanwhile
        return Files(found, names[MAX_LISTED - 1].hex() if len(names) > MAX_LISTED else "")

    def read(self, request: ReadFile) -> Content:
        """A part of a file. Raises InvalidArgumentError for what is none."""
        with _told(request.path):
            # Whoever opens a pipe or a terminal waits, or makes it its own.
            descriptor = os.open(self.resolve(request.path), os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
            try:
                about = os.fstat(descriptor)
                if stat.S_ISDIR(about.st_mode):
                    raise IsADirectoryError(errno.EISDIR, "")
                if not stat.S_ISREG(about.st_mode):
                    raise InvalidArgumentError(f"{request.path} is a device, a pipe or a socket, and no file")
                data = os.pread(descriptor, min(request.size, MAX_PIECE), request.offset)
            finally:
                os.close(descriptor)
        return Content(data, about.st_size, about.st_ino)

    def write(self, request: WriteFile) -> None:
        """A part of a file that takes the place of what has its name when all of it is there."""
        now = time.monotonic()
        for name, draft in list(self._drafts.items()):
            if now - draft.touched > _ABANDONED_S:
                self._drafts.pop(name).give_up()
        with _told(request.path):
            draft = self._drafts.get(request.id)
            if draft is None:
                if request.offset:
                    raise InvalidStateError(f"{request.path}: what came before of this file was given up")
                draft = self._drafts[request.id] = self._begin(request)
            draft.touched = now
            try:
                data, offset = memoryview(request.data), request.offset
                while data:
                    written = os.pwrite(draft.descriptor, data, offset)
                    data, offset = data[written:], offset + written
                if request.last:
                    draft.path.replace(draft.target)
                    os.close(self._drafts.pop(request.id).descriptor)
            except BaseException:
                if request.id in self._drafts:
                    self._drafts.pop(request.id).give_up()
                raise

    def _begin(self, request: WriteFile) -> _Draft:
        target = self.resolve(request.path).resolve()  # a link stays, what it names is replaced
        mode = 0o644 if request.mode is None else request.mode & 0o777
        try:
            about = target.stat()
        except FileNotFoundError:
            target.parent.mkdir(parents=True, exist_ok=True)
        else:
            if stat.S_ISDIR(about.st_mode):
                raise IsADirectoryError(errno.EISDIR, "")
            if not stat.S_ISREG(about.st_mode):
                raise InvalidArgumentError(f"{request.path} is a device, a pipe or a socket, and no file")
            if request.mode is None:
                mode = stat.S_IMODE(about.st_mode) & 0o777
        path = target.parent / f"{DRAFT}{request.id}"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.fchmod(descriptor, mode)
        return _Draft(path, target, descriptor)

    def make_dir(self, path: str) -> None:
        with _told(path):
            self.resolve(path).mkdir(parents=True, exist_ok=True)

    def remove(self, path: str, *, recursive: bool) -> None:
        """A link itself, never what it leads to."""
        found = self.resolve(path)
        with _told(path):
            if not stat.S_ISDIR(found.lstat().st_mode):
                found.unlink()
            elif Path(self.folder).resolve().is_relative_to(found.resolve()):
                raise InvalidArgumentError(f"{path} is where the sandbox works", remedy="remove what is in it")
            elif recursive:
                import shutil

                shutil.rmtree(found)
            else:
                found.rmdir()

    def rename(self, path: str, new: str) -> None:
        """A file takes the place of one that has the new name; a folder only that of an empty one."""
        target = self.resolve(new)
        with _told(path):
            target.parent.mkdir(parents=True, exist_ok=True)
            self.resolve(path).rename(target)

    def close(self) -> None:
        for draft in self._drafts.values():
            draft.give_up()
        self._drafts.clear()


def described(path: Path) -> File:
    """Raises OSError."""
    about = path.lstat()
    kinds: list[tuple[Callable[[int], bool], str]] = [
        (stat.S_ISREG, "file"), (stat.S_ISDIR, "folder"), (stat.S_ISLNK, "link")
    ]  # fmt: skip
    kind = next((name for test, name in kinds if test(about.st_mode)), "other")
    target = os.readlink(path) if kind == "link" else ""
    mode = stat.S_IMODE(about.st_mode)
    return File(_text(path.name), _text(str(path)), kind, about.st_size, mode, about.st_mtime, _text(target))


def _text(name: str) -> str:
    """A name that is no UTF-8 can't be told exactly."""
    return name.encode("utf-8", "replace").decode()


@contextmanager
def _told(path: str) -> Generator[None]:
    """What goes wrong with a file, in the user's words."""
    try:
        yield
    except OSError as error:
        raise _in_words(error, path) from None


def _in_words(error: OSError, path: str) -> FlameError:
    match error.errno:
        case errno.ENOENT:
            return NotFoundError(f"there is no {path}")
        case errno.EISDIR:
            return InvalidArgumentError(f"{path} is a folder")
        case errno.ENOTDIR:
            return InvalidArgumentError(f"{path}: a part of it that should be a folder is none")
        case errno.ELOOP:
            return InvalidArgumentError(f"{path} leads from link to link without end")
        case errno.ENAMETOOLONG:
            return InvalidArgumentError(f"{path[:60]}... is too long a name")
        case errno.ENOTEMPTY:
            return InvalidStateError(f"folder {path} is not empty", remedy="remove it with recursive=True")
        case errno.EEXIST:
            return AlreadyExistsError(f"{path} exists already")
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return PermissionDeniedError(f"{path} can't be changed or read by code in the sandbox ({error.strerror})")
        case errno.ENOSPC | errno.EDQUOT:
            return ExhaustedError(f"{path}: the sandbox's disk is full", remedy="remove files, or give it limits.disk")
        case _:
            return InternalError(f"{path}: {error.strerror or error}")

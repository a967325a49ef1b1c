"""Files and folders between this machine and a sandbox.

What a sandbox says is not trusted here: names are looked at one by one, links of it are left out, links that are here
are never written through, and there are limits.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from flame.client.values import short_name
from flame.model.errors import InvalidArgumentError, ProtocolError, TooLargeError
from flame.sandbox import wire
from flame.sandbox.files import listed, read_into, write_pieces
from flame.sandbox.files import stat as remote_stat
from flame.sandbox.steps import Steps, do
from flame.sandbox.values import FileInfo

MAX_SIZE = 1024**3
MAX_FILES = 100_000
MAX_DEPTH = 100


class _Budget:
    """What may still be transferred."""

    def __init__(self, size: int) -> None:
        self._allowed = size
        self.size = size
        self._files = MAX_FILES

    def file(self, depth: int) -> None:
        self._files -= 1
        if self._files < 0 or depth > MAX_DEPTH:
            raise TooLargeError(f"there are more than {MAX_FILES} files, or folders {MAX_DEPTH} deep")

    def spend(self, size: int) -> None:
        self.size -= size
        if self.size < 0:
            raise TooLargeError(f"it is more than {self._allowed} bytes", remedy="raise max_size")


def upload(local: str | os.PathLike[str], path: str, max_size: int) -> Steps[None]:
    """A file, or a folder and all in it but links, pipes, sockets and devices. Raises OSError."""
    source = Path(local)
    about = source.stat()
    budget = _Budget(max_size)
    if stat.S_ISREG(about.st_mode):
        yield from _upload_file(source, path, budget)
    elif stat.S_ISDIR(about.st_mode):
        yield from _upload_folder(source, path, budget, 0)
    else:
        raise InvalidArgumentError(f"{source} is neither a file nor a folder")


def _upload_folder(source: Path, path: str, budget: _Budget, depth: int) -> Steps[None]:
    yield from do(wire.MakeDir(path))
    with os.scandir(source) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        budget.file(depth)
        if entry.is_dir(follow_symlinks=False):
            yield from _upload_folder(Path(entry.path), f"{path}/{entry.name}", budget, depth + 1)
        elif entry.is_file(follow_symlinks=False):
            yield from _upload_file(Path(entry.path), f"{path}/{entry.name}", budget)


def _upload_file(source: Path, path: str, budget: _Budget) -> Steps[None]:
    with source.open("rb") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o777
        yield from write_pieces(path, _pieces(file, budget), mode)


def _pieces(file: BinaryIO, budget: _Budget) -> Iterator[bytes]:
    while piece := file.read(wire.PIECE):
        budget.spend(len(piece))
        yield piece


def download(path: str, local: str | os.PathLike[str], max_size: int) -> Steps[None]:
    """A file, or a folder and all in it but links. Raises OSError, TooLargeError."""
    target = Path(local)
    about = yield from remote_stat(path)
    if about.kind == "link":  # the user named it himself
        about = FileInfo(about.name, about.path, (yield from _kind_behind(path)), about.size, 0o644, about.modified)
    folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        name = target.name
        if name in ("", ".", ".."):
            raise InvalidArgumentError(f"{target} is no name for a file")
        yield from _download(path, about, folder, name, _Budget(max_size), 0)
    finally:
        os.close(folder)


def _kind_behind(path: str) -> Steps[str]:
    try:
        yield from listed(path)
    except InvalidArgumentError:
        return "file"
    return "folder"


def _download(path: str, about: FileInfo, folder: int, name: str, budget: _Budget, depth: int) -> Steps[None]:
    """Put it into the open folder under this name."""
    budget.file(depth)
    if about.kind == "file":
        yield from _download_file(path, about, folder, name, budget)
    elif about.kind == "folder":
        try:
            os.mkdir(name, 0o755, dir_fd=folder)
        except FileExistsError:
            pass  # if it is no folder, it can't be opened as one
        below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        try:
            for entry in (yield from listed(path)):
                if entry.name in ("", ".", "..") or "/" in entry.name or "\0" in entry.name:
                    raise ProtocolError(f"the sandbox names a file {entry.name!r}, which no file can be called")
                yield from _download(f"{path}/{entry.name}", entry, below, entry.name, budget, depth + 1)
        finally:
            os.close(below)


def _download_file(path: str, about: FileInfo, folder: int, name: str, budget: _Budget) -> Steps[None]:
    """It takes the place of what has the name, a link as well, when it is complete."""
    draft = f".{short_name('part', 12)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(draft, flags, 0o644, dir_fd=folder)
    try:
        with os.fdopen(descriptor, "wb") as file:

            def take(piece: bytes) -> None:
                budget.spend(len(piece))
                file.write(piece)

            yield from read_into(path, take)
            os.fchmod(file.fileno(), 0o755 if about.mode & 0o100 else 0o644)
        os.replace(draft, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        try:
            os.unlink(draft, dir_fd=folder)
        except FileNotFoundError:
            pass
        raise

"""Making packages: a deterministic .tar.gz, so that the same content has the same SHA-256 whoever packs it when."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import logging
import os
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from flame.model.errors import InvalidArgumentError
from flame.packages.selection import IGNORE_FILE, Selection

logger = logging.getLogger("flame.packages")

LARGE = 50_000_000  # bytes of a folder that somebody may have packed without meaning to
_ENVIRONMENTS = ("pyvenv.cfg", "conda-meta")  # what is in a virtual environment, whatever its name
_TRIES = 3


class Built(msgspec.Struct, frozen=True):
    """A package: its file, the SHA-256 and size of it, and the names in it."""

    file: Path
    digest: str
    size: int
    names: tuple[str, ...]


def pack_folder(
    folder: Path,
    into: Path,
    *,
    excludes: Sequence[str] = (),
    more: Mapping[str, bytes] | None = None,
    gitignore: bool = False,
) -> Built:
    """Pack what is in a folder into the file `into`, but not virtual environments, nor what `excludes`, the defaults
    and the folder's .flameignore name: patterns for a path in it or for a name at any depth, with ! before those of
    what shall be packed all the same. With `gitignore`, what Git ignores is not packed either.

    `more` are further files by their path, for paths that the folder does not have. A link to a file in the folder is
    packed as that file. What vanishes meanwhile is not packed; when files change, it begins anew. Raises
    InvalidArgumentError for other links, devices, a folder that can't be read, and files that do not stop changing.
    """
    selection, changed = Selection.of(folder, excludes, gitignore=gitignore), ""
    for _ in range(_TRIES):
        files: dict[str, Path | bytes] = dict(_walk(folder, folder, selection))
        _warn_of_size(folder, files)
        for name, content in (more or {}).items():
            files.setdefault(name, content)
        try:
            return pack_files(files, into)
        except _ChangedError as error:
            changed = error.name
    raise InvalidArgumentError(
        f"{changed} in {folder} changes while it is packed, {_TRIES} times in a row",
        remedy=f"stop what writes it, or name it in {IGNORE_FILE}",
    )


def pack_files(files: Mapping[str, Path | bytes], into: Path) -> Built:
    """Pack these files, by their path in the package, as far as they are there. Raises InvalidArgumentError."""
    with (
        into.open("wb") as out,
        gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=out, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as archive,
    ):
        names = tuple(name for name in sorted(files) if _add(archive, name, files[name]))
    return Built(into, sha256_of(into), into.stat().st_size, names)


class _ChangedError(Exception):
    """A file was written to while it was packed."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


def sha256_of(file: Path) -> str:
    """Of its content, 64 hex digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _walk(folder: Path, root: Path, selection: Selection, name: str = "") -> Iterator[tuple[str, Path]]:
    """Folders without files leave no trace."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except FileNotFoundError:
        if folder == root:
            raise InvalidArgumentError(f"there is no folder {folder}") from None
        return  # it was there a moment ago
    except OSError as error:
        raise InvalidArgumentError(f"{folder} can't be read: {error.strerror}") from None
    selection = selection.inside(folder, name)
    for entry in entries:
        file = Path(entry.path)
        path = file.relative_to(root).as_posix()
        is_folder = entry.is_dir(follow_symlinks=False)
        if not selection.packs(path, folder=is_folder):
            continue
        if entry.is_symlink():
            target = file.resolve()
            if not target.is_relative_to(root.resolve()):
                raise _refused(path, "a link that leads out of the folder")
            if not target.is_file():
                raise _refused(path, "a link to a folder or to nothing")
            yield path, target
        elif is_folder:
            if not any((file / sign).exists() for sign in _ENVIRONMENTS):
                yield from _walk(file, root, selection, entry.name)
        elif entry.is_file():
            yield path, file
        elif file.exists():
            raise _refused(path, "a device, a pipe or a socket")


def _warn_of_size(folder: Path, files: Mapping[str, Path | bytes]) -> None:
    """Say what makes a package large, before it takes its time."""
    sizes = Counter[str]()
    for name, file in files.items():
        with contextlib.suppress(OSError):
            if isinstance(file, Path):
                first, below, _ = name.partition("/")
                sizes[first + below] += file.stat().st_size
    total = sizes.total()
    if total > LARGE:
        largest = ", ".join(f"{name} {size / 1e6:,.0f} MB" for name, size in sizes.most_common(3))
        logger.warning(
            "%s is sent to the nodes with %s MB in %s files (%s); what they do not need can be named in %s",
            folder,
            f"{total / 1e6:,.0f}",
            f"{len(files):,}",
            largest,
            IGNORE_FILE,
        )


def _refused(path: str, what: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"{path} is {what}, which can't be packed", remedy=f"remove it, or name it in {IGNORE_FILE}"
    )


def _add(archive: tarfile.TarFile, name: str, content: Path | bytes) -> bool:
    """Whether it is there. Raises _ChangedError, InvalidArgumentError."""
    info = tarfile.TarInfo(name)
    info.mode = 0o644
    try:
        if isinstance(content, bytes):
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
            return True
        with content.open("rb") as stream:
            before = os.fstat(stream.fileno())
            info.size = before.st_size
            info.mode = 0o755 if before.st_mode & 0o111 else 0o644
            try:
                archive.addfile(info, stream)
            finally:
                after = os.fstat(stream.fileno())
                # What only grew, as logs do, is packed as far as it was there.
                if after.st_size < before.st_size or (
                    after.st_size == before.st_size and after.st_mtime_ns != before.st_mtime_ns
                ):
                    raise _ChangedError(name)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise InvalidArgumentError(f"{name} can't be packed: {error.strerror or error}") from None
    return True

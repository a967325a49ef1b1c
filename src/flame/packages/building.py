"""Making packages: a deterministic .tar.gz, so that the same content has the same SHA-256 whoever packs it when."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import msgspec

from flame.model.errors import InvalidArgumentError

IGNORE_FILE = ".flameignore"
DEFAULT_EXCLUDES = (
    ".venv",
    "venv",
    "__pycache__",
    ".pytest_cache",
    ".ruff_cache",
    ".mypy_cache",
    "*.egg-info",
    ".git",
    ".tox",
    "node_modules",
    "*.pyc",
    "*.pyo",
    ".DS_Store",
    IGNORE_FILE,
)


class Built(msgspec.Struct, frozen=True):
    """A package: its file, the SHA-256 and size of it, and the names in it."""

    file: Path
    digest: str
    size: int
    names: tuple[str, ...]


def pack_folder(
    folder: Path, into: Path, *, excludes: Sequence[str] = (), more: Mapping[str, bytes] | None = None
) -> Built:
    """Pack what is in a folder into the file `into`, but not virtual environments, nor what `excludes`, the defaults
    and the folder's .flameignore name: patterns for a path in it or for a name at any depth.

    `more` are further files by their path, for paths that the folder does not have. A link to a file in the folder is
    packed as that file. Raises InvalidArgumentError for other links, devices, and a folder that can't be read.
    """
    patterns = (*DEFAULT_EXCLUDES, *excludes, *_ignored(folder))
    files: dict[str, Path | bytes] = dict(_walk(folder, folder, patterns))
    for name, content in (more or {}).items():
        files.setdefault(name, content)
    return pack_files(files, into)


def pack_files(files: Mapping[str, Path | bytes], into: Path) -> Built:
    """Pack these files, by their path in the package. Raises InvalidArgumentError."""
    with (
        into.open("wb") as out,
        gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=out, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as archive,
    ):
        for name in sorted(files):
            _add(archive, name, files[name])
    return Built(into, sha256_of(into), into.stat().st_size, tuple(sorted(files)))


def sha256_of(file: Path) -> str:
    """Of its content, 64 hex digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _ignored(folder: Path) -> list[str]:
    try:
        lines = (folder / IGNORE_FILE).read_text().splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgumentError(f"{folder / IGNORE_FILE} can't be read: {error}") from None
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def _excluded(path: str, patterns: Sequence[str]) -> bool:
    name = path.rpartition("/")[2]
    return any(
        fnmatchcase(path, pattern) or fnmatchcase(name, pattern)
        for pattern in (pattern.strip("/") for pattern in patterns)
    )


def _walk(folder: Path, root: Path, patterns: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """Folders without files leave no trace."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise InvalidArgumentError(f"{folder} can't be read: {error.strerror}") from None
    for entry in entries:
        file = Path(entry.path)
        path = file.relative_to(root).as_posix()
        if _excluded(path, patterns):
            continue
        if entry.is_symlink():
            target = file.resolve()
            if not target.is_relative_to(root.resolve()):
                raise _refused(path, "a link that leads out of the folder")
            if not target.is_file():
                raise _refused(path, "a link to a folder or to nothing")
            yield path, target
        elif entry.is_dir() and not (file / "pyvenv.cfg").is_file():  # a virtual environment, whatever its name
            yield from _walk(file, root, patterns)
        elif entry.is_file():
            yield path, file
        elif not entry.is_dir():
            raise _refused(path, "a device, a pipe or a socket")


def _refused(path: str, what: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"{path} is {what}, which can't be packed", remedy=f"remove it, or name it in {IGNORE_FILE}"
    )


def _add(archive: tarfile.TarFile, name: str, content: Path | bytes) -> None:
    info = tarfile.TarInfo(name)
    info.mode = 0o644
    try:
        if isinstance(content, bytes):
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
            return
        with content.open("rb") as stream:
            status = os.fstat(stream.fileno())
            info.size = status.st_size
            info.mode = 0o755 if status.st_mode & 0o111 else 0o644
            archive.addfile(info, stream)
    except OSError as error:
        raise InvalidArgumentError(f"{name} can't be packed: {error.strerror or error}") from None

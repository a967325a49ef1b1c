"""What people deploy: a folder, an archive, a wheel or a program; its files, ready to be looked at and packed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec

from flame.model.errors import InvalidArgumentError
from flame.packages.archive import unpack
from flame.packages.building import Built, pack_folder
from flame.packages.limits import ArchiveLimits

ARCHIVES = (".tar.gz", ".tgz", ".tar", ".zip")


class Source(msgspec.Struct, frozen=True):
    """`folder` has the content of the package; `excludes` is what is left out of it."""

    kind: str
    folder: Path
    excludes: Sequence[str] = ()

    def pack(self, into: Path) -> Built:
        """Raises InvalidArgumentError."""
        return pack_folder(self.folder, into, excludes=self.excludes)


def open_source(path: Path, work: Path, excludes: Sequence[str]) -> Source:
    """What is at a path. `work` is an empty folder for what has to be unpacked or put together.

    An archive that holds nothing but one folder is that folder, unless it is a Python package or bin. Raises
    InvalidArgumentError, TooLargeError.
    """
    if path.is_dir():
        return Source("directory", path, excludes)
    if not path.is_file():
        raise InvalidArgumentError(f"{path} does not exist", remedy="name a folder, an archive, a wheel or a program")
    content = work / "content"
    if path.name.endswith(ARCHIVES):
        unpack(path, path.name, content, ArchiveLimits())
        return Source("archive", _only_folder(content) or content)
    if path.suffix == ".whl":
        content.mkdir()
        shutil.copyfile(path, content / path.name)
        return Source("wheel", content)
    if os.access(path, os.X_OK):
        (content / "bin").mkdir(parents=True)
        shutil.copy(path, content / "bin" / path.name)
        return Source("executable-file", content)
    raise InvalidArgumentError(
        f"{path} is neither a folder nor an archive ({', '.join(ARCHIVES)}), a wheel or an executable",
        remedy="make it executable (chmod +x), or pack it",
    )


def _only_folder(content: Path) -> Path | None:
    entries = list(content.iterdir())
    if len(entries) != 1 or entries[0].is_symlink() or not entries[0].is_dir() or entries[0].name == "bin":
        return None
    modules = any((entries[0] / name).exists() for name in ("__init__.py", "__main__.py"))
    return None if modules else entries[0]

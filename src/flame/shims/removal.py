"""Removing what somebody who is not trusted left in a folder."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from itertools import count
from pathlib import Path

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove_tree(folder: Path) -> None:
    """Remove a folder and all that is in it, however deep, and whatever permissions it has. Nothing is followed out of
    it. Blocks; what can't be removed stays. Nobody may change anything there any more.

    shutil.rmtree (before Python 3.13) calls itself for each folder in a folder, and some thousands are made quickly.
    """
    with suppress(OSError):
        top = _open(str(folder))
        try:
            _empty(top)
        finally:
            os.close(top)
        folder.rmdir()


def _empty(top: int) -> None:
    """Bring each folder to the top before it is emptied, so that no path grows long and few descriptors are needed."""
    numbers = count()
    unique = secrets.token_hex(8)
    waiting = _remove_files(top)
    while waiting:
        name = waiting.pop()
        with suppress(OSError):
            inner = _open(name, top)
            try:
                for below in _remove_files(inner):
                    brought = f"{unique}-{next(numbers)}"
                    with suppress(OSError):
                        os.chmod(below, 0o700, dir_fd=inner)  # moving a folder changes it
                        os.rename(below, brought, src_dir_fd=inner, dst_dir_fd=top)
                        waiting.append(brought)
            finally:
                os.close(inner)
            os.rmdir(name, dir_fd=top)


def _open(name: str, within: int | None = None) -> int:
    if os.stat(name, dir_fd=within, follow_symlinks=False).st_mode & 0o700 != 0o700:
        os.chmod(name, 0o700, dir_fd=within)
    return os.open(name, _FOLDER, dir_fd=within)


def _remove_files(folder: int) -> list[str]:
    """Remove all that is no folder; the names of those that are."""
    folders: list[str] = []
    with os.scandir(folder) as entries:
        found = list(entries)
    for entry in found:
        with suppress(OSError):
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.name)
            else:
                os.unlink(entry.name, dir_fd=folder)
    return folders

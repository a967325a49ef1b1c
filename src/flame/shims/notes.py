"""What was found out about a program of this machine, for all nodes of this user: to try it takes longer than a node
needs for all else of its start."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

_BOOT = Path("/proc/sys/kernel/random/boot_id")


T = TypeVar("T")


class Notes(Generic[T]):
    """The note about one program, a `kind`. It counts until the machine starts again, or the program changes."""

    def __init__(self, folder: Path, program: str, kind: type[T]) -> None:
        """Raises OSError when the program can't be looked at."""
        status = Path(program).stat()
        marks = (os.path.realpath(program), status.st_size, status.st_mtime_ns, status.st_ino, os.geteuid(), _boot())
        self._path = folder / f"{hashlib.sha256(repr(marks).encode()).hexdigest()[:32]}.json"
        self._kind = kind

    def read(self) -> T | None:
        """What is known, None = nothing, or nothing that can be read."""
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=self._kind)
        except (OSError, msgspec.DecodeError):
            return None

    def write(self, known: T) -> None:
        """Keep it, in place of all other notes. That it can't be kept costs time only."""
        folder = self._path.parent
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            stale = [path for path in folder.glob("*.json") if path != self._path]
            with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
                file.write(msgspec.json.encode(known))
            Path(file.name).replace(self._path)
            for path in stale:
                path.unlink(missing_ok=True)
        except OSError:
            pass


def _boot() -> str:
    """Which start of the machine this is; another for each process where nobody says."""
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return f"{os.getpid()}"

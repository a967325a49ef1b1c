"""Bytes that a client sends ahead, too many for one call: each spool is a file without a name."""

from __future__ import annotations

import os

from flame.model.errors import NotFoundError

_MOST = 8  # at once; the oldest goes


class Spools:
    """Spools by id, until they are taken."""

    def __init__(self) -> None:
        self._files: dict[str, int] = {}

    def add(self, name: str, data: bytes) -> None:
        """Append to the spool of that name. Raises OSError."""
        file = self._files.get(name)
        if file is None:
            while len(self._files) >= _MOST:
                os.close(self._files.pop(next(iter(self._files))))
            import tempfile

            with tempfile.TemporaryFile() as made:
                file = self._files[name] = os.dup(made.fileno())
        view = memoryview(data)
        while view:
            view = view[os.write(file, view) :]

    def take(self, name: str) -> int:
        """The file, at its begin; the caller closes it. Raises NotFoundError."""
        file = self._files.pop(name, None)
        if file is None:
            raise NotFoundError(f"nothing was sent ahead under {name}")
        os.lseek(file, 0, os.SEEK_SET)
        return file

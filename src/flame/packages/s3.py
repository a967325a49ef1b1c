"""Packages in an S3-compatible store, at `s3://BUCKET/PREFIX?region=R&endpoint_override=HOST:PORT&scheme=http`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

from flame.model.errors import InvalidConfigError, UnavailableError

_PIECE = 8 * 1024 * 1024
T = TypeVar("T")


class S3Storage:
    """A package is the object `PREFIX/APPLICATION/NAME`. Credentials come from where AWS's own tools look; nodes need
    some of their own to read. What follows the `?` is for the nodes, too."""

    def __init__(self, base: str) -> None:
        parts = urlsplit(base)
        if parts.username is not None:
            raise InvalidConfigError(
                "an address of packages in S3 has no password in it", remedy="set AWS_ACCESS_KEY_ID and its secret"
            )
        self._base = f"s3://{parts.netloc}{parts.path.rstrip('/')}"
        self._query = f"?{parts.query}" if parts.query else ""
        try:
            self._fs: Any = importlib.import_module("pyarrow.fs")
            self._files, self._root = self._fs.FileSystem.from_uri(f"{self._base}{self._query}")
        except ImportError:
            raise InvalidConfigError(
                "packages in S3 need pyarrow", remedy="pip install 'flame-engine[cache]', or choose another storage"
            ) from None
        except (OSError, ValueError) as error:
            raise InvalidConfigError(f"packages can't be kept at {base!r}: {error}") from None

    def find(self, application: str, name: str, size: int) -> str | None:
        info = self._told(lambda: self._files.get_file_info(self._path(application, name)))
        there = info.type == self._fs.FileType.File and info.size == size
        return self._url(application, name) if there else None

    def put(self, application: str, name: str, file: Path, progress: Callable[[int], None]) -> str:
        def send() -> None:
            sent = 0
            # Nobody sees the object before it is whole: the store makes it when the last part is there.
            path = self._path(application, name)
            with file.open("rb") as source, self._files.open_output_stream(path, compression=None) as sink:
                while piece := source.read(_PIECE):
                    sink.write(piece)
                    sent += len(piece)
                    progress(sent)

        self._told(send)
        return self._url(application, name)

    def read(self, application: str, name: str) -> bytes | None:
        def get() -> bytes | None:
            try:
                with self._files.open_input_stream(self._path(application, name), compression=None) as source:
                    return source.read()
            except FileNotFoundError:
                return None

        return self._told(get)

    def delete(self, application: str, name: str) -> None:
        def remove() -> None:
            path = self._path(application, name)
            if self._files.get_file_info(path).type == self._fs.FileType.File:
                self._files.delete_file(path)

        self._told(remove)

    def names(self, application: str) -> list[str]:
        folder = f"{self._root.rstrip('/')}/{application}"
        selector = self._fs.FileSelector(folder, allow_not_found=True)
        return [info.base_name for info in self._told(lambda: self._files.get_file_info(selector)) if info.is_file]

    def _path(self, application: str, name: str) -> str:
        return f"{self._root.rstrip('/')}/{application}/{name}"

    def _url(self, application: str, name: str) -> str:
        return f"{self._base}/{quote(application)}/{quote(name)}{self._query}"

    def _told(self, action: Callable[[], T]) -> T:
        try:
            return action()
        except OSError as error:
            raise UnavailableError(
                f"the store at {self._base} refused: {str(error)[:300]}",
                remedy="check the address, the credentials (AWS_*) and that the bucket exists",
            ) from None

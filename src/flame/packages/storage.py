"""Where packages are kept for the nodes to fetch them: a folder, a web server that takes PUT, the object cache, S3.

A package's name has the digest of its content in it, so what is there already is not sent again.
"""

from __future__ import annotations

import base64
import os
import secrets
import ssl
import tempfile
from collections.abc import Callable, Iterator
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol
from urllib.parse import quote, unquote, urlsplit

from flame.config import TlsConfig
from flame.model.errors import (
    FlameError,
    InvalidConfigError,
    NotFoundError,
    PermissionDeniedError,
    UnavailableError,
)

SCHEMES = ("file", "http", "https", "grpc", "grpcs", "s3")
_SESSION = "pkg"  # the part of the object cache's keys that packages are under
_PIECE = 1024 * 1024
_TIMEOUT_S = 60.0

Progress = Callable[[int], None]
"""Hears how many bytes were sent so far."""


class Stored(NamedTuple):
    """A package in its place. `url` is where nodes fetch it, without a digest; `sent` whether it was not there yet."""

    url: str
    sent: bool


class PackageStorage(Protocol):
    """Keeps the packages of applications by their names, which have no slash in them. Methods raise FlameError."""

    def find(self, application: str, name: str, size: int) -> str | None:
        """The address of a package of this size, None when it is not there."""
        ...

    def put(self, application: str, name: str, file: Path, progress: Progress) -> str:
        """Keep a file, in place of one of that name; the address where nodes fetch it."""
        ...

    def read(self, application: str, name: str) -> bytes | None:
        """The content of a small file, None when it is not there."""
        ...

    def delete(self, application: str, name: str) -> None:
        """Forget a file. Nothing there is fine."""
        ...

    def names(self, application: str) -> list[str]:
        """Of the files of an application, in no order; none where the storage can't say."""
        ...


def open_storage(base: str, tls: TlsConfig | None = None) -> PackageStorage:
    """The storage at an address: `file:///FOLDER`, `http(s)://HOST/PATH`, `grpc(s)://HOST:PORT` of an object cache,
    `s3://BUCKET/PREFIX`.

    `tls` is for the object cache. Raises InvalidConfigError.
    """
    parts = urlsplit(base)
    if parts.scheme == "file":
        return FolderStorage(Path(unquote(parts.path)))
    if parts.scheme in ("http", "https") and parts.hostname:
        return HttpStorage(base)
    if parts.scheme in ("grpc", "grpcs") and parts.hostname:
        return CacheStorage(base, tls)
    if parts.scheme == "s3" and parts.hostname:
        from flame.packages.s3 import S3Storage

        return S3Storage(base)
    raise InvalidConfigError(
        f"packages can't be kept at {base!r}", remedy=f"write an address that begins with {', '.join(SCHEMES)}"
    )


def store(storage: PackageStorage, application: str, name: str, file: Path, progress: Progress) -> Stored:
    """Put a package unless one of that name and size is there. Raises FlameError."""
    found = storage.find(application, name, file.stat().st_size)
    if found is not None:
        return Stored(found, sent=False)
    return Stored(storage.put(application, name, file, progress), sent=True)


class FolderStorage:
    """A folder that exists on all nodes, in a file system that they share or on the one machine there is."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _file(self, application: str, name: str) -> Path:
        return self._folder / application / name

    def find(self, application: str, name: str, size: int) -> str | None:
        file = self._file(application, name)
        try:
            return _file_url(file) if file.stat().st_size == size else None
        except OSError:
            return None

    def put(self, application: str, name: str, file: Path, progress: Progress) -> str:
        target = self._file(application, name)
        beside = target.with_name(f".{name}.{secrets.token_hex(4)}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with file.open("rb") as source, beside.open("xb") as out:
                for piece in _pieces(source, progress):
                    out.write(piece)
                out.flush()
                os.fsync(out.fileno())
            beside.replace(target)
        except OSError as error:
            beside.unlink(missing_ok=True)
            raise InvalidConfigError(
                f"the package can't be written to {target.parent}: {error.strerror or error}",
                remedy="choose another folder with --storage or package.storage",
            ) from None
        return _file_url(target)

    def read(self, application: str, name: str) -> bytes | None:
        try:
            return self._file(application, name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UnavailableError(f"{self._file(application, name)} can't be read: {error.strerror}") from None

    def delete(self, application: str, name: str) -> None:
        try:
            self._file(application, name).unlink(missing_ok=True)
        except OSError as error:
            raise UnavailableError(f"{self._file(application, name)} can't be removed: {error.strerror}") from None

    def names(self, application: str) -> list[str]:
        try:
            return [path.name for path in (self._folder / application).iterdir()]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise UnavailableError(f"{self._folder / application} can't be read: {error.strerror}") from None


class HttpStorage:
    """A web server that keeps what is PUT under an address and gives it back for GET."""

    def __init__(self, base: str) -> None:
        self._base = base.rstrip("/")
        parts = urlsplit(self._base)
        self._secure, self._host, self._port = parts.scheme == "https", parts.hostname or "", parts.port
        self._path = parts.path
        self._headers: dict[str, str] = {}
        if parts.username is not None:
            user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            self._headers["Authorization"] = f"Basic {base64.b64encode(user.encode()).decode()}"

    def find(self, application: str, name: str, size: int) -> str | None:
        status, _, length = self._ask("HEAD", application, name)
        return self._url(application, name) if status == 200 and length == size else None

    def put(self, application: str, name: str, file: Path, progress: Progress) -> str:
        status, reason, _ = self._ask("PUT", application, name, file, progress)
        if status not in (200, 201, 204):
            raise self._refused("PUT", self._url(application, name), status, reason)
        return self._url(application, name)

    def read(self, application: str, name: str) -> bytes | None:
        status, content, _ = self._ask("GET", application, name)
        if status == 404:
            return None
        if status != 200:
            raise self._refused("GET", self._url(application, name), status, content)
        return content

    def delete(self, application: str, name: str) -> None:
        status, reason, _ = self._ask("DELETE", application, name)
        if status not in (200, 202, 204, 404):
            raise self._refused("DELETE", self._url(application, name), status, reason)

    def names(self, application: str) -> list[str]:
        del application
        return []  # web servers have no common way to say

    def _url(self, application: str, name: str) -> str:
        return f"{self._base}/{quote(application)}/{quote(name)}"

    def _ask(
        self, method: str, application: str, name: str, file: Path | None = None, progress: Progress | None = None
    ) -> tuple[int, bytes, int]:
        """Status, content (of a refusal: the reason), and the length that is announced."""
        path = f"{self._path}/{quote(application)}/{quote(name)}"
        if self._secure:
            connection = HTTPSConnection(
                self._host, self._port, timeout=_TIMEOUT_S, context=ssl.create_default_context()
            )
        else:
            connection = HTTPConnection(self._host, self._port, timeout=_TIMEOUT_S)
        try:
            if file is None:
                connection.request(method, path, headers=self._headers)
            else:
                headers = {**self._headers, "Content-Length": str(file.stat().st_size)}
                headers["Content-Type"] = "application/octet-stream"
                with file.open("rb") as source:
                    connection.request(method, path, body=_pieces(source, progress or _quiet), headers=headers)
            return _read(connection.getresponse())
        except (OSError, HTTPException) as error:
            host = f"{self._host}:{self._port}" if self._port else self._host
            raise UnavailableError(
                f"the package storage at {host} can't be reached: {error}", remedy="check --storage or package.storage"
            ) from None
        finally:
            connection.close()

    def _refused(self, method: str, url: str, status: int, reason: bytes) -> FlameError:
        parts = urlsplit(url)
        shown = url.replace(parts.netloc, parts.netloc.rpartition("@")[2], 1)
        text = f"the package storage refused {method} {shown}: {status} {reason[:200].decode(errors='replace')}".strip()
        if status in (401, 403):
            return PermissionDeniedError(text, remedy="put a user and a password into the storage's address")
        if status == 404:
            return NotFoundError(text, remedy="check the storage's address")
        return UnavailableError(text, remedy="look after the storage")


class CacheStorage:
    """The object cache: a package is the object `APPLICATION/pkg/NAME`."""

    def __init__(self, endpoint: str, tls: TlsConfig | None) -> None:
        from flame.objects.client import ObjectClient

        self._endpoint = endpoint
        self._client = ObjectClient(endpoint, tls=tls)

    def find(self, application: str, name: str, size: int) -> str | None:
        info = self._client.exists(_key(application, name))
        return self._url(self._endpoint, application, name) if info is not None and info.size == size else None

    def put(self, application: str, name: str, file: Path, progress: Progress) -> str:
        stored = self._client.upload(_key(application, name), file)
        progress(file.stat().st_size)
        # Of several caches behind one address it is the one that has it.
        return self._url(stored.endpoint, application, name)

    def read(self, application: str, name: str) -> bytes | None:
        from flame.objects.keys import ObjectRef

        with tempfile.TemporaryDirectory(prefix="flame-") as folder:
            file = Path(folder) / "object"
            try:
                self._client.download(ObjectRef(self._endpoint, _key(application, name)), file)
            except NotFoundError:
                return None
            return file.read_bytes()

    def delete(self, application: str, name: str) -> None:
        self._client.delete(_key(application, name))

    def names(self, application: str) -> list[str]:
        return [info.key.rpartition("/")[2] for info in self._client.list(f"{application}/{_SESSION}")]

    def _url(self, endpoint: str, application: str, name: str) -> str:
        place = endpoint.replace("grpc+tls://", "grpcs://", 1).rstrip("/")
        return f"{place}/{quote(application)}/{_SESSION}/{quote(name)}"


def _key(application: str, name: str) -> str:
    return f"{application}/{_SESSION}/{name}"


def _file_url(file: Path) -> str:
    return file.absolute().as_uri()


def _pieces(source: BinaryIO, progress: Progress) -> Iterator[bytes]:
    sent = 0
    while piece := source.read(_PIECE):
        yield piece
        sent += len(piece)
        progress(sent)


def _read(answer: HTTPResponse) -> tuple[int, bytes, int]:
    content = answer.read()
    length = answer.getheader("Content-Length") or "-1"
    good = answer.status < 400
    return answer.status, content if good else answer.reason.encode(), int(length) if length.isdecimal() else -1


def _quiet(sent: int) -> None:
    """Nobody watches."""

"""Getting what a package's address names: streamed into a file, its size limited, its SHA-256 computed or checked.

Where the source can say cheaply whether its content is still the same (a file's status, an ETag), that word is kept as
`validator` and shown the next time.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib
import time
from collections.abc import AsyncIterator, Callable, Generator
from pathlib import Path
from typing import Any, BinaryIO, cast

import msgspec

from flame.model.errors import (
    InvalidArgumentError,
    InvalidConfigError,
    NotFoundError,
    TimedOutError,
    TooLargeError,
    UnavailableError,
)
from flame.packages.limits import StoreLimits
from flame.packages.url import PackageUrl

_PIECE = 1024 * 1024
_PROGRESS_S = 2.0

Say = Callable[[str], None]


class Fetched(msgspec.Struct, frozen=True):
    """What came. `digest` is the SHA-256 of the content, empty when it is `unchanged` and so did not come again."""

    digest: str = ""
    size: int = 0
    validator: str = ""
    unchanged: bool = False


class _UnchangedError(Exception):
    """The source says that the content is what the validator stands for."""


async def fetch(
    url: PackageUrl, into: BinaryIO, limits: StoreLimits, say: Say, *, validator: str = "", ca_file: str = ""
) -> Fetched:
    """Write the content to `into`, which is empty. `say` gets lines about the progress.

    With a `validator` of an earlier time the content may be `unchanged`. `ca_file` is the authority that caches
    (grpcs) are checked with. Raises NotFoundError, UnavailableError, TimedOutError, TooLargeError, InvalidConfigError
    when a library for it is missing, InvalidArgumentError when the content is not what the address pins.
    """
    say(f"fetching {url.shown}")
    writer = _Writer(url, into, limits, say)
    try:
        async with asyncio.timeout(limits.fetch_timeout):
            if url.scheme in ("http", "https"):
                found = await _fetch_http(url, writer, limits, validator)
            else:
                found = await _in_thread(url, writer, limits, validator, ca_file)
    except _UnchangedError:
        say("it is unchanged")
        return Fetched(validator=validator, unchanged=True)
    except TimeoutError:
        raise TimedOutError(
            f"{url.shown} was not fetched within {limits.fetch_timeout:g} s ({writer.size:,} bytes came)",
            remedy="place the package nearer to the nodes, or make it smaller",
        ) from None
    digest = writer.digest()
    if url.digest and digest != url.digest:
        raise InvalidArgumentError(
            f"{url.shown} has the SHA-256 {digest}, its address says {url.digest}",
            remedy="deploy it again, or correct the address",
        )
    say(f"fetched {writer.size:,} bytes, sha256 {digest}")
    return Fetched(digest, writer.size, found)


class _Writer:
    """Takes the pieces of the content."""

    def __init__(self, url: PackageUrl, into: BinaryIO, limits: StoreLimits, say: Say) -> None:
        self.size = 0
        self.stopped = False
        self._url = url
        self._into = into
        self._limits = limits
        self._say = say
        self._hash = hashlib.sha256()
        self._said = time.monotonic()

    def expect(self, size: int | None) -> None:
        """So much is announced. Raises TooLargeError."""
        if size is not None and size > self._limits.max_download:
            raise TooLargeError(
                f"{self._url.shown} has {size:,} bytes; a package may have {self._limits.max_download:,}",
                remedy="leave data out of it, services can read them from the object cache",
            )

    def write(self, piece: bytes | memoryview) -> None:
        """Raises TooLargeError, and OSError when the disk is full."""
        if self.stopped:
            raise asyncio.CancelledError
        self.size += len(piece)
        self.expect(self.size)
        self._hash.update(piece)
        self._into.write(piece)
        if time.monotonic() - self._said > _PROGRESS_S:
            self._said = time.monotonic()
            self._say(f"{self.size:,} bytes so far")

    def digest(self) -> str:
        self._into.flush()
        return self._hash.hexdigest()


# --- HTTP ------------------------------------------------------------------------------------------------------------


async def _fetch_http(url: PackageUrl, writer: _Writer, limits: StoreLimits, validator: str) -> str:
    aiohttp = await asyncio.to_thread(importlib.import_module, "aiohttp")  # it takes its time
    headers = {"Accept-Encoding": "identity"}
    kind, _, value = validator.partition(" ")
    if value:
        headers["If-None-Match" if kind == "etag" else "If-Modified-Since"] = value
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=limits.stall_timeout, sock_read=limits.stall_timeout)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, trust_env=True, auto_decompress=False) as session,
            session.get(url.location, headers=headers) as answer,
        ):
            if answer.status == 304 and value:
                raise _UnchangedError
            _check_status(url, answer.status, answer.reason or "")
            writer.expect(answer.content_length)
            async for piece in cast("AsyncIterator[bytes]", answer.content.iter_chunked(_PIECE)):
                writer.write(piece)
            if answer.headers.get("ETag"):
                return f"etag {answer.headers['ETag']}"
            modified = answer.headers.get("Last-Modified", "")
            return f"modified {modified}" if modified else ""
    except TimeoutError as error:
        if isinstance(error, aiohttp.ServerTimeoutError):
            raise UnavailableError(
                f"{url.shown} can't be fetched: the server said nothing for {limits.stall_timeout:g} s",
                remedy="look after the server",
            ) from None
        raise
    except aiohttp.ClientError as error:
        raise UnavailableError(
            f"{url.shown} can't be fetched: {error}", remedy="check that this node reaches the server"
        ) from None


def _check_status(url: PackageUrl, status: int, reason: str) -> None:
    if status == 200:
        return
    text = f"{url.shown} can't be fetched: the server answered {status} {reason}".rstrip()
    if status in (404, 410):
        raise NotFoundError(text, remedy="upload the package again, or correct the address")
    if status in (401, 403):
        raise UnavailableError(text, remedy="let the nodes read it, or put a user and a password into the address")
    raise UnavailableError(text, remedy="look after the server")


# --- sources that block ----------------------------------------------------------------------------------------------


async def _in_thread(url: PackageUrl, writer: _Writer, limits: StoreLimits, validator: str, ca_file: str) -> str:
    def read() -> str:
        if url.scheme == "file":
            pieces, found = _read_file(url, validator)
        elif url.scheme == "s3":
            pieces, found = _read_s3(url, validator)
        else:
            pieces, found = _read_cache(url, limits, ca_file)
        with contextlib.closing(pieces):
            for piece in pieces:
                writer.write(piece)
        return found

    try:
        return await asyncio.to_thread(read)
    finally:
        writer.stopped = True  # also when nobody waits for it any more


_Read = tuple[Generator[bytes | memoryview], str]  # and the validator


def _read_file(url: PackageUrl, validator: str) -> _Read:
    file = Path(url.path)
    try:
        status = file.stat()
        found = f"file {status.st_dev}:{status.st_ino}:{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}"
        if found == validator:
            raise _UnchangedError
        if not file.is_file():
            raise InvalidArgumentError(f"{url.shown} is not a file", remedy="name an archive: .tar.gz, .zip or .whl")
        stream = file.open("rb")
    except FileNotFoundError:
        raise NotFoundError(
            f"{url.shown} does not exist on this node",
            remedy="put it at that path on every node, or use an address that all of them reach",
        ) from None
    except OSError as error:
        raise UnavailableError(
            f"{url.shown} can't be read on this node: {error.strerror}", remedy="let the executor manager read it"
        ) from None
    return _pieces(stream), found


def _pieces(stream: BinaryIO) -> Generator[bytes]:
    with stream:
        while piece := stream.read(_PIECE):
            yield piece


def _read_s3(url: PackageUrl, validator: str) -> _Read:
    fs: Any = _library(url, "pyarrow.fs")
    try:
        system, path = fs.FileSystem.from_uri(url.location)
        info = system.get_file_info(path)
        if info.type != fs.FileType.File:
            raise NotFoundError(f"{url.shown} does not exist", remedy="upload the package again")
        found = f"s3 {info.size}:{info.mtime_ns}"
        if found == validator:
            raise _UnchangedError
        stream = system.open_input_stream(path, compression=None)  # else what ends with .gz would come unpacked
    except OSError as error:
        raise UnavailableError(
            f"{url.shown} can't be fetched: {error}",
            remedy="check the address, the credentials (AWS_*) and that this node reaches the store",
        ) from None
    return _pieces(cast("BinaryIO", stream)), found


def _read_cache(url: PackageUrl, limits: StoreLimits, ca_file: str) -> _Read:
    """An object of the object cache: the column `data` of all its rows, one after another. Its version is no validator:
    an object that was deleted and put again begins with version 1 again."""
    flight: Any = _library(url, "pyarrow.flight")
    secure = url.scheme == "grpcs"
    location = f"{'grpc+tls' if secure else 'grpc'}://{f'[{url.host}]' if ':' in url.host else url.host}:{url.port}"
    options: dict[str, bytes] = {}
    if secure and ca_file:
        try:
            options["tls_root_certs"] = Path(ca_file).read_bytes()
        except OSError as error:
            raise InvalidConfigError(f"ca_file {ca_file} can't be read: {error.strerror}") from None

    def pieces() -> Generator[memoryview]:
        empty = True
        ticket = flight.Ticket(f"{url.path.lstrip('/')}:0".encode())
        try:
            with flight.connect(location, **options) as client:
                for chunk in client.do_get(ticket, flight.FlightCallOptions(timeout=limits.fetch_timeout)):
                    for row in chunk.data.column("data"):
                        empty = False
                        yield memoryview(row.as_buffer())
        except KeyError as error:
            raise NotFoundError(
                f"{url.shown} is not in the cache: {_first_line(error)}", remedy="deploy the package again"
            ) from None
        except flight.FlightTimedOutError:
            raise TimedOutError(f"{url.shown} was not fetched within {limits.fetch_timeout:g} s") from None
        except (flight.FlightError, OSError, ValueError) as error:
            raise UnavailableError(
                f"{url.shown} can't be fetched: {_first_line(error)}", remedy="check that this node reaches the cache"
            ) from None
        if empty:
            raise NotFoundError(f"{url.shown} is empty", remedy="deploy the package again")

    return pieces(), ""


def _first_line(error: BaseException) -> str:
    text = str(error.args[0] if error.args else error)
    return text.strip().partition("\n")[0].partition(". Detail: ")[0].strip("'")


def _library(url: PackageUrl, name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise InvalidConfigError(
            f"{url.shown} can't be fetched: {url.scheme}:// needs pyarrow, which is not installed on this node",
            remedy="install flame-engine with the extra 'cache', or use a file:// or http:// address",
        ) from None

"""Objects of a cache elsewhere, over Arrow Flight."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import msgspec
import pyarrow as pa
import pyarrow.flight as flight

from flame.model.errors import (
    FlameError,
    InternalError,
    InvalidArgumentError,
    InvalidConfigError,
    NotFoundError,
    TimedOutError,
    UnauthenticatedError,
    UnavailableError,
    error_of,
)
from flame.objects import messages as m
from flame.objects.blocks import block
from flame.objects.cells import ANSWER_KEY, OPAQUE_SCHEMA, row
from flame.objects.codecs import Payload
from flame.objects.fetched import Fetched, FetchedPart
from flame.objects.keys import ObjectRef

if TYPE_CHECKING:
    from flame.config import TlsConfig

_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 5000),  # which is also how long a connection may take to be made
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.use_local_subchannel_pool", 1),  # else a new client would wait with those that have just failed
]
_MAX_TEXT = 400
T = TypeVar("T")


@lru_cache(256)
def location(endpoint: str) -> str:
    """The endpoint in words of Arrow: `grpc://` or `grpc+tls://`; `unix:PATH` and `relay:PATH` as they are. Raises
    InvalidConfigError."""
    if endpoint.startswith((f"{m.UNIX}/", f"{m.RELAY}/")) or endpoint == m.RELAY_LINK:
        return endpoint
    scheme, separator, rest = endpoint.partition("://")
    known = {"grpc": "grpc", "http": "grpc", "grpcs": "grpc+tls", "https": "grpc+tls", "grpc+tls": "grpc+tls"}
    if not separator or scheme not in known or not rest:
        raise InvalidConfigError(f"invalid cache endpoint {endpoint!r}", remedy="write grpc://HOST:PORT or grpcs://")
    host = rest.rstrip("/")
    return f"{known[scheme]}://{host if _has_port(host) else f'{host}:9090'}"


def same_cache(endpoint: str, others: Iterable[str]) -> bool:
    """Whether an endpoint is one of the others, in whichever words."""
    return _plain(endpoint) in map(_plain, others)


def _plain(endpoint: str) -> str:
    return location(endpoint).replace("//localhost:", "//127.0.0.1:")


def _has_port(host: str) -> bool:
    return host.rpartition("]")[2].rpartition(":")[2].isdigit() and ":" in host.rpartition("]")[2]


class RemoteClient:
    """A Flight connection. May be used by several threads. `timeout` seconds for what is no transfer of an object."""

    def __init__(self, endpoint: str, tls: TlsConfig | None = None, timeout: float = 30.0) -> None:
        self.location = location(endpoint)
        self._options = flight.FlightCallOptions(timeout=timeout)
        arguments: dict[str, Any] = {"generic_options": _OPTIONS}
        if self.location.startswith("grpc+tls") and tls is not None:
            arguments |= _certificates(tls)
        address = self.location
        if address.startswith(m.UNIX):
            address = f"grpc+unix://{m.flight_beside(Path(address.removeprefix(m.UNIX)))}"
        self._closed = False
        self._reading: set[flight.FlightStreamReader] = set()  # those that somebody waits for at the moment
        try:
            self._client = flight.FlightClient(address, **arguments)
        except pa.ArrowException as error:
            raise InvalidConfigError(f"invalid cache endpoint {endpoint!r}: {error}") from None

    def close(self) -> None:
        """End the connection, and what is being read."""
        self._closed = True
        for reader in tuple(self._reading):
            reader.cancel()
        self._client.close()

    def put(self, key: str, payload: Payload, options: m.Options) -> ObjectRef:
        """Store a payload. Raises FlameError."""
        buffer, keeper = block(payload.size)
        payload.write(buffer)
        options = msgspec.structs.replace(options, table=payload.table, size=payload.size)
        pieces = (keeper.slice(start, min(m.CHUNK, payload.size - start)) for start in range(0, payload.size, m.CHUNK))
        return self.upload(key, pieces, options)

    def upload(self, key: str, pieces: Iterable[pa.Buffer | bytes], options: m.Options) -> ObjectRef:
        """Store a payload that comes in pieces. Raises FlameError."""
        command = m.TICKET + msgspec.json.encode(m.PutCommand(key, options))

        def send() -> ObjectRef:
            writer, reader = self._client.do_put(flight.FlightDescriptor.for_command(command), OPAQUE_SCHEMA)
            try:
                for piece in pieces:
                    writer.write_batch(row(0, piece, OPAQUE_SCHEMA))
                writer.done_writing()
                answer: pa.Buffer | None = cast("Any", reader).read()
            except BaseException:
                with contextlib.suppress(pa.ArrowException, KeyError, OSError):
                    writer.close()  # what is said here about the end of the stream is not the cause
                raise
            writer.close()
            if answer is None:
                raise UnavailableError("the cache stored the object and did not say where")
            return ObjectRef.decode(answer.to_pybytes())

        return self._translated(send)

    def get(self, key: str, version: int = 0, born: int = 0, origin: str = "") -> Fetched:
        """What the cache answers. Raises FlameError."""

        def fetch() -> Fetched:
            answer, pieces = self._open(key, version, born, origin)
            parts = [FetchedPart(part.version, _join(pieces, part.size)) for part in answer.parts]
            for _ in pieces:
                raise InternalError(f"the cache sent more than the {len(parts)} parts of {key!r}")
            return Fetched(answer.version, answer.born, answer.table, answer.full, tuple(parts))

        return self._translated(fetch)

    def download(self, key: str, write: Callable[[memoryview], object]) -> m.Answer:
        """Hand the base of an object to `write`, piece by piece. Raises FlameError."""

        def fetch() -> m.Answer:
            answer, pieces = self._open(key, 0, 0, "")
            left = answer.parts[0].size
            while left:
                piece = next(pieces, None)
                if piece is None:
                    raise UnavailableError(f"the cache ended inside the object {key!r}")
                write(memoryview(piece))
                left -= piece.size
            for _ in pieces:
                pass  # patches are no part of a file
            return answer

        return self._translated(fetch)

    def open(self, key: str, version: int, born: int, origin: str) -> tuple[m.Answer, Iterator[pa.Buffer]]:
        """What the cache answers, and the payloads of its parts, one after another, in pieces. Raises FlameError, also
        while pieces are taken."""
        answer, pieces = self._translated(lambda: self._open(key, version, born, origin))

        def each() -> Iterator[pa.Buffer]:
            while (piece := self._translated(lambda: next(pieces, None))) is not None:
                yield piece

        return answer, each()

    def call(self, action: str, body: bytes) -> bytes:
        """Run an action. Raises FlameError."""

        def ask() -> bytes:
            results = list(self._client.do_action(flight.Action(action, body), self._options))
            if not results:
                raise UnavailableError(f"the cache answered {action} with nothing")
            return results[0].body.to_pybytes()

        return self._translated(ask)

    def _open(self, key: str, version: int, born: int, origin: str) -> tuple[m.Answer, Iterator[pa.Buffer]]:
        ticket = m.TICKET + msgspec.json.encode(m.GetTicket(key, version, born, origin))
        reader: Any = self._client.do_get(flight.Ticket(ticket))
        with self._waiting_for(reader):
            metadata: dict[bytes, bytes] = reader.schema.metadata or {}
        answer = msgspec.json.decode(metadata[ANSWER_KEY], type=m.Answer)
        return answer, self._pieces(reader)

    def _pieces(self, reader: Any) -> Iterator[pa.Buffer]:
        with self._waiting_for(reader):
            for chunk in reader:
                yield chunk.data.column(0)[0].as_buffer()

    @contextlib.contextmanager
    def _waiting_for(self, reader: flight.FlightStreamReader) -> Generator[None]:
        self._reading.add(reader)
        try:
            if self._closed:
                reader.cancel()
            yield
        finally:
            self._reading.discard(reader)

    def _translated(self, action: Callable[[], T]) -> T:
        try:
            return action()
        except FlameError:
            raise
        except (pa.ArrowException, KeyError, OSError) as error:
            if self._closed:
                raise UnavailableError(f"the connection to the cache at {self.location} was closed here") from error
            raise as_flame_error(error, self.location) from error


def as_flame_error(error: Exception, where: str) -> FlameError:
    """The error of ours that an error of Flight stands for."""
    extra = getattr(error, "extra_info", b"")
    if extra:
        try:
            failure = msgspec.json.decode(extra, type=m.Failure)
            return error_of(failure.code, failure.message, failure.remedy, failure.retryable)
        except msgspec.MsgspecError:
            pass
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    for mark in (". gRPC client debug context", ". Client context", " Detail: ", "\n"):
        text = text.partition(mark)[0]
    text = text.removeprefix("Flight error: ")[:_MAX_TEXT]
    if isinstance(error, KeyError):
        return NotFoundError(text)
    if isinstance(error, pa.ArrowInvalid):
        return InvalidArgumentError(text)
    if isinstance(error, flight.FlightTimedOutError):
        return TimedOutError(f"the cache at {where} did not answer in time")
    if isinstance(error, flight.FlightUnauthenticatedError):
        return UnauthenticatedError(f"the cache at {where} wants a certificate: {text}")
    if isinstance(error, flight.FlightUnavailableError) and where.startswith(m.UNIX):
        return UnavailableError(
            f"the object cache of this cluster, at {where}, can't be reached: it has ended",
            remedy="start the cluster again",
        )
    if isinstance(error, flight.FlightUnavailableError):
        return UnavailableError(f"the cache at {where} can't be reached: {text}", remedy="is it running there?")
    return InternalError(f"the cache at {where} failed: {text}")


def _join(pieces: Iterator[pa.Buffer], size: int) -> pa.Buffer:
    """The next `size` bytes in one piece of memory."""
    if not size:
        return pa.py_buffer(b"")
    piece = next(pieces, None)
    if piece is not None and piece.size == size:
        return piece
    view, whole = block(size)
    place = 0
    while piece is not None:
        view[place : place + piece.size] = memoryview(piece).cast("B")
        place += piece.size
        if place == size:
            return whole
        piece = next(pieces, None)
    raise UnavailableError(f"the cache sent {place} of {size} bytes")


def _certificates(tls: TlsConfig) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    try:
        if tls.ca_file is not None:
            arguments["tls_root_certs"] = tls.ca_file.read_bytes()
        if tls.cert_file is not None and tls.key_file is not None:
            arguments |= {"cert_chain": tls.cert_file.read_bytes(), "private_key": tls.key_file.read_bytes()}
    except OSError as error:
        raise InvalidConfigError(f"can't read {error.filename}: {error.strerror}") from None
    return arguments

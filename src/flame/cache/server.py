"""The Flight door of the cache: the contract with foreign clients, and what ours say beyond it."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import msgspec
import pyarrow as pa
import pyarrow.flight as flight

from flame.cache import answers
from flame.cache.actions import Actions
from flame.cache.cache import ObjectCache
from flame.cache.payloads import Content
from flame.cache.receiving import Receiving, stream_writer
from flame.cache.visitors import visitor_of
from flame.model.errors import FlameError, FlameErrorCode, InvalidArgumentError
from flame.objects import codecs
from flame.objects.cells import RESPONSE_SCHEMA
from flame.objects.keys import ObjectKey, ObjectRef
from flame.objects.messages import ACTIONS, TICKET, Failure, GetTicket, Options, PutCommand
from flame.objects.rights import Deed, Visitor, authorize

_log = logging.getLogger("flame.cache")

P = ParamSpec("P")
T = TypeVar("T")
PATCH_COMMAND = b"PATCH:"


def as_flight_error(error: FlameError) -> Exception:
    """The exception that pyarrow turns into the status of the contract; clients of ours find the whole error in it."""
    text = f"{error.message}; {error.remedy}" if error.remedy else error.message
    if error.code == FlameErrorCode.NOT_FOUND:
        return KeyError(text)
    if error.code in (FlameErrorCode.INVALID_ARGUMENT, FlameErrorCode.INVALID_STATE):
        return pa.ArrowInvalid(text)
    extra = msgspec.json.encode(Failure.of(error))
    if error.code == FlameErrorCode.UNAVAILABLE:
        return flight.FlightUnavailableError(text, extra)
    return flight.FlightServerError(text, extra)


def translated(method: Callable[P, T]) -> Callable[P, T]:
    """Errors of ours become errors of Flight; others are logged and reach the client as INTERNAL."""

    @functools.wraps(method)
    def inner(*arguments: P.args, **keywords: P.kwargs) -> T:
        try:
            return method(*arguments, **keywords)
        except FlameError as error:
            raise as_flight_error(error) from None
        except (pa.ArrowException, flight.FlightError):
            raise
        except Exception:
            _log.exception("request_failed method=%s", method.__name__)
            raise

    return inner


class CacheServer(flight.FlightServerBase):
    """Serves a cache at a location. `endpoint`: what references say; `read` finds objects of other caches too."""

    def __init__(
        self,
        location: str,
        endpoint: str,
        cache: ObjectCache,
        actions: Actions,
        read: Callable[[GetTicket], Content],
        **tls: Any,
    ) -> None:
        super().__init__(location, **tls)
        self.endpoint = endpoint
        self._cache = cache
        self._actions = actions
        self._read = read

    @staticmethod
    def _visitor(context: Any) -> Visitor:
        """Who makes a call. Without certificates of clients nobody has a name."""
        return visitor_of(context.peer_identity())

    @translated
    def do_put(self, context: Any, descriptor: flight.FlightDescriptor, reader: Any, writer: Any) -> None:
        """Store what comes; the answer is the reference in BSON."""
        key, options = _destination(descriptor)
        authorize(self._visitor(context), [(Deed.CHANGE, str(key))])
        if options.size >= 0:
            self._cache.check(key, options.size, options)
        schema: Any = reader.schema
        if codecs.FORMAT_KEY in (schema.metadata or {}) and not options.patch:
            payload, table = self._receive_table(schema, reader), True
        else:
            # Our clients send tables as what they are in the cache already: an Arrow stream, in chunks.
            payload, table = self._receive_rows(schema, reader, options), options.table
        if context.is_cancelled() or (options.size >= 0 and payload.size != options.size):
            # To the reader a client that vanished looks like one that is done.
            self._cache.discard(payload)
            _log.info("put_abandoned key=%s bytes=%d", key, payload.size)
            raise InvalidArgumentError(f"the object ended after {payload.size} bytes")
        name, version = self._cache.commit(key, payload, msgspec.structs.replace(options, table=table))
        writer.write(ObjectRef(self.endpoint, name, version).encode())

    def _receive_table(self, schema: Any, reader: Any) -> Any:
        receiving = Receiving(self._cache, table=True)
        try:
            with stream_writer(receiving, schema) as stream:
                for chunk in reader:
                    if chunk.data is not None:
                        stream.write_batch(chunk.data)
            return receiving.finish()
        except BaseException:
            receiving.abandon()
            raise

    def _receive_rows(self, schema: Any, reader: Any, options: Options) -> Any:
        column = schema.get_field_index("data")
        if column < 0 or schema.field(column).type not in (pa.binary(), pa.large_binary()):
            raise InvalidArgumentError(
                "an object needs a column data of type binary", remedy="tables say flame.cache.format in their schema"
            )
        receiving = Receiving(self._cache, table=options.table, size=options.size)
        try:
            for chunk in reader:
                for value in chunk.data.column(column) if chunk.data is not None else ():
                    data = value.as_buffer()
                    if data is not None:
                        receiving.write(data)
            return receiving.finish()
        except BaseException:
            receiving.abandon()
            raise

    @translated
    def do_get(self, context: Any, ticket: flight.Ticket) -> flight.FlightDataStream:
        """An object, or what the asker lacks of it."""
        raw: bytes = ticket.ticket
        ours = raw.startswith(TICKET)
        if ours:
            wanted = _decoded(raw[1:], GetTicket)
        else:
            key, version = _parse_ticket(raw)
            wanted = GetTicket(str(key), version)
        authorize(self._visitor(context), [(Deed.READ, wanted.key)])
        return answers.chunked(self._read(wanted)) if ours else answers.foreign(self._read(wanted))

    @translated
    def do_action(self, context: Any, action: flight.Action) -> Iterator[bytes]:
        """Everything that is neither put nor get."""
        body = action.body.to_pybytes()
        return iter([self._actions.run(action.type, body, self._visitor(context))])

    def list_actions(self, context: Any) -> Any:
        """What `do_action` knows."""
        del context
        return list(ACTIONS.items())

    @translated
    def get_flight_info(self, context: Any, descriptor: flight.FlightDescriptor) -> flight.FlightInfo:
        """Where an object is or would be."""
        key = ObjectKey.from_path(_path_of(descriptor))
        authorize(self._visitor(context), [(Deed.READ, str(key))])
        return self._info(str(key), self._schema_of(key), -1)

    @translated
    def list_flights(self, context: Any, criteria: Any) -> Iterator[flight.FlightInfo]:
        """All objects."""
        del criteria
        authorize(self._visitor(context), [(Deed.KEEP_HOUSE, "")])
        infos = self._cache.all()
        return iter([self._info(info.key, pa.schema([]), info.size) for info in infos])

    @translated
    def get_schema(self, context: Any, descriptor: flight.FlightDescriptor) -> Any:
        """The schema of answers in rows."""
        del context, descriptor
        return flight.SchemaResult(RESPONSE_SCHEMA)

    def _schema_of(self, key: ObjectKey) -> pa.Schema:
        info = self._cache.info(key) if key.object_id is not None else None
        if info is None or not info.table:
            return pa.schema([])
        return answers.native_schema(self._cache.read(str(key)).parts[0])

    def _info(self, key: str, schema: pa.Schema, size: int) -> flight.FlightInfo:
        # A colon in the key would be taken for the version's.
        ticket = f"{key}:0" if ":" in key else key
        endpoints = [flight.FlightEndpoint(ticket.encode(), [self.endpoint])]
        return flight.FlightInfo(schema, flight.FlightDescriptor.for_path(*key.split("/")), endpoints, -1, size)


def _destination(descriptor: flight.FlightDescriptor) -> tuple[ObjectKey, Options]:
    if descriptor.descriptor_type == flight.DescriptorType.PATH:
        key = ObjectKey.from_path(_path_of(descriptor))
        _check_writable(key)
        return key, Options()
    command: bytes = descriptor.command or b""
    if command.startswith(PATCH_COMMAND):
        return ObjectKey.from_key(_text(command[len(PATCH_COMMAND) :])), Options(patch=True)
    if command.startswith(TICKET):
        put = _decoded(command[1:], PutCommand)
        key = ObjectKey.from_key(put.key) if put.options.patch else ObjectKey.from_path(put.key)
        _check_writable(key)
        return key, put.options
    raise InvalidArgumentError(
        f"unknown command {command[:40]!r}", remedy="put under a path, or patch with PATCH:APPLICATION/SESSION/OBJECT"
    )


def _check_writable(key: ObjectKey) -> None:
    if key.is_all_sessions():
        raise InvalidArgumentError(f"can't store under {key}", remedy="'*' is for deleting and listing")


def _path_of(descriptor: flight.FlightDescriptor) -> str:
    if descriptor.descriptor_type != flight.DescriptorType.PATH or not descriptor.path:
        raise InvalidArgumentError("the descriptor has no path", remedy="write APPLICATION/SESSION/OBJECT")
    return "/".join(_text(part) for part in descriptor.path)


def _parse_ticket(raw: bytes) -> tuple[ObjectKey, int]:
    key, colon, version = _text(raw).rpartition(":")
    if not colon:
        return ObjectKey.from_key(version), 0
    if not (version.isascii() and version.isdigit() and len(version) < 20):
        raise InvalidArgumentError(f"invalid version {version[:40]!r} in a ticket", remedy="write KEY:VERSION")
    return ObjectKey.from_key(key), int(version)


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise InvalidArgumentError(f"{raw[:40]!r} is not UTF-8 text") from None


def _decoded(raw: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.MsgspecError as error:
        raise InvalidArgumentError(f"not a {kind.__name__}: {error}") from None

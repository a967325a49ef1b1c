"""Objects of a cache on the same node, read and written in shared memory.

The cache lends memory; what lies in it stays there as long as somebody has a `Lease`: every buffer over it has one. A
process that ends gives back everything with its connection.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
import threading
from collections import deque
from typing import TypeVar

import msgspec
import pyarrow as pa

from flame.model.errors import FlameError, UnavailableError, error_of
from flame.objects import messages as m
from flame.objects.codecs import Payload
from flame.objects.fetched import Fetched, FetchedPart
from flame.objects.wire import Channel

_REPLIES = msgspec.msgpack.Decoder(m.Reply)
_WELCOME_TIMEOUT = 10.0  # seconds; what is there may hang, and there are other ways
_POPULATE_WRITE = 23  # MADV_POPULATE_WRITE
_REGION = 4 * 1024 * 1024  # bytes whose pages are mapped at once
R = TypeVar("R")


class Lease:
    """Keeps one payload where it lies. Ends with the last buffer over it, wherever Python's collector notices that."""

    __slots__ = ("_client", "_map", "_number")

    def __init__(self, client: SharedClient, number: int, mapped: object) -> None:
        self._client = client
        self._number = number
        self._map = mapped

    def __del__(self) -> None:
        self._client.release(self._number)


class SharedClient:
    """A connection to the door of a cache of this node. May be used by several threads; one request at a time."""

    def __init__(self, door: m.LocalDoor) -> None:
        self._lock = threading.Lock()
        self._ended: deque[int] = deque()
        self._broken = False
        self._pid = os.getpid()
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.settimeout(_WELCOME_TIMEOUT)
            connection.connect(door.path)
            self._channel = Channel(connection)
            self._channel.send(m.Hello(door.token))
            data, descriptors, _, _ = socket.recv_fds(connection, 65536, 1)
            connection.settimeout(None)
        except BaseException:
            connection.close()
            raise
        try:
            self._welcome(data, descriptors)
        except BaseException:
            connection.close()
            raise

    def _welcome(self, data: bytes, descriptors: list[int]) -> None:
        try:
            welcome = _REPLIES.decode(data[4:]) if len(data) > 4 else None
            if isinstance(welcome, m.Failure):
                raise error_of(welcome.code, welcome.message, welcome.remedy)
            if not isinstance(welcome, m.Welcome) or not descriptors:
                raise UnavailableError("the cache of this node does not let us in")
            self.endpoint = welcome.endpoint
            # Two maps of the same memory: objects are read where nothing can be written.
            self._read = mmap.mmap(descriptors[0], welcome.size, prot=mmap.PROT_READ)
            self._write = memoryview(mmap.mmap(descriptors[0], welcome.size))
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        self._address = pa.py_buffer(self._read).address
        self._populated: set[int] = set()  # numbers of regions

    @property
    def usable(self) -> bool:
        """Whether requests can be made: the connection was not cut, and this is the process that made it."""
        return not self._broken and os.getpid() == self._pid

    def alive(self) -> bool:
        """Whether the cache is still at the other end, as far as one can tell without asking it."""
        if self._channel.ended():
            self._broken = True
        return self.usable

    def __del__(self) -> None:
        # Not before the last lease is over: the cache would use the memory under it for others.
        channel = getattr(self, "_channel", None)
        if channel is not None:
            channel.socket.close()

    # --- requests ---------------------------------------------------------------------------------------------------

    def put(self, key: str, payload: Payload, options: m.Options) -> m.Stored | None:
        """Store a payload; None when it is too large for shared memory. Raises FlameError."""
        options = msgspec.structs.replace(options, table=payload.table, size=payload.size)
        if payload.size <= m.INLINE:
            return self._ask(m.Put(key, payload.to_bytes(), options), m.Stored)
        lent = self._ask(m.Reserve(payload.size, payload.table, key, options), m.Reserved)
        if lent.offset < 0:
            return None
        try:
            self._populate(lent.offset, payload.size)
            payload.write(self._write[lent.offset : lent.offset + payload.size])
        except BaseException:
            with contextlib.suppress(FlameError):
                self._ask(m.Cancel(lent.number), m.Stored)
            raise
        return self._ask(m.Commit(lent.number, key, options), m.Stored)

    def _populate(self, offset: int, size: int) -> None:
        """Pages that this process has not seen are mapped at once instead of one fault each."""
        if size < _REGION:
            return
        writable = self._write.obj
        assert isinstance(writable, mmap.mmap)
        for region in range(offset // _REGION, (offset + size) // _REGION):
            if region not in self._populated:
                self._populated.add(region)
                with contextlib.suppress(OSError):  # older kernels can't; then it costs the faults
                    writable.madvise(_POPULATE_WRITE, region * _REGION, _REGION)

    def get(self, key: str, version: int = 0, born: int = 0, origin: str = "") -> Fetched | None:
        """What the cache answers; None when the object has to be streamed. Raises FlameError."""
        answer = self._ask(m.Get(key, version, born, origin), m.Answer)
        if answer.streamed:
            return None
        parts = tuple(FetchedPart(part.version, self._buffer(part)) for part in answer.parts)
        return Fetched(answer.version, answer.born, answer.table, answer.full, parts, shared=True)

    def _buffer(self, part: m.Part) -> pa.Buffer:
        if part.data is not None:
            return pa.py_buffer(part.data)
        return pa.foreign_buffer(self._address + part.offset, part.size, Lease(self, part.lease, self._read))

    def call(self, action: str, body: bytes) -> bytes:
        """Run an action. Raises FlameError."""
        return self._ask(m.Call(action, body), m.Result).body

    def release(self, lease: int) -> None:
        """A lease is over. Never waits: the collector may call this anywhere, also inside a request."""
        if os.getpid() != self._pid:
            return  # a fork of the process that has the lease
        self._ended.append(lease)
        self._flush_if_free()

    def _flush_if_free(self) -> None:
        if self._lock.acquire(blocking=False):
            try:
                self._flush()
            except OSError:
                self._broken = True  # the connection is gone, and the leases with it
            finally:
                self._lock.release()

    def _ask(self, request: m.Request, kind: type[R]) -> R:
        if self._broken or os.getpid() != self._pid:
            raise UnavailableError("the cache of this node is gone")
        with self._lock:
            try:
                if self._ended:
                    self._flush()
                self._channel.send(request)
                data = self._channel.receive()
            except (OSError, EOFError) as error:
                self._broken = True
                raise UnavailableError(f"the cache of this node is gone: {error}") from error
            except BaseException:
                self._broken = True  # an interrupt: the reply that is still to come would be taken for another's
                raise
        if self._ended:
            self._flush_if_free()  # leases that ended while the lock was taken
        if data is None:
            self._broken = True
            raise UnavailableError("the cache of this node has closed the connection")
        reply = _REPLIES.decode(data)
        if isinstance(reply, m.Failure):
            raise error_of(reply.code, reply.message, reply.remedy, reply.retryable)
        if not isinstance(reply, kind):
            raise UnavailableError(f"the cache of this node answered with {type(reply).__name__}")
        return reply

    def _flush(self) -> None:
        if self._ended:
            ended = tuple(self._ended.popleft() for _ in range(len(self._ended)))
            self._channel.send(m.Release(ended))

"""Calls, results and what a session's instances serve, as bytes.

A call is the pickle of (method, args, kwargs), a result that of the value. What begins with one of the tags below is
something around that; everything else that is no pickle is not ours.
"""

from __future__ import annotations

import pickle
import sys
import threading
from collections.abc import AsyncGenerator, Generator
from typing import TYPE_CHECKING, Any, NamedTuple

from flame.model.errors import InvalidArgumentError
from flame.runner.pickling import cloudpickle, pickled
from flame.runner.versions import libraries

if TYPE_CHECKING:
    from flame.runner.futures import ObjectFuture

PROTOCOL = 5
TAG = 4
SERVED = b"FLRc"  # then the pickle of a Served as a tuple: what the common data of a session is
VALUES = b"FLRa"  # then the pickle of (call, results): a call some of whose arguments are results of others
STORED = b"FLRo"  # then a reference to a payload in the object cache
STORED_VALUE = b"FLRv"  # then a reference to a value that is an object of the cache itself
STATE = b"FLRs"  # then 16 bytes that name the state, and a call or a result
STATE_ID = 16
PICKLE = b"\x80"  # how all others begin

Call = tuple["str | None", "tuple[Any, ...]", "dict[str, Any]"]

# Their pickles need nothing of cloudpickle.
PLAIN = frozenset({type(None), bool, int, float, complex, str, bytes})


class Served(NamedTuple):
    """What a session's instances serve, and by whom it was pickled. `body` is a pickle of it; `calls`: it has the
    initializer only, and each call brings its function. `home`: the cache that keeps a durable state, as references
    name it; empty: the instance's own."""

    python: tuple[int, int]
    cloudpickle: str
    body: bytes
    calls: bool = False
    stateful: bool = False
    durable: bool = False
    name: str = ""
    libraries: dict[str, str] = {}  # noqa: RUF012 - versions, never changed
    home: str = ""

    def encode(self) -> bytes:
        """It as common data."""
        return SERVED + pickle.dumps(tuple(self), PROTOCOL)

    @classmethod
    def decode(cls, data: bytes) -> Served:
        """The opposite of encode."""
        return cls(*pickle.loads(memoryview(data)[TAG:]))


class _Thread(threading.local):
    """What goes on in one thread."""

    def __init__(self) -> None:
        self.found: list[ObjectFuture] | None = None  # while a call is pickled: futures among its arguments
        self.values: list[Any] | None = None  # while a call is unpickled: the values of those


_thread = _Thread()


def served(body: Any, *, calls: bool = False, stateful: bool = False, durable: bool = False, name: str = "") -> Served:
    """What shall be served, pickled. Raises InvalidArgumentError when it can't be."""
    python, data = sys.version_info[:2], dumps(body, "what is served")
    return Served(python, cloudpickle().__version__, data, calls, stateful, durable, name, libraries())


_OWN_THINGS = "leave out what belongs to this process alone, such as locks, sockets and open files"
_ONE_RESULT = "a call has one result: make a list of what is generated, or a call of each"


def dumps(value: Any, what: str) -> bytes:
    """A pickle of the value; functions and classes that can't be imported elsewhere are in it as they are.

    Raises InvalidArgumentError that says that `what` can't be pickled.
    """
    if type(value) in PLAIN:
        return pickle.dumps(value, PROTOCOL)
    try:
        return pickled(value, PROTOCOL)
    except Exception as error:
        raise InvalidArgumentError(
            f"{what} can't be pickled: {type(error).__name__}: {error}",
            remedy=_ONE_RESULT if isinstance(value, (Generator, AsyncGenerator)) else _OWN_THINGS,
        ) from error


def encode_call(method: str | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[bytes, list[ObjectFuture]]:
    """A call, and the futures anywhere in its arguments: where one stood, its value will be.

    Raises InvalidArgumentError.
    """
    if not kwargs and all(type(value) in PLAIN for value in args):
        return pickle.dumps((method, args, kwargs), PROTOCOL), []
    before = _thread.found  # pickling an argument may make a call itself
    found = _thread.found = []
    try:
        return dumps((method, args, kwargs), "an argument"), found
    finally:
        _thread.found = before


def note_future(future: ObjectFuture) -> tuple[Any, tuple[int]]:
    """How a future is pickled, as `__reduce__` says it. Raises TypeError when no call is being pickled."""
    if _thread.found is None:
        raise TypeError("a future can be an argument of another call, and nowhere else be pickled")
    if future not in _thread.found:
        _thread.found.append(future)
    return _value, (_thread.found.index(future),)


def bare(payload: bytes) -> bytes:
    """A call or a result without the name of a state."""
    return payload[TAG + STATE_ID :] if payload[:TAG] == STATE else payload


def is_stored(result: bytes) -> bool:
    """Whether the value is in the object cache."""
    return bare(result)[:TAG] in (STORED, STORED_VALUE)


def with_values(call: bytes, results: list[bytes]) -> bytes:
    """A call whose futures are done: it and their results."""
    return VALUES + pickle.dumps((call, results), PROTOCOL)


def parts_of(data: bytes) -> tuple[bytes, list[bytes]]:
    """The opposite of with_values."""
    return pickle.loads(memoryview(data)[TAG:])


def load_call(call: bytes, values: list[Any]) -> Any:
    """Unpickle a call. Raises whatever loading its arguments raises."""
    before, _thread.values = _thread.values, values
    try:
        return pickle.loads(call)
    finally:
        _thread.values = before


def _value(index: int) -> Any:
    """Stands in pickles, under this name, where a future was."""
    if _thread.values is None:
        raise pickle.UnpicklingError("this is a part of a call, and can't be read without it")
    return _thread.values[index]

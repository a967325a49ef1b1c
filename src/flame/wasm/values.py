"""Values of the component model, straight in the C interface of wasmtime.

wasmtime's own conversions take a microsecond for each byte of a list, since there a list is an array of tagged values.
Here such arrays are filled and read by slices: their elements differ in one byte only.
"""

from __future__ import annotations

import ctypes
from typing import Any

from wasmtime import _ffi  # pyright: ignore[reportPrivateUsage]

from flame.model.errors import ProtocolError

c: Any = _ffi  # the C interface; its Python types say nothing
Value: Any = c.wasmtime_component_val_t
_SIZE = ctypes.sizeof(Value)
_BYTE = Value.of.offset  # where the byte is in its element
_CHUNK = 8192  # elements that are converted at a time
_KIND_U8 = c.WASMTIME_COMPONENT_U8.value
_PATTERN = (bytes([_KIND_U8]) + bytes(_SIZE - 1)) * _CHUNK


class Failed(Exception):  # noqa: N818 - a result like another, of the function that was called
    """The function returned an error."""


def text(value: str) -> Any:
    """A string's bytes, owned by C from here on."""
    found, data = c.wasm_byte_vec_t(), value.encode()
    c.wasm_byte_vec_new(
        ctypes.byref(found), len(data), ctypes.cast(ctypes.c_char_p(data), ctypes.POINTER(ctypes.c_uint8))
    )
    return found


def put_text(into: Any, value: str) -> None:
    """Make `into` the string."""
    into.of.string = text(value)
    into.kind = c.WASMTIME_COMPONENT_STRING


def put_optional_bytes(into: Any, data: bytes | None) -> None:
    """Make `into` an option<list<u8>>."""
    into.kind = c.WASMTIME_COMPONENT_OPTION
    into.of.option = None
    if data is not None:
        some = Value()
        _put_bytes(some, data)
        into.of.option = c.wasmtime_component_val_new(ctypes.byref(some))


def put_record(into: Any, *names: str) -> list[Any]:
    """Make `into` a record of these fields; gives their values, to be put."""
    record = c.wasmtime_component_valrecord()
    c.wasmtime_component_valrecord_new_uninit(ctypes.byref(record), len(names))
    into.of.record = record
    into.kind = c.WASMTIME_COMPONENT_RECORD
    for index, name in enumerate(names):
        record.data[index].name = text(name)
    return [record.data[index].val for index in range(len(names))]


def take_result(value: Any) -> bytes | None:
    """What a result<option<list<u8>>, flame-error>, or one without a value, holds. Raises Failed."""
    payload = value.of.result.val
    if not value.of.result.is_ok:
        raise Failed(_message(payload.contents))
    if not payload or not payload.contents.of.option:
        return None
    return _bytes(payload.contents.of.option.contents)


def _message(error: Any) -> str:
    """Of a flame-error."""
    for index in range(error.of.record.size):
        field = error.of.record.data[index]
        if _text(field.name) == "message":
            return _text(field.val.of.string)
    raise ProtocolError("the component's error has no message")


def _text(vector: Any) -> str:
    return ctypes.string_at(vector.data, vector.size).decode(errors="replace")


def _put_bytes(into: Any, data: bytes) -> None:
    values = c.wasmtime_component_vallist()
    c.wasmtime_component_vallist_new_uninit(ctypes.byref(values), len(data))
    address = ctypes.cast(values.data, ctypes.c_void_p).value or 0
    for start in range(0, len(data), _CHUNK):
        part = data[start : start + _CHUNK]
        elements = bytearray(_PATTERN[: len(part) * _SIZE])
        elements[_BYTE::_SIZE] = part
        ctypes.memmove(address + start * _SIZE, (ctypes.c_char * len(elements)).from_buffer(elements), len(elements))
    into.of.list = values
    into.kind = c.WASMTIME_COMPONENT_LIST


def _bytes(value: Any) -> bytes:
    values = value.of.list
    address = ctypes.cast(values.data, ctypes.c_void_p).value or 0
    parts: list[bytes] = []
    for start in range(0, values.size, _CHUNK):
        count = min(_CHUNK, values.size - start)
        parts.append(ctypes.string_at(address + start * _SIZE, count * _SIZE)[_BYTE::_SIZE])
    return b"".join(parts)

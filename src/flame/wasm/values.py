"""Values of the component model, straight in the C interface of wasmtime: those that an adapted component is called
with (flame.wasm.adapter)."""

from __future__ import annotations

import ctypes
from typing import Any

from wasmtime import _ffi  # pyright: ignore[reportPrivateUsage]

c: Any = _ffi  # the C interface; its Python types say nothing
Value: Any = c.wasmtime_component_val_t


class Failed(Exception):  # noqa: N818 - a result like another, of the function that was called
    """The function returned an error."""


def put_text(into: Any, value: str) -> None:
    """Make `into` the string."""
    found, data = c.wasm_byte_vec_t(), value.encode()
    c.wasm_byte_vec_new(
        ctypes.byref(found), len(data), ctypes.cast(ctypes.c_char_p(data), ctypes.POINTER(ctypes.c_uint8))
    )
    into.of.string = found  # owned by C from here on
    into.kind = c.WASMTIME_COMPONENT_STRING


def put_optional_bytes(into: Any, data: bytes | None) -> None:
    """Make `into` an option<string> whose characters are the bytes."""
    into.kind = c.WASMTIME_COMPONENT_OPTION
    into.of.option = None
    if data is not None:
        some = Value()
        put_text(some, data.decode("latin-1"))
        into.of.option = c.wasmtime_component_val_new(ctypes.byref(some))


def take_result(value: Any) -> bytes | None:
    """What a result<option<string>, option<string>>, or one without a value, holds: bytes as characters, the words of
    an error. Raises Failed."""
    payload = value.of.result.val
    some = payload.contents.of.option if payload else None
    found = _text(some.contents.of.string) if some else None
    if not value.of.result.is_ok:
        raise Failed(found)
    return found.encode("latin-1") if found is not None else None


def _text(vector: Any) -> str:
    return ctypes.string_at(vector.data, vector.size).decode()

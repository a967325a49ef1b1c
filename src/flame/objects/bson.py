"""BSON documents of texts and whole numbers: how references travel between clients and caches.

That is all of BSON that a reference needs, so there is no dependency for it. Numbers are written as 64 bits; both
widths are read.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

_TEXT, _INT32, _INT64 = 0x02, 0x10, 0x12
_INT = struct.Struct("<i")
_LONG = struct.Struct("<q")


def encode(document: Mapping[str, str | int]) -> bytes:
    """The document in BSON. Raises ValueError for a key with NUL or a number beyond 64 bits."""
    parts: list[bytes] = []
    for key, value in document.items():
        name = key.encode()
        if b"\0" in name:
            raise ValueError(f"the key {key!r} has a NUL in it")
        if isinstance(value, str):
            text = value.encode()
            parts.append(b"\x02" + name + b"\0" + _INT.pack(len(text) + 1) + text + b"\0")
        else:
            try:
                parts.append(b"\x12" + name + b"\0" + _LONG.pack(value))
            except struct.error:
                raise ValueError(f"{key} is {value}, beyond 64 bits") from None
    body = b"".join(parts)
    return _INT.pack(len(body) + 5) + body + b"\0"


def decode(data: bytes) -> dict[str, str | int]:
    """The texts and whole numbers of a BSON document. Raises ValueError when it is malformed or holds others."""
    try:
        return _decode(data)
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise ValueError(f"not a BSON document of texts and numbers: {error}") from None


def _decode(data: bytes) -> dict[str, str | int]:
    size = _INT.unpack_from(data)[0]
    if size != len(data) or data[-1] != 0:
        raise ValueError(f"not a BSON document: it says {size} bytes and has {len(data)}")
    document: dict[str, str | int] = {}
    place = 4
    while place < size - 1:
        kind = data[place]
        end = data.find(b"\0", place + 1)
        if end < 0:
            raise ValueError("not a BSON document: a key does not end")
        key = data[place + 1 : end].decode()
        place = end + 1
        if kind == _TEXT:
            length = _INT.unpack_from(data, place)[0]
            if length < 1 or place + 4 + length >= size or data[place + 3 + length] != 0:
                raise ValueError(f"not a BSON document: the text {key!r} does not end")
            document[key] = data[place + 4 : place + 3 + length].decode()
            place += 4 + length
        elif kind == _INT32:
            document[key] = _INT.unpack_from(data, place)[0]
            place += 4
        elif kind == _INT64:
            document[key] = _LONG.unpack_from(data, place)[0]
            place += 8
        else:
            raise ValueError(f"{key!r} is neither a text nor a whole number (BSON type {kind:#x})")
    return document

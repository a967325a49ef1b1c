"""The binary of a component, as far as one needs it to put the component into another: what it imports.

The form is that of the component model: sections one after another, each of which continues the numbering of what was
defined, imported or aliased before it, apart for each sort of things.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

PREAMBLE = b"\0asm\x0d\x00\x01\x00"
CUSTOM, CORE_MODULE, CORE_INSTANCE, CORE_TYPE, COMPONENT, INSTANCE, ALIAS, TYPE, IMPORT, EXPORT = (
    0, 1, 2, 3, 4, 5, 6, 7, 10, 11,
)  # fmt: skip
A_COMPONENT, AN_INSTANCE = b"\x04", b"\x05"  # sorts
_A_CORE_TYPE, _A_TYPE = b"\x00\x10", b"\x03"
_CORE = 0
_SORTS = (b"\x01", _A_TYPE, A_COMPONENT, AN_INSTANCE, b"\x00\x11")  # of what may be imported
_OUTER = 2  # an alias of what is around a component; others name an instance and one of its exports


class Unreadable(ValueError):  # noqa: N818 - what it is, of the component
    """The binary is not as this module knows them."""


class Import(NamedTuple):
    """Its name, and what it is: a sort, and the number that it has among these."""

    name: str
    sort: bytes
    number: int


class Imports(NamedTuple):
    """The `sections` with which a component that imports the same begins; what they import; how many things of each
    sort they number."""

    sections: bytes
    found: list[Import]
    counts: Counter[bytes]


class _Reader:
    """Reads a binary from its begin to its end."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def byte(self) -> int:
        if not self:
            raise Unreadable("it ends too early")
        self._at += 1
        return self._data[self._at - 1]

    def number(self) -> int:
        """Unsigned, in LEB128."""
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value
            if shift > 28:
                raise Unreadable("a number in it is too large")

    def part(self) -> memoryview:
        """Bytes with their length before them."""
        size = self.number()
        if size > len(self._data) - self._at:
            raise Unreadable("it ends too early")
        self._at += size
        return self._data[self._at - size : self._at]

    def text(self) -> str:
        return bytes(self.part()).decode(errors="replace")

    def sort(self) -> bytes:
        found = self.byte()
        return bytes([found, self.byte()] if found == _CORE else [found])


def imports_of(binary: bytes) -> Imports:
    """What the component imports. Raises Unreadable, also when imports follow on what they could be made of."""
    if not binary.startswith(PREAMBLE):
        raise Unreadable("it does not begin as a component does")
    reader = _Reader(memoryview(binary)[len(PREAMBLE) :])
    kept, found, counts = bytearray(), list[Import](), Counter[bytes]()
    until = Imports(b"", [], Counter())  # and with the last import, which is not known yet
    other = 0
    while reader:
        kind = reader.byte()
        content = reader.part()
        if kind in (CUSTOM, CORE_MODULE, CORE_INSTANCE):
            continue  # nothing that is imported has to do with it
        if kind not in (CORE_TYPE, ALIAS, TYPE, IMPORT):
            other = other or kind
            continue
        if other:
            if kind == IMPORT:
                raise Unreadable(f"it has imports behind a section of kind {other}")
            continue
        kept += section(kind, bytes(content))
        _number(kind, _Reader(content), found, counts)
        if kind == IMPORT:
            until = Imports(bytes(kept), list(found), counts.copy())
    return until


def _number(kind: int, inside: _Reader, found: list[Import], counts: Counter[bytes]) -> None:
    """Continue the numbering with a section."""
    count = inside.number()
    if kind in (CORE_TYPE, TYPE):
        counts[_A_CORE_TYPE if kind == CORE_TYPE else _A_TYPE] += count
        return
    for _ in range(count):
        if kind == ALIAS:
            sort = _alias(inside)
        else:
            name, sort = _import(inside)
            found.append(Import(name, sort, counts[sort]))
        counts[sort] += 1


def _alias(inside: _Reader) -> bytes:
    sort = inside.sort()
    target = inside.byte()
    inside.number()
    if target == _OUTER:
        inside.number()
    else:
        inside.text()
    return sort


def _import(inside: _Reader) -> tuple[str, bytes]:
    if inside.byte() > 1:
        raise Unreadable("the name of an import is of an unknown kind")
    name, sort = inside.text(), inside.sort()
    if sort not in _SORTS:
        raise Unreadable(f"it imports {name}, which is of an unknown sort")
    if sort != _A_TYPE or inside.byte() == 0:  # else a resource, which has nothing more to say
        inside.number()
    return name, sort


def leb128(number: int) -> bytes:
    """The number as binaries have it."""
    found = bytearray()
    while number >= 0x80:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes(found) + bytes([number])


def section(kind: int, content: bytes) -> bytes:
    """A section of a binary."""
    return bytes([kind]) + leb128(len(content)) + content


def text(value: str) -> bytes:
    """A text as binaries have it."""
    return leb128(len(value.encode())) + value.encode()

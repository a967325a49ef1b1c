"""What is in the binary of a component: how many components and instances it has, and which of them it exports.

The form is that of the component model: sections one after another, each of which continues the numbering of what is
defined, imported, aliased or exported before it.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

PREAMBLE = b"\0asm\x0d\x00\x01\x00"
COMPONENT, INSTANCE, ALIAS, IMPORT, EXPORT = 4, 5, 6, 10, 11  # sections
COMPONENT_SORT, INSTANCE_SORT = 4, 5
_CORE_SORT, _TYPE_SORT = 0, 3
_OUTER = 2  # an alias of what is around a component; others name an instance and one of its exports


class Unreadable(ValueError):  # noqa: N818 - what it is, of the component
    """The binary is not as this module knows them."""


class Contents(msgspec.Struct):
    """How many `components` and `instances` are numbered; the number of each exported instance by its name."""

    components: int = 0
    instances: int = 0
    exported: Mapping[str, int] = msgspec.field(default_factory=dict[str, int])


class _Reader:
    """Reads a binary from one place to another."""

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
                raise Unreadable("a number of it is too large")

    def part(self) -> memoryview:
        """Bytes with their length before them."""
        size = self.number()
        if size > len(self._data) - self._at:
            raise Unreadable("it ends too early")
        self._at += size
        return self._data[self._at - size : self._at]

    def text(self) -> str:
        return bytes(self.part()).decode(errors="replace")

    def name(self) -> str:
        """Of an import or export."""
        if self.byte() > 1:
            raise Unreadable("it has a name of an unknown kind")
        return self.text()

    def sort(self) -> int:
        found = self.byte()
        if found == _CORE_SORT:
            self.byte()
        return found

    def description(self) -> int:
        """The sort of what is imported, or exported, as what."""
        sort = self.sort()
        if sort == _TYPE_SORT and self.byte() == 1:
            return sort  # a resource
        if sort not in (_CORE_SORT, 1, _TYPE_SORT, COMPONENT_SORT, INSTANCE_SORT):
            raise Unreadable(f"it imports something of the unknown sort {sort}")
        self.number()
        return sort


def contents_of(binary: bytes) -> Contents:
    """What the component has. Raises Unreadable."""
    if not binary.startswith(PREAMBLE):
        raise Unreadable("it does not begin as a component does")
    exported: dict[str, int] = {}
    found = Contents(exported=exported)
    sections = _Reader(memoryview(binary)[len(PREAMBLE) :])
    while sections:
        section = sections.byte()
        inside = _Reader(sections.part())
        if section == COMPONENT:
            found.components += 1
        elif section == INSTANCE:
            found.instances += inside.number()
        elif section in (ALIAS, IMPORT, EXPORT):
            for _ in range(inside.number()):
                _count(found, _alias(inside) if section == ALIAS else _named(inside, section, exported))
    return found


def _count(found: Contents, sort: int) -> None:
    found.components += sort == COMPONENT_SORT
    found.instances += sort == INSTANCE_SORT


def _alias(inside: _Reader) -> int:
    """The sort of the next alias."""
    sort = inside.sort()
    target = inside.byte()
    inside.number()
    if target == _OUTER:
        inside.number()
    else:
        inside.text()
    return sort


def _named(inside: _Reader, section: int, exported: dict[str, int]) -> int:
    """The sort of the next import or export."""
    name = inside.name()
    if section == IMPORT:
        return inside.description()
    sort, number = inside.sort(), inside.number()
    if sort == INSTANCE_SORT:
        exported[name] = number
    if inside.byte():
        inside.description()
    return sort


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

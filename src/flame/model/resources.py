"""Amounts of cpu, memory and GPUs, and the text form that settings and command lines use."""

from __future__ import annotations

import re

import msgspec

from flame.model.errors import InvalidArgumentError

_UNITS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_SIZE = re.compile(r"(\d+)\s*([kmgtp]?)(i?b?)", re.IGNORECASE)
_MAX = 2**63 - 1


class Resources(msgspec.Struct, frozen=True, gc=False):
    """cpu in whole cores, memory in bytes, gpu in whole devices."""

    cpu: int = 0
    memory: int = 0
    gpu: int = 0

    def __add__(self, other: Resources) -> Resources:
        return Resources(self.cpu + other.cpu, self.memory + other.memory, self.gpu + other.gpu)

    def __sub__(self, other: Resources) -> Resources:
        return Resources(self.cpu - other.cpu, self.memory - other.memory, self.gpu - other.gpu)

    def fits(self, free: Resources) -> bool:
        """Whether this request fits into what is free."""
        return self.cpu <= free.cpu and self.memory <= free.memory and self.gpu <= free.gpu

    def count_in(self, other: Resources) -> int:
        """How many of `other` it takes to cover this one (at least 1); a zero field of `other` is not counted."""
        pairs = ((self.cpu, other.cpu), (self.memory, other.memory), (self.gpu, other.gpu))
        return max([1, *(-(-have // unit) for have, unit in pairs if unit > 0)])

    def __str__(self) -> str:
        return f"cpu={self.cpu},mem={format_size(self.memory)},gpu={self.gpu}"


def parse_size(text: str) -> int:
    """Bytes from text such as `512m`, `2Gi`, `1GB`; suffixes are powers of 1024. Raises InvalidArgumentError."""
    match = _SIZE.fullmatch(text.strip())
    if match is None or (match[2] == "" and match[3].lower() not in ("", "b")):
        raise InvalidArgumentError(
            f"invalid size {text!r}", remedy="write a number with k, m, g, t or p, such as 512m or 2Gi"
        )
    value = int(match[1]) * 1024 ** _UNITS[match[2].lower()]
    if value > _MAX:
        raise InvalidArgumentError(f"size {text!r} is over 2^63-1 bytes")
    return value


def format_size(size: int) -> str:
    """Bytes as text in the largest unit that divides them without a rest, such as `2Gi`."""
    for power, unit in ((5, "Pi"), (4, "Ti"), (3, "Gi"), (2, "Mi"), (1, "Ki")):
        if size and size % 1024**power == 0:
            return f"{size // 1024**power}{unit}"
    return str(size)


def parse_resources(text: str) -> Resources:
    """Resources from text such as `cpu=2,mem=4Gi,gpu=1`; missing keys are 0. Raises InvalidArgumentError."""
    values: dict[str, int] = {}
    for part in text.split(","):
        key, separator, value = (piece.strip() for piece in part.partition("="))
        name = {"mem": "memory"}.get(key.lower(), key.lower())
        if not separator or not value or "=" in value:
            raise InvalidArgumentError(
                f"invalid resource {part.strip()!r} in {text!r}", remedy="write cpu=N,mem=SIZE,gpu=N"
            )
        if name not in ("cpu", "memory", "gpu"):
            raise InvalidArgumentError(
                f"unknown resource {key!r} in {text!r}", remedy="the known ones are cpu, mem and gpu"
            )
        if name in values:
            raise InvalidArgumentError(f"resource {key!r} stands twice in {text!r}")
        if name == "memory":
            values[name] = parse_size(value)
        elif value.isascii() and value.isdigit() and int(value) <= _MAX:
            values[name] = int(value)
        else:
            raise InvalidArgumentError(
                f"invalid number {value!r} for {key} in {text!r}", remedy="write a whole number, 0 or more"
            )
    return Resources(**values)

"""Guarantees and quotas of tenants, as they are written on the command line.

`cpu=16,mem=64g,sessions=10`; a limit of `none` is taken away, and `none` alone takes all of them away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flame.model.errors import InvalidArgumentError
from flame.model.resources import format_size, parse_size
from flame.proto import types_pb2 as ty

NONE = "none"
_MOST = 2**63 - 1
# The largest values that the fields of the messages hold.
QUOTA = {"cpu": _MOST, "memory": _MOST, "gpu": 2**31 - 1, "sessions": 2**32 - 1, "pending": _MOST}
GUARANTEE = {"cpu": _MOST, "memory": _MOST, "gpu": 2**31 - 1}
_SHORT = {"memory": "mem"}

Changes = Mapping[str, int | None]


def read_limits(texts: Sequence[str], fields: Mapping[str, int], what: str) -> Changes:
    """What is to change, by field; None = that limit goes. `what` names the option in errors.

    Raises InvalidArgumentError.
    """
    changes: dict[str, int | None] = {}
    for part in (part.strip() for text in texts for part in text.split(",")):
        if part.lower() == NONE:
            changes.update(dict.fromkeys(fields))
            continue
        key, separator, value = (piece.strip() for piece in part.partition("="))
        name = {"mem": "memory"}.get(key.lower(), key.lower())
        if not separator or not value:
            raise InvalidArgumentError(f"invalid {what} {part!r}", remedy=f"write {_grammar(fields)}, or {NONE}")
        if name not in fields:
            from flame.config.document import nearest

            near = nearest(key, [_SHORT.get(field, field) for field in fields])
            raise InvalidArgumentError(f"unknown {what} {key!r}; {near}")
        if changes.get(name) is not None:
            raise InvalidArgumentError(f"{what} {key!r} stands twice")
        changes[name] = None if value.lower() == NONE else _number(name, value, fields[name], what)
    return changes


def change_quota(quota: ty.TenantQuota, changes: Changes) -> None:
    """Set and take away limits; what is not named stays."""
    for name, value in changes.items():
        if value is None:
            quota.ClearField(name)  # pyright: ignore[reportArgumentType]
        else:
            setattr(quota, name, value)


def change_guarantee(guarantee: ty.ResourceRequirement, changes: Changes) -> None:
    """Set and take away guaranteed amounts; what is not named stays."""
    for name, value in changes.items():
        setattr(guarantee, name, value or 0)


def quota_text(quota: ty.TenantQuota) -> str:
    """In the grammar that is read; empty when nothing is limited."""
    limits = [(name, getattr(quota, name)) for name in QUOTA if quota.HasField(name)]  # pyright: ignore[reportArgumentType]
    return _text(limits)


def guarantee_text(guarantee: ty.ResourceRequirement) -> str:
    """In the grammar that is read; empty when nothing is guaranteed."""
    return _text([(name, getattr(guarantee, name)) for name in GUARANTEE if getattr(guarantee, name)])


def _text(limits: Sequence[tuple[str, int]]) -> str:
    return ",".join(
        f"{_SHORT.get(name, name)}={format_size(value) if name == 'memory' else value}" for name, value in limits
    )


def _number(name: str, text: str, most: int, what: str) -> int:
    if name == "memory":
        return parse_size(text)
    if not (text.isascii() and text.isdigit() and int(text) <= most):
        raise InvalidArgumentError(
            f"invalid number {text!r} for {name} of the {what}", remedy=f"write a whole number up to {most}, or {NONE}"
        )
    return int(text)


def _grammar(fields: Mapping[str, int]) -> str:
    return ",".join("mem=SIZE" if name == "memory" else f"{name}=N" for name in fields)

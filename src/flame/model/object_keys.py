"""What keys of objects may look like, and which of them instances may read beside those of their session.

A key is `APPLICATION/SESSION/OBJECT`, a prefix `APPLICATION/SESSION`, and `APPLICATION/*` means all sessions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from flame.model.errors import InvalidArgumentError

WILDCARD_SESSION = "*"
MAX_PART = 200  # bytes of one part of a key: it becomes a file name
MAX_READABLE = 256  # entries of one application or session
_USUAL_KEY = re.compile(r"[\w-]{1,64}/[\w-]{1,64}/[\w-]{1,64}", re.ASCII)


class InvalidKeyError(InvalidArgumentError, ValueError):
    """A key or a prefix is malformed. It is a ValueError too, as programs written for `flamepy` expect."""


def parts_of(path: str) -> list[str]:
    """The two or three parts of a key or prefix. Raises InvalidKeyError."""
    if not isinstance(path, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidKeyError(f"an object key is a text, not {path!r}", remedy="write APPLICATION/SESSION/OBJECT")
    parts = path.split("/")
    if len(parts) not in (2, 3):
        raise InvalidKeyError(
            f"invalid object key {path!r}", remedy="write APPLICATION/SESSION or APPLICATION/SESSION/OBJECT"
        )
    return parts


def check_key(key: str) -> None:
    """Raises InvalidKeyError unless it has three parts that are allowed."""
    if not isinstance(key, str) or not _USUAL_KEY.fullmatch(key):  # pyright: ignore[reportUnnecessaryIsInstance]
        parts = parts_of(key)
        if len(parts) == 2:
            raise InvalidKeyError(f"{key!r} is a prefix, not a key", remedy="write APPLICATION/SESSION/OBJECT")
        check_parts(*parts)


def check_parts(application: str, session_id: str, object_id: str | None = None) -> None:
    """Raises InvalidKeyError for parts that are no key or could be paths."""
    _check("application", application)
    if application == WILDCARD_SESSION:
        raise InvalidKeyError("an application can't be '*'", remedy="only the session may be '*'")
    if session_id == WILDCARD_SESSION:
        if object_id is not None:
            raise InvalidKeyError("the session '*' can't have an object", remedy=f"write {application}/*")
        return
    _check("session", session_id)
    if object_id is not None:
        _check("object", object_id)
        if object_id == WILDCARD_SESSION:
            raise InvalidKeyError("an object can't be '*'", remedy="leave it out to mean all of the session")


def check_readable(entries: Iterable[str]) -> None:
    """Raises InvalidArgumentError for what can't be named as readable by instances."""
    named = tuple(entries)
    if len(named) > MAX_READABLE:
        raise InvalidArgumentError(
            f"readable_objects has {len(named)} entries, more than {MAX_READABLE}",
            remedy="name prefixes instead of objects",
        )
    for entry in named:
        try:
            check_parts(*parts_of(entry))
        except InvalidKeyError as error:
            raise InvalidArgumentError(f"readable_objects: {error.message}", remedy=error.remedy) from None


def covers(entry: str, path: str) -> bool:
    """Whether a key or prefix means all that another one does."""
    own, other = entry.split("/"), path.split("/")
    if own[1:] == [WILDCARD_SESSION]:
        return own[0] == other[0]
    return own == other[: len(own)]


def _check(what: str, part: str) -> None:
    problem = ""
    if not part:
        problem = "is empty"
    elif ".." in part or "/" in part or "\\" in part or part == ".":
        problem = "could be a path"
    elif not part.isprintable():
        problem = "has characters that can't be printed"
    elif len(part.encode("utf-8", "surrogatepass")) > MAX_PART:
        problem = f"is longer than {MAX_PART} bytes"
    if problem:
        raise InvalidKeyError(f"the {what} {part[:60]!r} of an object key {problem}")

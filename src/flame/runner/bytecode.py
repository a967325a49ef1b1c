"""Pickles of a client that does not say which Python made them.

Functions in them are bytecode, good for one minor version of Python. Another one runs it all the same, and dies of it.
So each code object is looked at before it is made: whether it is made of instructions of this version, with the room
between them that this version leaves for its caches.
"""

from __future__ import annotations

import io
import opcode
import pickle
import sys
from collections.abc import Callable
from functools import partial
from types import CodeType
from typing import Any, cast

from flame.model.errors import InvalidArgumentError

_ARGUMENTS = 18  # of a code object's constructor, from Python 3.11 on
_BYTECODE = 6  # its place among them
# How functions begin, by minor versions: instructions that may come first, and the one that all have (RESUME).
_BEGIN = {(11, 12): (b"\x01\x4b\x87\x95", 151), (13,): (b"\x20\x23\x3e\x5e", 149), (14,): (b"", 128)}


def loads(data: bytes) -> Any:
    """Unpickle. Raises InvalidArgumentError for functions of another version of Python, and what pickle.loads does."""
    return _Unpickler(io.BytesIO(data)).load()


class _Unpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        found = super().find_class(module_name, global_name)
        if global_name == "_builtin_type" and module_name.partition(".")[0] == "cloudpickle":
            return partial(_checked_type, found)
        return _checked_code if found is CodeType else found


def _checked_type(types: Callable[[str], Any], name: str) -> Any:
    return _checked_code if name == "CodeType" else types(name)


def _checked_code(*arguments: Any) -> CodeType:
    code = arguments[_BYTECODE] if len(arguments) == _ARGUMENTS else b""
    if not (isinstance(code, bytes) and is_of_this_python(code)):
        theirs = _version_of(code)
        ours = f"{sys.version_info[0]}.{sys.version_info[1]}"
        raise InvalidArgumentError(
            f"the client runs {f'Python {theirs}' if theirs else 'another version of Python'}, this executor Python "
            f"{ours}, and functions travel between equal ones",
            remedy=f"run the client with Python {ours}"
            + (f", or give the Runner python_version={theirs!r}" if theirs and " " not in theirs else ""),
        )
    return CodeType(*arguments)


def is_of_this_python(code: bytes) -> bool:
    """Whether this can be the bytecode of a function that this version of Python compiled."""
    position, resumes = 0, False
    while position < len(code):
        operation = code[position]
        if operation not in _KNOWN:
            return False
        cache = code[position + 2 : position + 2 + 2 * _CACHES.get(operation, 0)]
        if any(cache) or len(cache) != 2 * _CACHES.get(operation, 0):
            return False
        resumes = resumes or operation == opcode.opmap["RESUME"]
        position += 2 + len(cache)
    return resumes


def _version_of(code: bytes) -> str:
    """Which Python made it, as far as can be told; empty when it can't."""
    if not code:
        return "3.10 or older"
    begins = (minors for minors, (first, resume) in _BEGIN.items() if code[::2].lstrip(first)[:1] == bytes((resume,)))
    minors = next(begins, ())
    return " or ".join(f"3.{minor}" for minor in minors if minor != sys.version_info[1])


def _caches() -> dict[int, int]:
    """How many units (of two bytes) follow an instruction as its cache."""
    entries: Any = getattr(opcode, "_inline_cache_entries", {})
    if isinstance(entries, dict):
        named = cast("dict[str, int]", entries)  # from Python 3.13 on
        return {opcode.opmap[name]: count for name, count in named.items() if name in opcode.opmap}
    return {operation: count for operation, count in enumerate(entries) if count}


_CACHES = _caches()
_KNOWN = frozenset(opcode.opmap.values()) - {opcode.opmap.get("CACHE", 0)}

"""Pickles by cloudpickle, with the names of the files that code comes from.

cloudpickle itself leaves those out, so that equal code makes equal pickles. Here a traceback shall name them.
"""

from __future__ import annotations

import io
from collections import ChainMap
from functools import cache
from importlib import import_module
from types import CodeType
from typing import Any

_NO_FILE = "<dynamic-code>"  # what cloudpickle writes in their place


@cache
def cloudpickle() -> Any:
    """The package, which is loaded when something needs it."""
    return import_module("cloudpickle")


def pickled(value: Any, protocol: int) -> bytes:
    """A pickle of the value. Raises whatever pickling it raises."""
    with io.BytesIO() as file:
        _pickler()(file, protocol=protocol).dump(value)
        return file.getvalue()


@cache
def _pickler() -> Any:
    known = cloudpickle().Pickler
    reduce: Any = known.dispatch_table[CodeType]

    def with_file(code: CodeType) -> tuple[Any, ...]:
        make, parts, *rest = reduce(code)
        named = tuple(code.co_filename if type(part) is str and part == _NO_FILE else part for part in parts)
        return (make, named, *rest)

    return type("Pickler", (known,), {"dispatch_table": ChainMap({CodeType: with_file}, known.dispatch_table)})

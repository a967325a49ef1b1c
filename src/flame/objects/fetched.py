"""What came of an object, whichever way it came."""

from __future__ import annotations

from typing import NamedTuple

import pyarrow as pa


class FetchedPart(NamedTuple):
    """The payload of the base or of a patch."""

    version: int
    payload: pa.Buffer


class Fetched(NamedTuple):
    """An answer of a cache. `full`: the parts begin with the base, else they are the patches that were lacking.

    `shared`: the payloads lie in the shared memory of the node.
    """

    version: int
    born: int
    table: bool
    full: bool
    parts: tuple[FetchedPart, ...]
    shared: bool = False

    @property
    def size(self) -> int:
        """Bytes of all payloads."""
        return sum(part.payload.size for part in self.parts)

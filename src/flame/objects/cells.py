"""Payloads as Flight carries them: bytes in a column of record batches, which are not copied on the way in or out."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

OPAQUE_SCHEMA = pa.schema([pa.field("version", pa.uint64()), pa.field("data", pa.binary())])
RESPONSE_SCHEMA = pa.schema(
    [
        pa.field("version", pa.uint64(), nullable=False),
        pa.field("kind", pa.utf8(), nullable=False),
        pa.field("data", pa.binary(), nullable=False),
    ]
)
CHUNK_SCHEMA = pa.schema([pa.field("data", pa.binary(), nullable=False)])
ANSWER_KEY = b"flame.answer"
MAX_CELL = 2**31 - 1  # bytes of one value in a binary column


def cell(data: pa.Buffer | bytes) -> Any:
    """A binary array with one value."""
    buffer = data if isinstance(data, pa.Buffer) else pa.py_buffer(data)
    return pa.Array.from_buffers(pa.binary(), 1, [None, pa.py_buffer(struct.pack("<ii", 0, buffer.size)), buffer])


def batch(columns: Sequence[Any], schema: pa.Schema) -> pa.RecordBatch:
    """A record batch of arrays."""
    arrays: Any = list(columns)
    made: Any = pa.RecordBatch.from_arrays(arrays, schema=schema)  # pyright: ignore[reportUnknownMemberType]
    return made


def row(version: int, data: pa.Buffer | bytes, schema: pa.Schema, kind: str = "") -> pa.RecordBatch:
    """One row of the contract: `version`, `data`, and between them the `kind` if the schema has it."""
    columns: list[Any] = [pa.array([version], pa.uint64()), cell(data)]
    if kind:
        columns.insert(1, pa.array([kind]))
    return batch(columns, schema)


def described(schema: pa.Schema, metadata: dict[bytes, bytes]) -> pa.Schema:
    """The schema with this metadata only."""
    return schema.with_metadata(metadata)  # pyright: ignore[reportUnknownMemberType]

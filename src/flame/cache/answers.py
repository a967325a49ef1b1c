"""What the cache says over Flight: streams for foreign clients, in the shape of the contract, and chunks for ours."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pyarrow as pa
import pyarrow.flight as flight

from flame.cache.payloads import Content, Loaded
from flame.objects import codecs
from flame.objects.cells import ANSWER_KEY, CHUNK_SCHEMA, MAX_CELL, RESPONSE_SCHEMA, batch, cell, described, row
from flame.objects.messages import CHUNK, Answer, Part


def foreign(content: Content) -> flight.FlightDataStream:
    """The answer to a ticket of the contract.

    A table without patches is sent as itself. One with patches is sent in rows, since only rows can tell of patches;
    its base is then an Arrow stream with a tag, which those clients read as a table.
    """
    if content.full and content.table and len(content.parts) == 1:
        return _native(content.parts[0])
    return flight.RecordBatchStream(pa.RecordBatchReader.from_batches(RESPONSE_SCHEMA, _rows(content)))


def _native(part: Loaded) -> flight.FlightDataStream:
    reader = pa.ipc.open_stream(part.buffer)
    metadata = {**(reader.schema.metadata or {}), codecs.VERSION_KEY: str(part.version).encode()}
    schema = described(reader.schema, metadata)
    batches = (one.replace_schema_metadata(metadata) for one in reader)
    return flight.RecordBatchStream(pa.RecordBatchReader.from_batches(schema, batches))


def native_schema(part: Loaded) -> pa.Schema:
    """The schema of a table in the cache."""
    return pa.ipc.open_stream(part.buffer).schema


def _rows(content: Content) -> Iterator[pa.RecordBatch]:
    for number, part in enumerate(content.parts):
        base = content.full and number == 0
        data = _tagged(part.buffer) if base and content.table else codecs.for_others(part.buffer)
        # A cell ends at 2 GiB. Longer payloads are files; those who read files join the rows.
        for start in range(0, max(data.size, 1), MAX_CELL):
            piece = data.slice(start, min(MAX_CELL, data.size - start))
            yield row(part.version, piece, RESPONSE_SCHEMA, "base" if base else "patch")


def _tagged(stream: pa.Buffer) -> pa.Buffer:
    """A table as the contract has it inside a row: a tag, then a stream without the cache's metadata."""
    table = pa.ipc.open_stream(stream).read_all()
    table = table.replace_schema_metadata(codecs.plain_metadata(table.schema))
    sink = pa.BufferOutputStream()
    sink.write(codecs.TABLE)
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def chunked(content: Content) -> flight.FlightDataStream:
    """The answer to a ticket of ours: an Answer in the schema's metadata, the payloads in chunks, one after another."""
    parts = tuple(Part(part.version, part.size) for part in content.parts)
    answer = Answer(content.version, content.born, content.table, content.full, parts)
    schema = described(CHUNK_SCHEMA, {ANSWER_KEY: msgspec.json.encode(answer)})
    return flight.RecordBatchStream(pa.RecordBatchReader.from_batches(schema, _chunks(content, schema)))


def _chunks(content: Content, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    for part in content.parts:
        buffer = part.buffer
        for start in range(0, part.size, CHUNK):
            piece = buffer.slice(start, min(CHUNK, part.size - start))
            yield batch([cell(piece)], schema)

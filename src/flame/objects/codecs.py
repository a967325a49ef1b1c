"""How Python objects become payloads and come back.

Tables (Arrow, pandas, polars, whatever has `to_arrow`) are Arrow IPC streams whose schema says what they were. All
else begins with a tag of four bytes: a pickle, an Arrow tensor for numpy arrays and torch tensors, the npy format for
those types of numpy that tensors of Arrow lack (dates, complex numbers, texts, structures), Arrow arrays. A payload
that is mapped from shared memory is read where it lies: arrays and tables over it can't be written to. What is
unpickled, and torch tensors, which know no read-only, are the caller's own.
"""

from __future__ import annotations

import io
import pickle
import sys
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import pyarrow as pa

from flame.model.errors import InvalidArgumentError

PICKLE, TENSOR, TABLE, ARRAY, BATCH, NPY = (b"FLM\x00", b"FLM\x01", b"FLM\x02", b"FLM\x03", b"FLM\x04", b"FLM\x05")
TAG = 4
FORMAT_KEY, VERSION_KEY, TYPE_KEY = b"flame.cache.format", b"flame.cache.version", b"flame.cache.logical_type"
TABLE_FORMAT = b"arrow-table-v1"
_PREFIX = b"flame.cache."
_CONTINUES = b"\xff\xff\xff\xff"  # begins what Arrow writes; then comes the size of its head
_ARROW = "biuf"  # kinds of numpy's types that tensors of Arrow have
_NPY_HEAD = 1 << 20  # bytes, more than structures of a thousand fields need


class Payload(NamedTuple):
    """An object about to be stored: `size` bytes that `write` puts into a writable buffer of that size.

    `table`: it is an Arrow IPC stream without a tag.
    """

    size: int
    write: Callable[[memoryview], None]
    table: bool = False

    def to_bytes(self) -> bytes:
        """The payload in memory of its own."""
        buffer = bytearray(self.size)
        self.write(memoryview(buffer))
        return bytes(buffer)


def encode(value: Any) -> Payload:
    """The payload of a base. Raises InvalidArgumentError when the object can't be pickled."""
    table = _as_table(value)
    return _opaque(value) if table is None else _stream(table, b"")


def encode_patch(value: Any) -> Payload:
    """The payload of a patch: tables are tagged, they have no schema of their own in the cache."""
    if type(value) is pa.Table:
        return _stream(value, TABLE)
    if type(value) is pa.RecordBatch:
        return _stream(pa.Table.from_batches([value]), BATCH)
    return _opaque(value)


def decode(payload: pa.Buffer, *, table: bool) -> Any:
    """The object of a payload; arrays and tables are views of it. Raises what unpickling raises."""
    if table:
        return _restore(pa.ipc.open_stream(payload).read_all())
    view = memoryview(payload).toreadonly()
    tag = bytes(view[:TAG])
    if tag == TENSOR:
        return _tensor(payload, view)
    if tag == TABLE:
        return _restore(pa.ipc.open_stream(payload.slice(TAG)).read_all())
    if tag == NPY:
        return _npy(payload.slice(TAG))
    if tag == BATCH:
        return _one_batch(pa.ipc.open_stream(payload.slice(TAG)).read_all())
    if tag == ARRAY:
        return cast("Any", _one_batch(pa.ipc.open_stream(payload.slice(TAG)).read_all())).column(0)
    return pickle.loads(view[TAG:] if tag == PICKLE else view)


def for_others(payload: pa.Buffer) -> pa.Buffer:
    """A payload that is no table as clients of another make read it: what is npy here is a pickle there."""
    if bytes(memoryview(payload)[:TAG]) != NPY:
        return payload
    try:
        array = _npy(payload.slice(TAG))
    except (ValueError, SyntaxError):
        return payload  # a file that begins so
    return pa.py_buffer(PICKLE + pickle.dumps(array, protocol=5))


# --- opaque ----------------------------------------------------------------------------------------------------------


def _opaque(value: Any) -> Payload:
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    if numpy is not None and type(value) is numpy.ndarray and not value.dtype.hasobject:
        payload = _array(value)
        if payload is not None:
            return payload
    if torch is not None and type(value) is torch.Tensor:
        payload = _torch(torch, value)
        if payload is not None:
            return payload
    if isinstance(value, pa.Array):
        batch: Any = pa.RecordBatch
        return _stream(pa.Table.from_batches([batch.from_arrays([value], names=["data"])]), ARRAY)
    return _pickle(value)


def _pickle(value: Any) -> Payload:
    import cloudpickle  # pyright: ignore[reportMissingTypeStubs]

    try:
        data: bytes = cast("Any", cloudpickle).dumps(value)
    except Exception as error:
        raise InvalidArgumentError(
            f"an object of type {type(value).__name__} can't be pickled: {error}",
            remedy="put what it is made of, or give its class __reduce__",
        ) from error

    def write(buffer: memoryview) -> None:
        buffer[:TAG] = PICKLE
        buffer[TAG:] = data

    return Payload(TAG + len(data), write)


def _array(value: Any, note: bytes = b"") -> Payload | None:
    """A numpy array as an Arrow tensor, or as npy; None for types that neither has."""
    if value.dtype == bool:
        note = note or b"numpy.bool"
    if not (value.flags.c_contiguous or value.flags.f_contiguous):
        value = value.copy()
    if value.dtype.kind not in _ARROW or not value.dtype.isnative:
        return _as_npy(value)
    try:
        tensor = pa.Tensor.from_numpy(value)
    except (pa.ArrowException, TypeError):
        return _as_npy(value)
    sink = pa.MockOutputStream()
    pa.ipc.write_tensor(tensor, sink)
    size = sink.size()

    def write(buffer: memoryview) -> None:
        buffer[:TAG] = TENSOR
        pa.ipc.write_tensor(tensor, pa.FixedSizeBufferWriter(pa.py_buffer(buffer[TAG : TAG + size])))
        buffer[TAG + size :] = note

    return Payload(TAG + size + len(note), write)


def _torch(torch: Any, value: Any) -> Payload | None:
    """A dense tensor of the CPU or of a GPU (then copied to the CPU) without gradients; else None."""
    if value.layout is not torch.strided or value.requires_grad or value.is_quantized:
        return None
    dense = value.detach().cpu().contiguous()
    name = str(value.dtype).encode()
    if value.dtype is torch.bfloat16:
        dense = dense.view(torch.int16)
    elif value.dtype is torch.bool:
        dense = dense.view(torch.uint8)
    try:
        array = dense.numpy()
    except TypeError:
        return None
    return _array(array, name) if array.dtype.kind in _ARROW else None


class _Layout(NamedTuple):
    """Where in a payload an array lies, and what it is. `end`: where the note behind it begins."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: Any
    start: int
    end: int


_MOST_LAYOUTS = 256
_layouts: dict[bytes, _Layout] = {}  # by the head that Arrow wrote: to read it costs more than all else of a get


def _tensor(payload: pa.Buffer, view: memoryview) -> Any:
    import numpy as np

    prefix = bytes(view[TAG : TAG + 8])
    head = prefix + bytes(view[TAG + 8 : TAG + 8 + int.from_bytes(prefix[4:], "little")])
    layout = _layouts.get(head)
    if layout is None:
        layout = _layout(payload)
        if prefix[:4] == _CONTINUES:
            if len(_layouts) >= _MOST_LAYOUTS:
                _layouts.clear()
            _layouts[head] = layout
    # Over memory that is read-only for numpy: it lets nobody set the flag that would make writing to it a crash.
    array: Any = np.ndarray(layout.shape, layout.dtype, view, layout.start, layout.strides)
    note = bytes(view[layout.end :])
    if note == b"numpy.bool":
        return array.view(bool)
    if note.startswith(b"torch."):
        import torch as found  # pyright: ignore[reportMissingImports]

        torch: Any = found
        kind = getattr(torch, note.decode().removeprefix("torch."))
        tensor = torch.from_numpy(array.copy())
        return tensor if tensor.dtype is kind else tensor.view(kind)
    return array


def _layout(payload: pa.Buffer) -> _Layout:
    """What Arrow reads of the head of a tensor."""
    import numpy as np

    reader = pa.BufferReader(payload)
    reader.seek(TAG)
    array: Any = np.asarray(memoryview(cast("Any", pa.ipc.read_tensor(reader))))
    end = reader.tell()
    start = array.ctypes.data - payload.address if array.nbytes else end
    return _Layout(array.shape, array.strides, array.dtype, start, end)


def _as_npy(value: Any) -> Payload | None:
    """An array in the npy format, whose head says its type; None for types that it does not know."""
    import numpy as np
    from numpy.lib import format as npy

    if value.dtype.kind not in "biufcmMSUV":
        return None
    head = io.BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # what would be lost of the type is warned of
            npy.write_array_header_2_0(head, npy.header_data_from_array_1_0(value))
            if npy.descr_to_dtype(npy.dtype_to_descr(value.dtype)) != value.dtype:
                return None
    except (ValueError, TypeError, Warning):
        return None
    start = TAG + head.tell()

    def write(buffer: memoryview) -> None:
        buffer[:TAG] = NPY
        buffer[TAG:start] = head.getbuffer()
        if value.nbytes:
            np.frombuffer(buffer[start:], np.uint8)[:] = value.reshape(-1, order="A").view(np.uint8)

    return Payload(start + value.nbytes, write)


def _npy(payload: pa.Buffer) -> Any:
    import numpy as np
    from numpy.lib import format as npy

    head = io.BytesIO(memoryview(payload)[: min(payload.size, _NPY_HEAD)])
    npy.read_magic(head)
    shape, fortran, dtype = npy.read_array_header_2_0(head, max_header_size=_NPY_HEAD)
    data = memoryview(payload).toreadonly()
    return np.ndarray(shape, dtype, data, head.tell(), order="F" if fortran else "C")


# --- tables ----------------------------------------------------------------------------------------------------------


def _as_table(value: Any) -> pa.Table | None:
    """The table that an object is, with its type in the metadata; None when it is no table."""
    pandas, polars = sys.modules.get("pandas"), sys.modules.get("polars")
    if isinstance(value, pa.Table):
        return _described(value, "pyarrow.table")
    if isinstance(value, pa.RecordBatch):
        return _described(pa.Table.from_batches([value]), "pyarrow.record_batch")
    if pandas is not None and isinstance(value, pandas.DataFrame):
        try:
            return _described(pa.Table.from_pandas(value), "pandas.dataframe")
        except (pa.ArrowException, TypeError, ValueError):
            return None  # columns of objects that Arrow does not know are pickled
    if polars is not None and isinstance(value, polars.LazyFrame):
        value = value.collect()
    if polars is not None and isinstance(value, polars.DataFrame):
        return _described(value.to_arrow(), "polars.dataframe")
    if callable(getattr(value, "to_arrow", None)) and not isinstance(value, type):
        try:
            made = value.to_arrow()
        except TypeError:
            return None
        if isinstance(made, pa.RecordBatch):
            made = pa.Table.from_batches([made])
        if isinstance(made, pa.Table):
            return _described(made, "dataset")
    return None


def _described(table: pa.Table, logical: str) -> pa.Table:
    metadata = {
        **(table.schema.metadata or {}),
        FORMAT_KEY: TABLE_FORMAT,
        VERSION_KEY: b"0",
        TYPE_KEY: logical.encode(),
    }
    return table.replace_schema_metadata(metadata)


def plain_metadata(schema: pa.Schema) -> dict[bytes, bytes] | None:
    """The user's own metadata of a schema, without the cache's."""
    return {key: value for key, value in (schema.metadata or {}).items() if not key.startswith(_PREFIX)} or None


def _one_batch(table: pa.Table) -> pa.RecordBatch:
    """The batch that a table was made of; Arrow writes none that has no rows."""
    batches = table.to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=table.schema)


def _restore(table: pa.Table) -> Any:
    logical = (table.schema.metadata or {}).get(TYPE_KEY, b"pyarrow.table").decode("utf-8", "replace")
    table = table.replace_schema_metadata(plain_metadata(table.schema))
    if logical == "pyarrow.record_batch":
        batches = table.to_batches()
        if len(batches) < 2:
            return _one_batch(table)
    if logical == "pandas.dataframe":
        try:
            return cast("Any", table).to_pandas()
        except ImportError:
            return table
    if logical == "polars.dataframe":
        try:
            import polars as pl
        except ImportError:
            return table
        return cast("Any", pl).from_arrow(table)
    return table


def _stream(table: pa.Table, tag: bytes) -> Payload:
    measured = pa.MockOutputStream()
    _write_stream(table, measured, one_batch=bool(tag))
    size = len(tag) + measured.size()

    def write(buffer: memoryview) -> None:
        buffer[: len(tag)] = tag
        _write_stream(table, pa.FixedSizeBufferWriter(pa.py_buffer(buffer[len(tag) :])), one_batch=bool(tag))

    return Payload(size, write, table=not tag)


def _write_stream(table: pa.Table, sink: Any, *, one_batch: bool) -> None:
    """`one_batch`: also when there are no rows; clients of another make look for it."""
    writer: Any
    with pa.ipc.new_stream(sink, table.schema) as writer:
        if one_batch and not table.num_rows:
            writer.write_batch(pa.RecordBatch.from_pylist([], schema=table.schema))
        else:
            writer.write_table(table)

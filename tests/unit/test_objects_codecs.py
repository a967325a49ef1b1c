"""How objects become payloads and come back."""

from __future__ import annotations

import datetime as dt
import pickle
import sys
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from flame.model.errors import InvalidArgumentError
from flame.objects import codecs


def there_and_back(value: Any, *, patch: bool = False) -> Any:
    payload = codecs.encode_patch(value) if patch else codecs.encode(value)
    data = payload.to_bytes()
    assert len(data) == payload.size
    return codecs.decode(pa.py_buffer(data), table=payload.table)


ARRAYS = [
    np.arange(10),
    np.arange(12, dtype="f4").reshape(3, 4),
    np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    np.arange(100)[::3],
    np.zeros(()),
    np.zeros((0, 3)),
    np.array([True, False]),
    np.array([[True], [False]]),
    np.array([1 + 2j]),
    np.array(["a", "bc"]),
    np.array(["2026-01-01"], "M8[D]"),
    np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
    np.array([{"any": "object"}, None]),
    np.arange(5, dtype=">i4"),
    np.array([[1 + 2j, 3], [4, 5]], "c8").T,
    np.arange(6, dtype="m8[us]").reshape(2, 3)[:, ::2],
    np.array([], "M8[ns]"),
    np.array("2026-01-01", "M8[D]"),
    np.array([b"a", b"bc"]),
    np.zeros(2, np.dtype([("a", "i1"), ("b", ("f8", (2, 2)))], align=True)),
    np.zeros(3, "V5"),
    np.array([1, 2], np.longdouble),
]
WRITTEN_AS_NPY = [array for array in ARRAYS if array.dtype.kind in "cmMUSV" or not array.dtype.isnative]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype}{array.shape}")
def test_arrays(array: np.ndarray) -> None:
    got = there_and_back(array)
    assert got.dtype == array.dtype
    assert got.shape == array.shape
    assert np.array_equal(got, array)


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype}{array.shape}")
def test_arrays_whose_like_was_read_before(array: np.ndarray) -> None:
    """What is known of the head of one says nothing of its values, nor of the note behind it."""
    there_and_back(array)
    other = array[..., ::-1] if array.ndim else array
    got = there_and_back(other.view("u1") if array.dtype == bool else other)
    assert np.array_equal(got, other)
    assert got.dtype == (np.uint8 if array.dtype == bool else array.dtype)
    assert np.array_equal(there_and_back(array), array)


def test_what_is_known_of_heads_has_a_bound() -> None:
    for size in range(1, 600):
        assert there_and_back(np.arange(size, dtype="i8"))[-1] == size - 1
    assert len(codecs._layouts) <= 256


def test_a_tensor_that_was_cut_is_refused() -> None:
    payload = codecs.encode(np.arange(1000)).to_bytes()
    codecs.decode(pa.py_buffer(payload), table=False)
    for size in (5, 11, 100, len(payload) - 1):
        with pytest.raises((ValueError, OSError, TypeError)):
            codecs.decode(pa.py_buffer(payload[:size]), table=False)


def test_arrays_are_views_that_nobody_can_write_to() -> None:
    data = codecs.encode(np.arange(10)).to_bytes()
    got = codecs.decode(pa.py_buffer(bytearray(data)), table=False)
    assert not got.flags.writeable
    assert not got.flags.owndata


@pytest.mark.parametrize("array", WRITTEN_AS_NPY, ids=lambda array: f"{array.dtype}{array.shape}")
def test_arrays_of_types_that_arrow_lacks_are_not_pickled(array: np.ndarray) -> None:
    data = codecs.encode(array).to_bytes()
    got = codecs.decode(pa.py_buffer(bytearray(data)), table=False)
    assert data[:4] == codecs.NPY
    assert not got.flags.writeable
    assert not got.flags.owndata


@pytest.mark.parametrize("array", WRITTEN_AS_NPY, ids=lambda array: f"{array.dtype}{array.shape}")
def test_clients_of_another_make_get_pickles_of_them(array: np.ndarray) -> None:
    sent = codecs.for_others(pa.py_buffer(codecs.encode(array).to_bytes())).to_pybytes()
    assert sent[:4] == codecs.PICKLE
    got = pickle.loads(sent[4:])
    assert got.dtype == array.dtype
    assert np.array_equal(got, array)


@pytest.mark.parametrize("data", [b"", b"FLM", b"FLM\x05", b"FLM\x05no array", codecs.PICKLE + pickle.dumps(1)])
def test_all_else_they_get_as_it_is(data: bytes) -> None:
    assert codecs.for_others(pa.py_buffer(data)).to_pybytes() == data


def test_types_that_npy_would_lose_something_of_are_pickled() -> None:
    array = np.zeros(2, np.dtype("i4", metadata={"unit": "m"}).newbyteorder(">"))
    noted = np.zeros(2, np.dtype([("a", np.dtype("i4", metadata={"unit": "m"}))]))
    assert np.array_equal(there_and_back(array), array)
    assert codecs.encode(noted).to_bytes()[:4] == codecs.PICKLE


@pytest.mark.parametrize("array", [np.arange(10), np.array([1j]), np.array([True])], ids=lambda array: str(array.dtype))
def test_nobody_makes_a_view_one_that_can_be_written_to(array: np.ndarray) -> None:
    got = there_and_back(array)
    with pytest.raises(ValueError, match="cannot set WRITEABLE flag"):
        got.flags.writeable = True


@pytest.mark.parametrize("patch", [False, True])
@pytest.mark.parametrize("value", [pa.array([], pa.string()), pa.array([], pa.int8()), pa.array([None], pa.null())])
def test_arrays_of_arrow_without_values(value: pa.Array, patch: bool) -> None:
    got = there_and_back(value, patch=patch)
    assert got.equals(value)
    assert got.type == value.type


def test_clients_of_another_make_find_a_batch_in_an_array_without_values() -> None:
    data = codecs.encode(pa.array([], pa.string())).to_bytes()
    assert len(list(pa.ipc.open_stream(data[codecs.TAG :]))) == 1


@pytest.mark.parametrize("patch", [False, True])
def test_batches_without_rows(patch: bool) -> None:
    batch = pa.RecordBatch.from_pylist([], schema=pa.schema([("a", pa.int8())]))
    assert there_and_back(batch, patch=patch).equals(batch)


def test_a_subclass_of_an_array_stays_what_it_is() -> None:
    masked = np.ma.masked_array([1, 2], [True, False])
    assert type(there_and_back(masked)) is np.ma.MaskedArray


@pytest.mark.parametrize("value", [None, 1, "text", b"", b"bytes", {"a": [1]}, (1,), {1, 2}, dt.date(2026, 1, 1)])
def test_everything_else_is_pickled(value: Any) -> None:
    assert codecs.encode(value).to_bytes()[:4] == codecs.PICKLE
    assert there_and_back(value) == value


def test_functions_and_classes_of_the_moment() -> None:
    factor = 3
    assert there_and_back(lambda x: x * factor)(2) == 6


def test_what_can_not_be_pickled_says_so() -> None:
    with pytest.raises(InvalidArgumentError, match="type generator can't be pickled"):
        codecs.encode(number for number in (1, 2))


def test_payloads_without_a_tag_are_pickles() -> None:
    import pickle

    assert codecs.decode(pa.py_buffer(pickle.dumps([1])), table=False) == [1]


TABLE = pa.table({"a": [1, 2], "b": ["x", None]}).replace_schema_metadata({"mine": "kept"})


@pytest.mark.parametrize(
    "table",
    [
        TABLE,
        TABLE.slice(0, 0),
        pa.table({}),
        pa.table({"c": pa.array(["u", "v", "u"]).dictionary_encode()}),
        pa.concat_tables([TABLE, TABLE]),
        pa.table({"nested": [[1, 2], None], "struct": [{"x": 1}, {"x": None}]}),
    ],
)
def test_tables(table: pa.Table) -> None:
    assert codecs.encode(table).table
    got = there_and_back(table)
    assert got.equals(table)
    assert got.schema.metadata == table.schema.metadata
    got.validate(full=True)


def test_record_batches() -> None:
    batch = TABLE.to_batches()[0]
    assert there_and_back(batch).equals(batch)
    empty = batch.slice(0, 0)
    assert there_and_back(empty).schema == empty.schema


def test_arrow_arrays() -> None:
    array = pa.array(["x", None])
    assert codecs.encode(array).to_bytes()[:4] == codecs.ARRAY
    assert there_and_back(array).equals(array)


def test_pandas() -> None:
    frame = pd.DataFrame({"n": [1.5, None], "s": ["x", "y"], "c": pd.Categorical(["u", "v"])}, index=[3, 4])
    assert codecs.encode(frame).table
    pd.testing.assert_frame_equal(there_and_back(frame), frame)


def test_frames_that_arrow_does_not_know_are_pickled() -> None:
    frame = pd.DataFrame({"mixed": [1, "x", {2}]})
    assert not codecs.encode(frame).table
    pd.testing.assert_frame_equal(there_and_back(frame), frame)


def test_polars() -> None:
    frame = pl.DataFrame({"n": [1, None], "s": ["x", "y"]})
    assert there_and_back(frame).equals(frame)
    assert there_and_back(frame.lazy().filter(pl.col("n") == 1)).height == 1


class Holder:
    def to_arrow(self) -> pa.Table:
        return TABLE


def test_what_becomes_arrow_is_a_table() -> None:
    assert there_and_back(Holder()).equals(TABLE)


def test_patches_have_a_tag() -> None:
    for value, tag in ((TABLE, codecs.TABLE), (TABLE.to_batches()[0], codecs.BATCH), ([1], codecs.PICKLE)):
        payload = codecs.encode_patch(value)
        assert not payload.table
        assert payload.to_bytes()[:4] == tag
        got = there_and_back(value, patch=True)
        assert got == value if isinstance(value, list) else got.equals(value)


def test_importing_flame_does_not_import_arrow() -> None:
    import subprocess

    code = "import sys, flame, flame.objects; print('pyarrow' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]

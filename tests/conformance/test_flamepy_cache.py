"""The unmodified client of the reference system, version 0.6.0, against the object cache; what it checks stands in
`foreign/cache.py`. And objects that one side puts and the other one gets."""

from __future__ import annotations

import ast
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from cache_daemon import CacheDaemon
from cluster import FOREIGN_SCRIPTS
from flame.config import TlsConfig
from flame.objects import ObjectClient, ObjectRef
from flame.security import make_certificates

SCRIPT = "cache.py"


def checks() -> list[str]:
    tree = ast.parse((FOREIGN_SCRIPTS / SCRIPT).read_text())
    return [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("check_")]


@pytest.fixture(scope="module", params=["memory", "disk", "tls"])
def cache(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CacheDaemon]:
    folder = tmp_path_factory.mktemp("flamepy")
    if request.param == "tls":
        tls = make_certificates(folder / "certificates").server
        files = {"cert_file": str(tls.cert_file), "key_file": str(tls.key_file)}
        daemon = CacheDaemon(
            folder, scheme="grpcs", settings={"tls": files}, environ={"FLAME_CA_FILE": str(tls.ca_file)}
        )
    else:
        daemon = CacheDaemon(folder, storage=request.param == "disk")
    with daemon:
        yield daemon


@pytest.fixture
def client(cache: CacheDaemon) -> ObjectClient:
    ca_file = cache.environ().get("FLAME_CA_FILE")
    return cache.client(TlsConfig(ca_file=Path(ca_file)) if ca_file else None)


@pytest.fixture(scope="module")
def outcomes(cache: CacheDaemon) -> Callable[[], dict[str, str]]:
    """What became of the checks: an error text, empty when all was well."""

    @functools.cache
    def run() -> dict[str, str]:
        lines = [json.loads(line) for line in cache.foreign(SCRIPT).splitlines()]
        return {line["check"]: line["error"] for line in lines}

    return run


@pytest.mark.parametrize("check", checks())
def test_foreign_client(outcomes: Callable[[], dict[str, str]], check: str) -> None:
    error = outcomes()[check]
    assert not error, error


def samples() -> list[Any]:
    """The same as in the foreign script."""
    table = pa.table({"a": [1, 2, 3], "b": ["x", None, "z"]}).replace_schema_metadata({"mine": "kept"})
    return [
        None, 7, "text", b"", b"bytes", b"x" * 3_000_000, {"a": [1, (2, 3)]}, [],
        np.arange(12, dtype="f8").reshape(3, 4), np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        np.arange(24)[::2], np.zeros((0, 3)), np.ones((), "f4"),
        table, table.to_batches()[0], pa.array([1, None, 3]),
        pd.DataFrame({"n": [1.5, 2.5], "s": ["x", "y"]}),
        table.slice(0, 0), pa.table({}),
        pa.table({"c": pa.array(["u", "v", "u"]).dictionary_encode()}),
        pa.chunked_array([["a"], ["b"]]).dictionary_encode().combine_chunks(),
    ]  # fmt: skip


def unputable() -> list[Any]:
    """Values that the foreign client can't put, but can get."""
    return [np.array(["a", "b"]), np.array([1 + 2j])]


def same(left: Any, right: Any) -> bool:
    if isinstance(left, np.ndarray):
        return left.dtype == right.dtype and left.shape == right.shape and np.array_equal(left, right)
    if isinstance(left, pd.DataFrame | pa.Table | pa.RecordBatch | pa.Array):
        return bool(left.equals(right))
    return bool(left == right)


def test_we_read_what_it_puts(cache: CacheDaemon, client: ObjectClient) -> None:
    refs = json.loads(cache.foreign(SCRIPT, "put"))
    for ref, value in zip(refs, samples(), strict=True):
        got = client.get(ObjectRef.decode(bytes.fromhex(ref)))
        assert same(value, got), (repr(value)[:100], repr(got)[:100])


def test_it_reads_what_we_put(cache: CacheDaemon, client: ObjectClient) -> None:
    values = [*samples(), *unputable()]
    cache.foreign(SCRIPT, "read", *(client.put("exchange/ours", value).encode().hex() for value in values))

"""The object cache: put, get, update, patch, upload, delete, and what its client gets wrong."""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.flight as flight
from checks import run_checks, unique
from flamepy.core import cache
from flamepy.core.cache import (
    ObjectKey,
    ObjectRef,
    delete_objects,
    get_object,
    patch_object,
    put_object,
    update_object,
    upload_object,
)


def forget():
    """What the client remembers of objects, so that the next get asks for everything."""
    cache._object_cache.clear()


def prefix():
    return f"{unique('app')}/{unique('session')}"


def server():
    return cache._get_flight_client(cache._get_cached_context().cache.endpoint, cache._get_cache_tls_config())


def answer_of(ticket):
    return server().do_get(flight.Ticket(ticket.encode())).read_all()


def refused(action):
    try:
        result = action()
    except (pa.ArrowException, KeyError, ValueError) as error:
        return error
    raise AssertionError(f"no error, but {result!r}")


def same(left, right):
    if isinstance(left, np.ndarray):
        return left.dtype == right.dtype and left.shape == right.shape and np.array_equal(left, right)
    if isinstance(left, pd.DataFrame):
        return left.equals(right)
    if isinstance(left, pa.Table | pa.RecordBatch | pa.Array):
        return left.equals(right)
    return left == right


def samples():
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


def unputable():
    """Values that this client can't put, but can get."""
    return [np.array(["a", "b"]), np.array([1 + 2j])]


def check_everything_comes_back():
    for value in samples():
        ref = put_object(prefix(), value)
        forget()
        assert same(value, get_object(ref)), repr(value)[:100]


def check_a_reference_names_the_cache():
    where = prefix()
    ref = put_object(where, 1)
    assert ref.endpoint == cache._get_cached_context().cache.endpoint.replace("grpcs://", "grpc+tls://")
    assert ref.key.startswith(where + "/")
    assert ref.version == 1
    assert ObjectRef.decode(ref.encode()) == ref


def check_update_makes_versions_and_drops_patches():
    ref = put_object(prefix(), "one")
    assert patch_object(ref, "delta").version == 2
    new = update_object(ref, "three")
    assert new.version == 3
    assert get_object(new, lambda base, deltas: (base, deltas)) == ("three", [])
    assert update_object(ref, np.arange(3)).version == 4
    assert same(get_object(ref), np.arange(3))


def check_patches_and_deserializers():
    ref = put_object(prefix(), [0])
    for number in range(1, 4):
        new = patch_object(ref, [number])
        assert new.version == number + 1
    assert get_object(new) == [0]
    assert get_object(new, lambda base, deltas: sum(deltas, base)) == [0, 1, 2, 3]


def check_only_new_patches_travel():
    ref = put_object(prefix(), "base")
    get_object(ref)
    patch_object(ObjectRef(ref.endpoint, ref.key, 1), "a")
    table = answer_of(f"{ref.key}:1")
    assert table.column("kind").to_pylist() == ["patch"]
    assert table.column("version").to_pylist() == [2]
    assert answer_of(f"{ref.key}:2").num_rows == 0
    assert answer_of(f"{ref.key}:0").column("kind").to_pylist() == ["base", "patch"]
    assert answer_of(f"{ref.key}:99").column("kind").to_pylist() == ["base", "patch"]
    assert answer_of(ref.key).column("version").to_pylist() == [1, 2]


def check_what_is_known_is_not_sent_again():
    for value in ("opaque", pa.table({"a": [1]})):
        ref = put_object(prefix(), value)
        assert same(get_object(ref), value)
        assert answer_of(f"{ref.key}:1").num_rows == 0
        assert same(get_object(ref), value)
        update_object(ref, "other")
        assert get_object(ref) == "other"


def check_the_schema_of_answers():
    ref = put_object(prefix(), 1)
    schema = answer_of(f"{ref.key}:1").schema
    assert schema.names == ["version", "kind", "data"]
    assert [field.type for field in schema] == [pa.uint64(), pa.utf8(), pa.binary()]
    assert not any(field.nullable for field in schema)
    got = server().get_schema(flight.FlightDescriptor.for_path(*ref.key.split("/"))).schema
    assert got.equals(schema)


def check_tables_say_their_version():
    ref = put_object(prefix(), pa.table({"a": [1]}))
    ref = update_object(ref, pa.table({"a": [2]}))
    metadata = answer_of(f"{ref.key}:0").schema.metadata
    assert metadata[b"flame.cache.version"] == b"2"
    assert metadata[b"flame.cache.format"] == b"arrow-table-v1"
    assert metadata[b"flame.cache.logical_type"] == b"pyarrow.table"


def check_tables_can_be_patched():
    ref = put_object(prefix(), pa.table({"a": [1]}))
    for number in (2, 3):
        patch_object(ref, pa.table({"a": [number]}))
    whole = get_object(ref, lambda base, deltas: pa.concat_tables([base, *deltas]))
    assert whole.column("a").to_pylist() == [1, 2, 3]
    assert get_object(ref).column("a").to_pylist() == [1]
    forget()
    assert get_object(ref).schema.metadata is None


def check_many_batches_and_their_dictionaries():
    batches = [pa.record_batch({"c": pa.array([word]).dictionary_encode()}) for word in ("a", "b", "c")]
    table = pa.Table.from_batches(batches)
    ref = put_object(prefix(), table)
    forget()
    assert get_object(ref).column("c").to_pylist() == ["a", "b", "c"]


def check_files():
    path = Path("file.bin")
    path.write_bytes(bytes(range(256)) * 10_000)
    where = prefix()
    ref = upload_object(f"{where}/package.tar.gz", str(path))
    assert (ref.key, ref.version) == (f"{where}/package.tar.gz", 1)
    assert upload_object(f"{where}/package.tar.gz", str(path)).version == 2
    assert upload_object(where, str(path)).key.startswith(where + "/")
    # As installers read it: all rows, one after another.
    assert b"".join(answer_of(f"{ref.key}:0").column("data").to_pylist()) == path.read_bytes()


def check_an_empty_file():
    Path("empty.bin").write_bytes(b"")
    ref = upload_object(prefix(), "empty.bin")
    assert answer_of(f"{ref.key}:0").column("data").to_pylist() == [b""]


def check_its_download_fails_without_harm():
    Path("some.bin").write_bytes(b"some")
    ref = upload_object(prefix(), "some.bin")
    assert "column" in str(refused(lambda: cache.download_object(ref, "got.bin")))
    assert not Path("got.bin").exists()
    assert answer_of(f"{ref.key}:0").num_rows == 1


def check_delete():
    app = unique("app")
    one, two, other = put_object(f"{app}/s1", 1), put_object(f"{app}/s1", 2), put_object(f"{app}/s2", 3)
    delete_objects(one.key)
    assert "not found" in str(refused(lambda: get_object(one)))
    assert get_object(two) == 2
    delete_objects(f"{app}/s1")
    refused(lambda: get_object(two))
    assert get_object(other) == 3
    delete_objects(f"{app}/*")
    refused(lambda: get_object(other))
    delete_objects(f"{app}/*")


def check_errors_have_the_status_of_the_contract():
    missing = f"{prefix()}/missing"
    assert isinstance(refused(lambda: answer_of(f"{missing}:0")), KeyError)
    assert isinstance(refused(lambda: answer_of(missing)), KeyError)
    for ticket in (f"{missing}:x", f"{missing}:-1", "a/b:0", "a:0", "", "a/../b:0", "/etc/passwd:0", "a/b/..:0"):
        assert isinstance(refused(lambda ticket=ticket: answer_of(ticket)), pa.ArrowInvalid), ticket
    for action in ("NOTHING", ""):
        error = refused(lambda action=action: list(server().do_action(flight.Action(action, b""))))
        assert isinstance(error, pa.ArrowInvalid)
    for key in (b"a", b"a/b/c/d", b"*/b", b"a/*/c", b"../x", b"a/\xff"):
        error = refused(lambda key=key: list(server().do_action(flight.Action("DELETE", key))))
        assert isinstance(error, pa.ArrowInvalid), key


def check_a_patch_of_nothing():
    endpoint = put_object(prefix(), 1).endpoint
    error = refused(lambda: patch_object(ObjectRef(endpoint, f"{prefix()}/missing"), 1))
    assert "not found" in str(error)


def check_bad_keys_are_refused_by_the_server_too():
    schema = pa.schema([("version", pa.uint64()), ("data", pa.binary())])
    paths = (
        ("..", "x"), ("a", ".."), ("a", "b", "../../x"), ("/", "etc"), ("a", "*"), ("a",), ("a", "b", "c", "d"),
        ("a", ""), ("", "b"), ("a", "b\\c"), ("a", "b", "c\0d"), ("a", "x" * 300), ("a", "."), ("*", "b"),
    )  # fmt: skip
    for path in paths:
        writer, reader = server().do_put(flight.FlightDescriptor.for_path(*path), schema)

        def put(writer=writer, reader=reader):
            writer.write_batch(pa.record_batch([pa.array([0], pa.uint64()), pa.array([b"x"])], schema=schema))
            writer.done_writing()
            reader.read()
            writer.close()

        assert isinstance(refused(put), ValueError), path


def check_flights():
    ref = put_object(prefix(), b"x" * 100)
    info = server().get_flight_info(flight.FlightDescriptor.for_path(*ref.key.split("/")))
    assert info.endpoints[0].ticket.ticket == ref.key.encode()
    assert info.endpoints[0].locations[0].uri.decode() == ref.endpoint
    assert (info.total_records, info.total_bytes) == (-1, -1)
    flights = {one.endpoints[0].ticket.ticket.decode(): one for one in server().list_flights()}
    assert flights[ref.key].total_bytes > 100
    assert "DELETE" in [action.type for action in server().list_actions()]
    table = put_object(prefix(), pa.table({"a": [1]}))
    info = server().get_flight_info(flight.FlightDescriptor.for_path(table.key))
    assert info.schema.names == ["a"]
    unknown = server().get_flight_info(flight.FlightDescriptor.for_path("any", "thing", "new"))
    assert len(unknown.schema) == 0


def check_keys_of_the_client():
    assert ObjectKey.for_shared("app").to_prefix() == "app/shared"
    ref = put_object(f"{unique('app')}/shared", 1)
    assert get_object(ref) == 1


def put_samples():
    """For the other side to read: references as hex of their BSON."""
    sys.stdout.write(json.dumps([put_object("exchange/theirs", value).encode().hex() for value in samples()]))


def drop():
    """Objects that this client writes into the cache's folder itself."""
    for value in ("dropped", pa.table({"a": [1, 2]})):
        sys.stdout.write(put_object("app/session", value).encode().hex() + "\n")


def read_samples(refs):
    """What the other side put, compared with what it should be."""
    for ref, value in zip(refs, [*samples(), *unputable()], strict=True):
        got = get_object(ObjectRef.decode(bytes.fromhex(ref)))
        assert same(value, got), (repr(value)[:100], repr(got)[:100])


if __name__ == "__main__":
    if sys.argv[1:2] == ["put"]:
        put_samples()
    elif sys.argv[1:2] == ["drop"]:
        drop()
    elif sys.argv[1:2] == ["read"]:
        read_samples(sys.argv[2:])
    else:
        run_checks(globals())

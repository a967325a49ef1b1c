"""Keys, references and their BSON."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flame.model.errors import InvalidArgumentError
from flame.objects import ObjectClient, bson
from flame.objects.keys import InvalidKeyError, ObjectKey, ObjectRef

# What the BSON library of the foreign client writes for a reference with a small version: 32 bits.
FOREIGN = bytes.fromhex(
    "3a00000002656e64706f696e74000b000000677270633a2f2f683a3100026b65790006000000612f622f6300107665727369"
    "6f6e000700000000"
)


@pytest.mark.parametrize(
    ("text", "parts"), [("a/b", ("a", "b", None)), ("a/b/c", ("a", "b", "c")), ("ü/*", ("ü", "*", None))]
)
def test_keys_and_prefixes(text: str, parts: tuple[str, str, str | None]) -> None:
    key = ObjectKey.from_path(text)
    assert (key.app_name, key.session_id, key.object_id) == parts
    assert str(key) == text


@pytest.mark.parametrize(
    "text",
    ["", "a", "a/", "/a", "a/b/", "a//b", "a/b/c/d", "../b", "a/..", "a/b/..c", "a/.", "a\\b/c", "a/b\0", "a/b\n",
     "*/b", "a/*/c", "a/b/*", "a/" + "x" * 201, "a/" + "ü" * 101],
)  # fmt: skip
def test_what_could_be_a_path_is_no_key(text: str) -> None:
    with pytest.raises(InvalidKeyError):
        ObjectKey.from_path(text)
    with pytest.raises(ValueError, match="object key"):  # as programs for flamepy expect
        ObjectKey.from_key("a/b/" + "..")
    assert issubclass(InvalidKeyError, InvalidArgumentError)


@pytest.mark.parametrize("wrong", [None, 5, b"a/b/c", ["a", "b"]])
def test_what_is_no_text_is_no_key(wrong: Any) -> None:
    for make in (ObjectKey.from_path, ObjectKey.from_key, ObjectKey.from_prefix):
        with pytest.raises(InvalidKeyError, match="an object key is a text, not"):
            make(wrong)


@pytest.mark.parametrize("wrong", ["a/b/c", None, 5, b"a/b/c"])
def test_what_is_no_reference_is_refused_before_anybody_is_asked(wrong: Any) -> None:
    client = ObjectClient("grpc://127.0.0.1:1")
    calls: list[Callable[[], object]] = [
        lambda: client.get(wrong),
        lambda: client.update(wrong, 1),
        lambda: client.patch(wrong, 1),
        lambda: client.download(wrong, "file"),
        lambda: client.delete_many([wrong]),
    ]
    for call in calls:
        with pytest.raises(InvalidArgumentError, match="is no reference to an object") as refused:
            call()
        assert "give what put returned" in refused.value.remedy


def test_a_prefix_is_no_key() -> None:
    with pytest.raises(InvalidKeyError, match="is a prefix, not a key"):
        ObjectKey.from_key("a/b")
    with pytest.raises(InvalidKeyError, match="is a key, not a prefix"):
        ObjectKey.from_prefix("a/b/c")


def test_names_of_prefixes() -> None:
    assert str(ObjectKey.for_shared("a")) == "a/shared"
    assert ObjectKey.for_all_sessions("a").is_all_sessions()
    made = ObjectKey.from_prefix("a/b").with_generated_id()
    assert made.to_key() == f"a/b/{made.object_id}"
    assert made.to_prefix() == "a/b"
    assert ObjectKey("a", "b").to_key() is None


@pytest.mark.parametrize(
    ("pattern", "matches"),
    [("a/*", ["a/b/c", "a/x/c"]), ("a/b", ["a/b/c"]), ("a/b/c", ["a/b/c"]), ("a/b/d", []), ("z/*", [])],
)
def test_what_a_key_means(pattern: str, matches: list[str]) -> None:
    key = ObjectKey.from_path(pattern)
    assert [text for text in ("a/b/c", "a/x/c", "aa/b/c", "a/b", "a/b/c/d", "a//c") if key.matches_key(text)] == matches


def test_references_of_foreign_clients() -> None:
    ref = ObjectRef.decode(FOREIGN)
    assert ref == ObjectRef("grpc://h:1", "a/b/c", 7)
    assert ObjectRef.decode(ref.encode()) == ref
    assert ref.encode()[-11:-9] == b"n\0"  # the version has 64 bits


@given(st.text(), st.text(), st.integers(-(2**63), 2**63 - 1))
def test_references_come_back(endpoint: str, key: str, version: int) -> None:
    try:
        ref = ObjectRef(endpoint, key, version)
        data = ref.encode()
    except UnicodeEncodeError:
        return
    assert ObjectRef.decode(data) == ref


@given(st.binary(max_size=100))
def test_nonsense_is_no_reference(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        ObjectRef.decode(data)


@given(st.integers(0, len(FOREIGN) - 1), st.integers(0, 255))
def test_a_changed_byte_is_an_error_or_another_reference(place: int, byte: int) -> None:
    data = bytearray(FOREIGN)
    data[place] = byte
    try:
        assert isinstance(ObjectRef.decode(bytes(data)), ObjectRef)
    except ValueError:
        pass


def test_bson_has_its_limits() -> None:
    with pytest.raises(ValueError, match="NUL"):
        bson.encode({"a\0b": 1})
    with pytest.raises(ValueError, match="64 bits"):
        bson.encode({"a": 2**63})
    with pytest.raises(ValueError, match="neither a text nor a whole number"):
        bson.decode(bytes.fromhex("10000000016100000000000000f03f00"))

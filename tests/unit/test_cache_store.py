"""Versions, patches, times and quotas of objects, without memory or disk."""

from __future__ import annotations

from typing import Any

import pytest

from flame.cache.blobs import Blob
from flame.cache.store import MAX_PATCHES, Store
from flame.model.errors import ExhaustedError, InvalidArgumentError, InvalidStateError, NotFoundError
from flame.objects.keys import ObjectKey

NOW = 1_000.0


def blob(size: int = 10) -> Blob:
    return Blob(size, 0, 0, None)


def put(store: Store, key: str, size: int = 10, **options: Any) -> list[Blob]:
    expected, tenant, isolated = (
        options.pop(*pair) for pair in (("expected", None), ("tenant", ""), ("isolated", False))
    )
    plan = store.plan(key, size, expected, tenant, options.pop("now", NOW), patch=False, isolated=isolated)
    return store.put(key, plan, blob(size), table=False, expires=options.pop("expires", None))


def patch(store: Store, key: str, expected: int | None = None) -> None:
    store.patch(key, store.plan(key, 10, expected, "", NOW, patch=True), blob())


def versions(store: Store, key: str, known: int = 0, born: int = 0) -> tuple[bool, list[int]]:
    answer = store.read(key, known, born, NOW)
    return answer.full, [part.version for part in answer.parts]


def test_replacing_counts_on_and_drops_patches() -> None:
    store = Store()
    assert put(store, "a/b/c") == []
    patch(store, "a/b/c")
    patch(store, "a/b/c")
    assert versions(store, "a/b/c") == (True, [1, 2, 3])
    assert len(put(store, "a/b/c")) == 3
    assert versions(store, "a/b/c") == (True, [4])
    assert store.bytes == 10


@pytest.mark.parametrize(
    ("known", "answer"),
    [(0, (True, [3, 4, 5])), (1, (True, [3, 4, 5])), (2, (True, [3, 4, 5])), (3, (False, [4, 5])), (4, (False, [5])),
     (5, (False, [])), (6, (True, [3, 4, 5]))],
)  # fmt: skip
def test_only_what_lacks_is_read(known: int, answer: tuple[bool, list[int]]) -> None:
    store = Store()
    for _ in range(3):
        put(store, "a/b/c")
    patch(store, "a/b/c")
    patch(store, "a/b/c")
    assert versions(store, "a/b/c", known) == answer


def test_an_object_born_again_is_another_one() -> None:
    store = Store()
    put(store, "a/b/c")
    born = store.read("a/b/c", 0, 0, NOW).born
    store.take("a/b/c")
    put(store, "a/b/c")
    assert versions(store, "a/b/c", 1, born) == (True, [1])
    assert versions(store, "a/b/c", 1) == (False, [])


def test_expected_versions() -> None:
    store = Store()
    put(store, "a/b/c", expected=0)
    for wrong in (0, 2):
        with pytest.raises(InvalidStateError, match=f"has version 1, not {wrong}"):
            put(store, "a/b/c", expected=wrong)
    put(store, "a/b/c", expected=1)
    patch(store, "a/b/c", expected=2)
    with pytest.raises(InvalidStateError):
        patch(store, "a/b/c", expected=2)
    with pytest.raises(InvalidStateError, match="has version 0"):
        put(store, "a/b/new", expected=1)


def test_patches_need_an_object_and_have_an_end() -> None:
    store = Store()
    with pytest.raises(NotFoundError):
        patch(store, "a/b/c")
    put(store, "a/b/c")
    for _ in range(MAX_PATCHES):
        patch(store, "a/b/c")
    with pytest.raises(InvalidArgumentError, match="1000 patches"):
        patch(store, "a/b/c")


def test_objects_of_a_session_count_for_its_tenant_whatever_is_said() -> None:
    store = Store(quotas={"team": 25})
    put(store, "a/b/1", tenant="other")
    store.belongs("a/b", "team")
    put(store, "a/b/2", tenant="other")
    put(store, "a/c/1", tenant="other")
    assert store.used == {"team": 20, "other": 10}
    with pytest.raises(ExhaustedError, match="tenant 'team'"):
        put(store, "a/b/3", tenant="other")
    store.take("a/b/1")
    assert store.used == {"team": 10, "other": 10}


def test_isolated_instances_fill_a_session_up_to_its_quota() -> None:
    store = Store(session_quota=25)
    put(store, "a/s1/1", isolated=True)
    put(store, "parcels/s1/2", isolated=True)
    put(store, "a/s2/1", 25, isolated=True)
    for key in ("a/s1/3", "parcels/s1/3"):
        with pytest.raises(ExhaustedError, match="session 's1' has 20 bytes in the cache") as refused:
            put(store, key, isolated=True)
        assert "cache.session_quota" in refused.value.remedy
    with pytest.raises(ExhaustedError, match="10 more don't fit"):
        store.plan("a/s1/1", 10, None, "", NOW, patch=True, isolated=True)
    put(store, "a/s1/1", 15, isolated=True)  # in place of the smaller one
    put(store, "a/s1/3", 100)  # of a client
    put(store, "a/s1/3", 90, isolated=True)  # less than before
    store.take("a/s1/3")
    store.take("a/s1/1")
    put(store, "a/s1/1", 15, isolated=True)


def test_quotas_count_what_a_tenant_has() -> None:
    store = Store({"team": 25})
    put(store, "a/b/1", tenant="team")
    put(store, "a/b/2", tenant="team")
    with pytest.raises(ExhaustedError, match=r"20 of 25 bytes.*cache\.quotas\.team"):
        put(store, "a/b/3", tenant="team")
    put(store, "a/b/3")
    put(store, "a/b/1", 15)  # it keeps its tenant, and what it replaces counts no more
    with pytest.raises(ExhaustedError):
        patch(store, "a/b/1")
    store.take("a/b/2")
    patch(store, "a/b/1")
    assert store.used == {"team": 25, "default": 10}


def test_a_number_of_objects() -> None:
    store = Store(max_objects=1)
    put(store, "a/b/1")
    put(store, "a/b/1")
    with pytest.raises(ExhaustedError, match="has 1 objects"):
        put(store, "a/b/2")


def test_times() -> None:
    store = Store()
    put(store, "a/b/brief", expires=NOW + 1)
    put(store, "a/b/longer", expires=NOW + 9)
    put(store, "a/b/stays")
    assert store.due(NOW) == []
    store.expire_at("a/b/longer", None, NOW)
    assert store.due(NOW + 10) == ["a/b/brief"]
    with pytest.raises(NotFoundError):
        store.find("a/b/brief", NOW + 1)
    store.find("a/b/longer", NOW + 100)


def test_an_object_whose_time_is_over_is_put_anew() -> None:
    store = Store()
    put(store, "a/b/c", expires=NOW - 1)
    assert put(store, "a/b/c", expected=0) != []
    assert versions(store, "a/b/c") == (True, [1])


def test_the_objects_of_a_session_that_ends() -> None:
    store = Store()
    put(store, "a/ended/1")
    put(store, "a/ended/2", expires=NOW + 1)
    put(store, "a/other/1")
    assert store.end_session("a/ended", NOW + 5) == ["a/ended/1", "a/ended/2"]
    put(store, "a/ended/late")
    assert store.due(NOW + 2) == ["a/ended/2"]
    assert sorted(store.due(NOW + 5)) == ["a/ended/1", "a/ended/late"]
    assert store.due(NOW + 10_000) == []


def test_what_keys_mean() -> None:
    store = Store()
    for key in ("a/b/1", "a/b/2", "a/c/1", "aa/b/1"):
        put(store, key)
    assert sorted(store.matching(ObjectKey.from_path("a/*"))) == ["a/b/1", "a/b/2", "a/c/1"]
    assert sorted(store.matching(ObjectKey.from_path("a/b"))) == ["a/b/1", "a/b/2"]
    assert list(store.matching(ObjectKey.from_path("a/b/1"))) == ["a/b/1"]
    assert list(store.matching(ObjectKey.from_path("a/b/9"))) == []
    assert [one.key for one in store.list(ObjectKey.from_path("a/*"), "a/b/1", 1, NOW)] == ["a/b/2"]
    for key in ("a/b/1", "a/b/2", "a/c/1", "aa/b/1"):
        assert len(store.take(key)) == 1
    assert store.take("a/b/1") == []
    assert list(store.matching(ObjectKey.from_path("a/*"))) == []
    assert (store.bytes, store.used) == (0, {})

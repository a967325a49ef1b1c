"""What clients remember of objects of other nodes."""

from __future__ import annotations

import pyarrow as pa

from flame.objects.fetched import Fetched, FetchedPart
from flame.objects.held import Held, joined
from flame.objects.keys import ObjectKey


def fetched(*versions: int, size: int = 10, born: int = 1, full: bool = True, current: int = 0) -> Fetched:
    parts = tuple(FetchedPart(version, pa.py_buffer(bytes(size))) for version in versions)
    return Fetched(current or versions[-1], born, False, full, parts)


def test_bytes_are_bounded_and_the_least_used_leave() -> None:
    held = Held(25)
    held.keep("here", "a/b/1", fetched(1))
    held.keep("here", "a/b/2", fetched(1))
    assert held.find("here", "a/b/1") is not None
    held.keep("here", "a/b/3", fetched(1))
    assert [held.find("here", f"a/b/{n}") is not None for n in (1, 2, 3)] == [True, False, True]
    assert held.bytes == 20
    held.keep("here", "a/b/3", fetched(1, size=30))
    assert held.find("here", "a/b/3") is None
    assert held.bytes == 10


def test_keys_are_forgotten_at_all_caches() -> None:
    held = Held()
    for place, key in (("here", "a/b/1"), ("there", "a/b/1"), ("here", "a/c/1")):
        held.keep(place, key, fetched(1))
    held.forget(ObjectKey.from_path("a/b"))
    assert held.find("here", "a/b/1") is None
    assert held.find("there", "a/b/1") is None
    assert held.bytes == 10


def test_patches_are_joined_to_what_is_known() -> None:
    known = fetched(1, 2)
    whole = joined(known, fetched(3, 4, full=False))
    assert whole is not None
    assert (whole.version, [part.version for part in whole.parts]) == (4, [1, 2, 3, 4])


def test_what_does_not_fit_is_fetched_anew() -> None:
    known = fetched(1, 2)
    assert joined(known, Fetched(2, 1, False, False, ())) is known
    assert joined(known, Fetched(3, 1, False, False, ())) is None
    assert joined(known, fetched(4, full=False)) is None
    assert joined(known, fetched(3, full=False, born=2)) is None
    assert joined(None, fetched(3, full=False)) is None
    full = fetched(9)
    assert joined(known, full) is full

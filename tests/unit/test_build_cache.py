"""What is made once and used by many: kept while it is used, whole or not there, made by one of those that want it."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from flame.shims.build_cache import Cache, digest, fingerprints, system_state

KEPT = {"disk": 2}


def put(text: str, times: list[str]) -> Callable[[str], None]:
    def making(folder: str) -> None:
        times.append(text)
        Path(folder, "file").write_text(text)

    return making


def read(descriptors: list[int] | None) -> str:
    assert descriptors is not None
    with os.fdopen(descriptors[0]) as file:
        return file.read()


def test_a_thing_is_made_once_and_kept_while_it_is_used(tmp_path: Path) -> None:
    cache = Cache(str(tmp_path), KEPT)
    times: list[str] = []
    for key in ("a", "b", "a", "c", "a"):
        assert read(cache.make("disk", key, ["file"], put(key, times))) == key
    assert times == ["a", "b", "c"]
    assert cache.open("disk", "b", ["file"]) is None  # the one that was used last longest ago
    assert sorted(path.name for path in tmp_path.glob("disk-*")) == ["disk-a", "disk-c"]


def test_what_is_removed_stays_for_who_has_it_open(tmp_path: Path) -> None:
    cache = Cache(str(tmp_path), KEPT)
    opened = cache.make("disk", "a", ["file"], put("a", []))
    cache.remove("disk", "a")
    assert not cache.has("disk", "a")
    assert read(opened) == "a"


def test_what_is_not_whole_is_not_there(tmp_path: Path) -> None:
    cache = Cache(str(tmp_path), KEPT)

    def fails(folder: str) -> None:
        Path(folder, "file").write_text("half")
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        cache.make("disk", "a", ["file"], fails)
    assert cache.open("disk", "a", ["file"]) is None
    (tmp_path / "disk-dead.making").mkdir()  # of a maker that was killed
    assert read(cache.make("disk", "a", ["file"], put("a", []))) == "a"
    assert not (tmp_path / "disk-dead.making").exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_what_somebody_else_has_put_there_is_not_there(tmp_path: Path) -> None:
    cache = Cache(str(tmp_path), KEPT)
    os.close(cache.make("disk", "a", ["file"], put("theirs", []))[0])
    os.chown(tmp_path / "disk-a", 54321, 54321)
    assert cache.open("disk", "a", ["file"]) is None
    assert not cache.has("disk", "a")
    assert read(cache.make("disk", "a", ["file"], put("ours", []))) == "ours"


def test_nobody_else_sees_what_is_there(tmp_path: Path) -> None:
    cache = Cache(str(tmp_path / "cache"), KEPT)
    os.close(cache.make("disk", "a", ["file"], put("a", []))[0])
    folders = [path for path in (tmp_path / "cache", *(tmp_path / "cache").iterdir()) if path.is_dir()]
    assert {path.stat().st_mode & 0o777 for path in folders} == {0o700}


def make_alone(folder: str, into: str) -> None:
    def making(place: str) -> None:
        with open(into, "a") as file:  # noqa: PTH123
            file.write("x")
        Path(place, "file").write_text("a")

    Cache(folder, KEPT).make("disk", "a", ["file"], making)


def test_of_many_that_want_the_same_one_makes_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    made = tmp_path / "made"
    many = [context.Process(target=make_alone, args=(str(tmp_path / "cache"), str(made))) for _ in range(4)]
    for process in many:
        process.start()
    for process in many:
        process.join()
    assert [process.exitcode for process in many] == [0] * 4
    assert made.read_text() == "x"


def test_a_key_changes_with_what_is_in_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "b").write_text("1")
    seen = [digest(fingerprints(str(tmp_path)))]
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "a.pyc").write_text("")
    os.link(tmp_path / "a", tmp_path.parent / f"{tmp_path.name}-link")
    assert digest(fingerprints(str(tmp_path))) == seen[0]  # what Python makes, and links elsewhere, change nothing
    (tmp_path / "below" / "b").write_text("22")
    seen.append(digest(fingerprints(str(tmp_path))))
    seen.append(digest(fingerprints(str(tmp_path), frozenset([str(tmp_path / "below")]))))
    (tmp_path / "c").symlink_to("a")
    seen.append(digest(fingerprints(str(tmp_path))))
    assert len(set(seen)) == 4


def test_a_python_changes_when_a_package_is_installed(tmp_path: Path) -> None:
    packages = tmp_path / "lib" / "python3.11" / "site-packages"
    packages.mkdir(parents=True)
    before = system_state([str(tmp_path)])
    (packages / "one-1.0.dist-info").mkdir()
    assert system_state([str(tmp_path)]) != before

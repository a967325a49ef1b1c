"""Files of objects: whole or not there, verified, recovered."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from flame.cache.disk import CorruptedError, Description, Disk, Draft, GoneError, StoredFile
from flame.cache.recovery import recover
from flame.cache.store import Store
from flame.model.errors import ExhaustedError


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    disk = Disk(tmp_path / "objects")
    disk.open()
    yield disk
    disk.close()


def write(
    disk: Disk, key: str = "a/b/c", version: int = 1, data: bytes = b"data", *, patch: bool = False, born: int = 1,
    expires: float | None = None,
) -> StoredFile:  # fmt: skip
    draft = disk.draft(60)
    draft.write(memoryview(data))
    return disk.publish(draft, Description(key, version, born, False, patch, "team"), expires)


def read(disk: Disk, file: StoredFile) -> bytes:
    buffer = bytearray(file.size)
    disk.read_into(file, memoryview(buffer))
    mapped = disk.map(file)
    assert mapped[file.offset : file.offset + file.size] == buffer
    return bytes(buffer)


def again(disk: Disk) -> tuple[Store, list[StoredFile]]:
    """What a cache that starts anew finds."""
    disk.close()
    second = Disk(disk.folder)
    second.open()
    store = Store()
    stale = recover(second, store)
    second.close()
    return store, stale


@pytest.mark.parametrize("size", [0, 1, 10_000, 9_000_000])
def test_files_come_back(disk: Disk, size: int) -> None:
    file = write(disk, data=bytes(range(256)) * (size // 256 + 1))
    assert read(disk, file) == bytes(range(256)) * (size // 256 + 1)
    assert (file.offset + 4) % 64 == 0


def test_drafts_are_nobodys(disk: Disk) -> None:
    draft = disk.draft(0)
    draft.write(memoryview(b"half"))
    disk.close()
    second = Disk(disk.folder)
    second.open()
    assert list((disk.folder / ".drafts").iterdir()) == []
    assert list(second.scan()) == []
    second.close()
    draft.abandon()


def test_everything_is_recovered(disk: Disk) -> None:
    write(disk, "a/b/c", 3, expires=5_000.0)
    write(disk, "a/b/c", 4, b"delta", patch=True)
    write(disk, "x/y/z", 1, born=2)
    store, stale = again(disk)
    assert stale == []
    found = store.find("a/b/c", 0)
    assert (found.version, found.base.version, found.tenant, found.expires) == (4, 3, "team", 5_000.0)
    assert store.bytes == 13
    assert store.plan("new/new/new", 0, None, "", 0, patch=False).born > 2


def test_leftovers_of_a_crash_are_told_apart(disk: Disk) -> None:
    write(disk, "a/b/c", 1)
    write(disk, "a/b/c", 2, b"patch of the old base", patch=True)
    write(disk, "a/b/c", 3)
    write(disk, "a/b/c", 4, patch=True)
    write(disk, "a/b/c", 6, b"one between is missing", patch=True)
    write(disk, "a/b/c", 5, b"of another life", patch=True, born=9)
    write(disk, "a/b/orphan", 2, patch=True)
    store, stale = again(disk)
    assert list(store.objects) == ["a/b/c"]
    assert [part.version for part in store.read("a/b/c", 0, 0, 0).parts] == [3, 4]
    assert sorted((file.description.key, file.description.version) for file in stale) == [
        ("a/b/c", 1), ("a/b/c", 2), ("a/b/c", 5), ("a/b/c", 6), ("a/b/orphan", 2),
    ]  # fmt: skip


@pytest.mark.parametrize("place", [4096 + 60, -1])
def test_a_changed_byte_is_noticed(disk: Disk, place: int) -> None:
    for reader in ("read_into", "map"):
        file = write(disk, data=b"x" * 1000)
        content = bytearray(file.path.read_bytes())
        content[place] ^= 1
        file.path.write_bytes(content)
        with pytest.raises(CorruptedError, match=r"a/b/c.*checksum.*\.quarantine"):
            disk.read_into(file, memoryview(bytearray(1000))) if reader == "read_into" else disk.map(file)
        assert not file.path.exists()


def test_a_file_that_was_cut_is_noticed(disk: Disk) -> None:
    for attempt in (lambda file: disk.read_into(file, memoryview(bytearray(1000))), disk.map):
        file = write(disk, data=b"x" * 1000)
        file.path.write_bytes(file.path.read_bytes()[:-1])
        with pytest.raises(CorruptedError):
            attempt(file)


@pytest.mark.parametrize("place", [0, 8 + 8, 40, 60])
def test_a_changed_head_is_noticed(disk: Disk, place: int) -> None:
    file = write(disk)
    content = bytearray(file.path.read_bytes())
    content[place] ^= 1
    file.path.write_bytes(content)
    store, _ = again(disk)
    assert store.objects == {}
    assert len(list((disk.folder / ".quarantine").iterdir())) == 1


def test_a_file_under_a_wrong_name_is_noticed(disk: Disk) -> None:
    file = write(disk)
    file.path.rename(file.path.with_name(file.path.name.replace("c@", "d@")))
    assert again(disk)[0].objects == {}


def test_a_file_that_is_gone(disk: Disk) -> None:
    file = write(disk)
    disk.remove(file)
    for attempt in (lambda: disk.map(file), lambda: disk.read_into(file, memoryview(bytearray(4)))):
        with pytest.raises(GoneError):
            attempt()
    assert disk.used == 0
    assert not (disk.folder / "a").exists()
    disk.remove(file)
    assert disk.used == 0


def test_when_an_object_goes_away_is_remembered(disk: Disk) -> None:
    file = write(disk)
    disk.set_expires(file, 77.0)
    assert disk.expires_of(file) == 77.0
    assert again(disk)[0].objects["a/b/c"].expires == 77.0
    disk.set_expires(file, None)
    assert disk.expires_of(file) is None


def test_names_can_not_leave_the_folder(disk: Disk) -> None:
    for key in (".drafts/.lock/.x", "a%2Fb/c@1/d.flame", "日本/…/ü"):
        file = write(disk, key)
        assert file.path.parent.parent.parent == disk.folder
        assert not any(part.startswith(".") for part in file.path.relative_to(disk.folder).parts)
    assert len(again(disk)[0].objects) == 3


def test_a_folder_is_for_one_process(disk: Disk) -> None:
    import subprocess
    import sys

    code = "import sys; from pathlib import Path; from flame.cache.disk import Disk; Disk(Path(sys.argv[1])).open()"
    done = subprocess.run([sys.executable, "-c", code, str(disk.folder)], capture_output=True, text=True, check=False)
    assert "another cache uses" in done.stderr


def test_a_full_disk_leaves_no_draft(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    draft = disk.draft(0)
    draft.write(memoryview(b"data"))

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.pwrite", full)
    with pytest.raises(ExhaustedError, match="is full"):
        disk.publish(draft, Description("a/b/c", 1, 1, False, False, ""), None)
    assert isinstance(draft, Draft)
    assert not draft.path.exists()
    assert list(disk.folder.glob("*/*/*.flame")) == []

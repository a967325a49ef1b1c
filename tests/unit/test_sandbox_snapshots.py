"""Archives of snapshots: what goes in and out, and the tricks that can be played with them."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
from pathlib import Path

import pytest

from flame.model.errors import InvalidArgumentError
from flame.sandbox.inside.snapshots import Taking, unpack


def archive(path: Path, *entries: tarfile.TarInfo) -> int:
    """A snapshot with these entries, open."""
    with gzip.open(path, "wb") as packed, tarfile.open(fileobj=packed, mode="w|") as made:
        about = json.dumps({"python": "3.11.7"}).encode()
        first = tarfile.TarInfo("about.json")
        first.size = len(about)
        made.addfile(first, io.BytesIO(about))
        for entry in entries:
            made.addfile(entry, io.BytesIO(b"x" * entry.size) if entry.isreg() else None)
    return os.open(path, os.O_RDONLY)


def entry(name: str, kind: bytes = tarfile.REGTYPE, linkname: str = "", size: int = 1) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, linkname
    made.size = size if kind == tarfile.REGTYPE else 0
    return made


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


async def test_files_and_links_come_back_as_they_were_and_nothing_else(tmp_path: Path, folder: Path) -> None:
    (folder / "a").mkdir(mode=0o500)
    (folder / "file").write_bytes(b"1" * 3_000_000)
    (folder / "file").chmod(0o640)
    os.link(folder / "file", folder / "hard")
    (folder / "link").symlink_to("/nowhere")
    os.mkfifo(folder / "pipe")
    (tmp_path / "variables").write_bytes(b"pickled")
    taking = Taking(str(folder), tmp_path / "variables", {"python": "3"}, {"lock": "no"})
    with (tmp_path / "snapshot").open("wb") as file:
        while not (part := await taking.fetch()).end:
            file.write(part.data)
    assert part.skipped == {"lock": "no"}
    assert not (tmp_path / "variables").exists()
    (tmp_path / "twin").mkdir()
    about = unpack(os.open(tmp_path / "snapshot", os.O_RDONLY), str(tmp_path / "twin"), tmp_path / "restored")
    assert about == {"python": "3"}
    assert (tmp_path / "restored").read_bytes() == b"pickled"
    twin = tmp_path / "twin"
    assert everything(twin) == ["a", "file", "hard", "link"]
    assert (twin / "file").stat().st_mode & 0o777 == 0o640
    assert (twin / "file").stat().st_ino == (twin / "hard").stat().st_ino
    assert (twin / "a").stat().st_mode & 0o777 == 0o500
    assert str((twin / "link").readlink()) == "/nowhere"


async def test_a_snapshot_that_nobody_fetches_ends(folder: Path) -> None:
    for number in range(20):
        (folder / str(number)).write_bytes(os.urandom(1_000_000))
    taking = Taking(str(folder), None, {}, {})
    assert (await taking.fetch()).data
    taking.give_up()


@pytest.mark.parametrize(
    "entries",
    [
        [entry("files/../outside")],
        [entry("files/../../outside")],
        [entry("files/a/../../../outside")],
        [entry("files//outside/../../outside")],
        [entry("files/../outside", tarfile.DIRTYPE)],
        [entry("files/../outside", tarfile.SYMTYPE, "x")],
        [entry("files/device", tarfile.CHRTYPE)],
        [entry("files/pipe", tarfile.FIFOTYPE)],
        [entry("files/hard", tarfile.LNKTYPE, "/etc/passwd")],
        [entry("files/hard", tarfile.LNKTYPE, "files/../../outside")],
        [entry("files/folder", tarfile.DIRTYPE), entry("files/folder", tarfile.SYMTYPE, "/tmp")],
    ],
)
def test_what_leads_elsewhere_is_refused_and_writes_nothing_there(
    tmp_path: Path, folder: Path, entries: list[tarfile.TarInfo]
) -> None:
    (tmp_path / "variables").touch()
    before = [name for name in everything(tmp_path) if not name.startswith("work")]
    with pytest.raises(InvalidArgumentError):
        unpack(archive(tmp_path / "snapshot", *entries), str(folder), tmp_path / "variables")
    (tmp_path / "snapshot").unlink()
    assert [name for name in everything(tmp_path) if not name.startswith("work")] == before
    assert not any(path.is_symlink() for path in folder.rglob("*"))


def test_nothing_is_written_through_a_link_of_the_archive(tmp_path: Path, folder: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    entries = [entry("files/way", tarfile.SYMTYPE, str(outside)), entry("files/way/file")]
    with pytest.raises(InvalidArgumentError):
        unpack(archive(tmp_path / "snapshot", *entries), str(folder), tmp_path / "variables")
    assert list(outside.iterdir()) == []


def test_entries_elsewhere_in_the_archive_are_ignored(tmp_path: Path, folder: Path) -> None:
    entries = [entry("/etc/outside"), entry("other/file"), entry("files/inside")]
    unpack(archive(tmp_path / "snapshot", *entries), str(folder), tmp_path / "variables")
    assert everything(folder) == ["inside"]


@pytest.mark.parametrize("content", [b"", b"nonsense", gzip.compress(b"nonsense" * 1000)])
def test_nonsense_is_refused(tmp_path: Path, folder: Path, content: bytes) -> None:
    (tmp_path / "snapshot").write_bytes(content)
    with pytest.raises(InvalidArgumentError, match="can't be taken over"):
        unpack(os.open(tmp_path / "snapshot", os.O_RDONLY), str(folder), tmp_path / "variables")

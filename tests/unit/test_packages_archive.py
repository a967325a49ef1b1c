"""Archives that nobody vouches for: what is unpacked, and what is refused without a trace outside."""

from __future__ import annotations

import gzip
import io
import os
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from flame.model.errors import FlameErrorCode, InvalidArgumentError, TooLargeError
from flame.packages.archive import unpack
from flame.packages.limits import ArchiveLimits

LIMITS = ArchiveLimits(max_bytes=10_000_000, max_files=100, max_ratio=50, ratio_from=100_000)


def entry(
    name: str, kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o644, size: int = 0
) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode, info.size = kind, link, mode, size
    return info


def tar(file: Path, *entries: tarfile.TarInfo | tuple[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(file, mode) as archive:
        for one in entries:
            if isinstance(one, tuple):
                archive.addfile(entry(one[0], size=len(one[1])), io.BytesIO(one[1]))
            else:
                archive.addfile(one, io.BytesIO(bytes(one.size)) if one.size else None)
    return file


def unzip_info(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


def zipped(file: Path, *entries: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return file


def tree(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): str(path.readlink()) if path.is_symlink() else path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


@pytest.mark.parametrize("mode", ["w:gz", "w"])
def test_files_folders_and_links_of_a_tar(tmp_path: Path, mode: str) -> None:
    archive = tar(
        tmp_path / "a.tar",
        entry("./pkg", tarfile.DIRTYPE),
        ("./pkg/one.py", b"1"),
        ("deep/er/two", b"2"),
        entry("same", tarfile.LNKTYPE, "deep/er/two"),
        entry("pkg/link", tarfile.SYMTYPE, "../deep/er"),
        entry("early", tarfile.SYMTYPE, "late"),
        ("late", b"3"),
        mode=mode,
    )
    unpack(archive, "a", tmp_path / "out", LIMITS)
    assert tree(tmp_path / "out") == {
        "deep/er/two": "2",
        "early": "late",
        "late": "3",
        "pkg/link": "../deep/er",
        "pkg/one.py": "1",
        "same": "2",
    }


def test_files_and_links_of_a_zip_with_their_modes(tmp_path: Path) -> None:
    archive = zipped(
        tmp_path / "a.zip",
        ("bin/", b""),
        (unzip_info("bin/run", stat.S_IFREG | 0o755), b"#!/bin/sh"),
        ("data", b"d"),
        (unzip_info("link", stat.S_IFLNK | 0o777), b"bin/run"),
    )
    unpack(archive, "a", tmp_path / "out", LIMITS)
    assert tree(tmp_path / "out") == {"bin/run": "#!/bin/sh", "data": "d", "link": "bin/run"}
    assert os.access(tmp_path / "out/bin/run", os.X_OK)
    assert not os.access(tmp_path / "out/data", os.X_OK)


def test_special_permissions_are_dropped_and_the_owner_may_always_read(tmp_path: Path) -> None:
    archive = tar(tmp_path / "a.tar", entry("suid", mode=0o6777), entry("closed", mode=0o000))
    unpack(archive, "a", tmp_path / "out", LIMITS)
    modes = [stat.S_IMODE((tmp_path / "out" / name).stat().st_mode) for name in ("suid", "closed")]
    assert modes == [0o755, 0o600]


TRICKS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "absolute": (lambda f: tar(f, ("/tmp/evil", b"x")), "a name that leads out of it: '/tmp/evil'"),
    "parent": (lambda f: tar(f, ("a/../../evil", b"x")), "a name that leads out"),
    "parent folder": (lambda f: tar(f, entry("..", tarfile.DIRTYPE)), "a name that leads out"),
    "backslash": (lambda f: tar(f, ("..\\evil", b"x")), "a name that leads out"),
    "link out": (lambda f: tar(f, entry("l", tarfile.SYMTYPE, "../evil")), "a link that leads out of it: 'l'"),
    "absolute link": (lambda f: tar(f, entry("l", tarfile.SYMTYPE, "/etc/passwd")), "a link that leads out"),
    "link through a link": (
        lambda f: tar(
            f,
            entry("p/q", tarfile.DIRTYPE),
            entry("p/q/d", tarfile.SYMTYPE, "."),
            entry("x", tarfile.SYMTYPE, "p/q/d/../../../evil"),
        ),
        "a link that leads out",
    ),
    "link below a link out": (
        lambda f: tar(f, entry("l", tarfile.SYMTYPE, ".."), entry("l/evil", tarfile.SYMTYPE, "x")),
        "a link that leads out",
    ),
    "links that bend each other": (
        lambda f: tar(
            f,
            entry("a", tarfile.SYMTYPE, "b/../../evil"),
            entry("deep/down", tarfile.DIRTYPE),
            entry("b", tarfile.SYMTYPE, "."),
        ),
        "a link that leads out",
    ),
    "file through a link": (
        lambda f: tar(f, entry("l", tarfile.SYMTYPE, "sub"), ("l/file", b"x")),
        "holds 'l' twice",
    ),
    "hard link out": (lambda f: tar(f, entry("l", tarfile.LNKTYPE, "/etc/passwd")), "a name that leads out"),
    "hard link to nothing": (lambda f: tar(f, entry("l", tarfile.LNKTYPE, "later")), "which is not a file before it"),
    "device": (lambda f: tar(f, entry("dev", tarfile.CHRTYPE)), "a device or a pipe: 'dev'"),
    "pipe": (lambda f: tar(f, entry("pipe", tarfile.FIFOTYPE)), "a device or a pipe: 'pipe'"),
    "twice": (lambda f: tar(f, ("a", b"1"), ("./a", b"2")), "holds './a' twice"),
    "file as folder": (lambda f: tar(f, ("a", b"1"), ("a/b", b"2")), "as a file and as a folder"),
    "zip: parent": (lambda f: zipped(f, ("../evil", b"x")), "a name that leads out"),
    "zip: absolute": (lambda f: zipped(f, ("/tmp/evil", b"x")), "a name that leads out"),
    "zip: link out": (
        lambda f: zipped(f, (unzip_info("l", stat.S_IFLNK | 0o777), b"../evil")),
        "a link that leads out",
    ),
    "zip: device": (lambda f: zipped(f, (unzip_info("d", stat.S_IFCHR | 0o644), b"")), "a device or a pipe"),
}


@pytest.mark.parametrize("trick", TRICKS)
def test_path_tricks_are_refused_and_nothing_is_outside(tmp_path: Path, trick: str) -> None:
    make, message = TRICKS[trick]
    inner = tmp_path / "inner"
    inner.mkdir()
    archive = make(tmp_path / "archive")
    with pytest.raises(InvalidArgumentError, match=r"^package evil\.tgz holds") as raised:
        unpack(archive, "evil.tgz", inner / "out", LIMITS)
    assert message in raised.value.message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["archive", "inner"]
    assert [path.name for path in inner.iterdir()] == ["out"]
    assert not Path("/tmp/evil").exists()


BOMBS: dict[str, Callable[[Path], Path]] = {
    "tar.gz": lambda f: tar(f, entry("zeros", size=9_000_000)),
    "zip": lambda f: zipped(f, ("zeros", bytes(9_000_000))),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_bombs_are_refused_before_they_are_unpacked(tmp_path: Path, kind: str) -> None:
    archive = BOMBS[kind](tmp_path / "bomb")
    packed = archive.stat().st_size
    with pytest.raises(TooLargeError, match=f"package b unpacks {packed:,} bytes to more than .*looks like a bomb"):
        unpack(archive, "b", tmp_path / "out", LIMITS)
    written = sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    assert written <= max(LIMITS.ratio_from, packed * LIMITS.max_ratio)


def test_a_zip_whose_files_overlap_is_counted_as_often_as_it_is_unpacked(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", ("k0", os.urandom(60_000)))
    data = archive.read_bytes()
    end = data.rindex(b"PK\x05\x06")
    start = data.index(b"PK\x01\x02")
    record = data[start:end]
    records = b"".join(record.replace(b"k0", f"k{number}".encode()) for number in range(10))
    tail = bytearray(data[end:])
    struct.pack_into("<HHI", tail, 8, 10, 10, len(records))
    archive.write_bytes(data[:start] + records + bytes(tail))
    with pytest.raises((InvalidArgumentError, TooLargeError)):
        unpack(archive, "a", tmp_path / "out", ArchiveLimits(max_bytes=150_000))
    assert sum(path.stat().st_size for path in (tmp_path / "out").iterdir()) <= 150_000


def test_a_header_that_wants_all_memory_is_refused(tmp_path: Path) -> None:
    header = entry("pax", tarfile.XHDTYPE, size=6 * 1024**3).tobuf(tarfile.GNU_FORMAT)
    archive = tmp_path / "a.tar.gz"
    with gzip.open(archive, "wb") as out:
        out.write(header)
        out.write(bytes(1_000_000))
    with pytest.raises(InvalidArgumentError, match="is damaged or no archive"):
        unpack(archive, "a", tmp_path / "out", LIMITS)


def test_too_much_and_too_many(tmp_path: Path) -> None:
    large = tar(tmp_path / "large", ("noise", os.urandom(200_000)), mode="w")
    with pytest.raises(TooLargeError, match="unpacks to more than 150,000 bytes"):
        unpack(large, "large", tmp_path / "out1", ArchiveLimits(max_bytes=150_000))
    many = tar(tmp_path / "many", *(entry(f"f{number}") for number in range(101)))
    with pytest.raises(TooLargeError, match="holds more than 100 files") as raised:
        unpack(many, "many", tmp_path / "out2", LIMITS)
    assert raised.value.code == FlameErrorCode.TOO_LARGE
    assert raised.value.remedy
    with zipfile.ZipFile(tmp_path / "zip", "w") as archive:
        for number in range(101):
            archive.writestr(f"f{number}", "")
    with pytest.raises(TooLargeError, match="holds more than 100 files"):
        unpack(tmp_path / "zip", "zip", tmp_path / "out3", LIMITS)
    assert list((tmp_path / "out3").iterdir()) == []  # its directory says it before anything is made


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"PK\x03\x04 cut", b"\x1f\x8b\x08\x00 cut off"])
def test_what_is_no_archive_says_so(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(InvalidArgumentError, match=r"package x\.tgz is damaged or no archive"):
        unpack(tmp_path / "a", "x.tgz", tmp_path / "out", LIMITS)


def test_an_archive_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    archive = tar(tmp_path / "a", ("noise", os.urandom(50_000)), ("more", os.urandom(50_000)))
    archive.write_bytes(archive.read_bytes()[:70_000])
    with pytest.raises(InvalidArgumentError, match="is damaged"):
        unpack(archive, "a", tmp_path / "out", LIMITS)


def test_an_encrypted_file_is_refused(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", ("secret", b"text"))
    data = bytearray(archive.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(mark) + offset] |= 1
    archive.write_bytes(bytes(data))
    with pytest.raises(InvalidArgumentError, match="an encrypted file: 'secret'"):
        unpack(archive, "a", tmp_path / "out", LIMITS)

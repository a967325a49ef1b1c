"""What an instance left is removed, whatever it did to be in the way."""

from __future__ import annotations

import os
from pathlib import Path

from flame.shims.removal import remove_tree


def deep(folder: Path, depth: int) -> None:
    """Folders in folders, deeper than any path is long."""
    here = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("x", dir_fd=here)
        inner = os.open("x", os.O_RDONLY, dir_fd=here)
        os.close(os.open("file", os.O_CREAT, dir_fd=inner))
        os.close(here)
        here = inner
    os.close(here)


def test_a_folder_goes_with_all_that_is_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    for name in ("a/b/c", "a/d", "e"):
        (folder / name).mkdir(parents=True)
    for name in ("file", "a/file", "a/b/c/file", ".hidden"):
        (folder / name).write_text("x")
    os.mkfifo(folder / "a" / "pipe")
    remove_tree(folder)
    assert list(tmp_path.iterdir()) == []


def test_it_is_not_too_deep(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    deep(folder, 3000)
    remove_tree(folder)
    assert not folder.exists()


def test_permissions_are_not_in_the_way(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "a" / "b" / "file").write_text("x")
    for name in ("a/b", "a", "."):
        (folder / name).chmod(0)
    remove_tree(folder)
    assert not folder.exists()


def test_links_are_not_followed(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("x")
    kept.chmod(0o750)
    folder = tmp_path / "folder"
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "link").symlink_to(kept)
    (folder / "link").symlink_to(kept)
    remove_tree(folder)
    assert not folder.exists()
    assert (kept / "file").read_text() == "x"
    assert kept.stat().st_mode & 0o777 == 0o750
    (tmp_path / "link").symlink_to(kept)
    remove_tree(tmp_path / "link")
    assert (kept / "file").read_text() == "x"
    assert kept.stat().st_mode & 0o777 == 0o750


def test_what_is_not_there_is_no_fault(tmp_path: Path) -> None:
    remove_tree(tmp_path / "nothing")

"""The folders of a node: its own, and without what an earlier one left."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from flame.model.errors import InvalidConfigError
from flame.node.folders import Folders

DIES = """
import os, sys
from pathlib import Path
from flame.node.folders import Folders
folders = Folders.take(Path(sys.argv[1]), Path(sys.argv[2]))
(folders.executors / "e-1").mkdir()
(folders.doors / "1").mkdir()
print(folders.sockets, folders.doors)
sys.stdout.flush()
os._exit(1)
"""


def test_what_a_node_left_that_died_is_removed(tmp_path: Path) -> None:
    work, root = tmp_path / "work", tmp_path / "sockets"
    done = subprocess.run(
        [sys.executable, "-c", DIES, str(work), str(root)], capture_output=True, text=True, check=False
    )
    left = [Path(path) for path in done.stdout.split()]
    assert [path.is_dir() for path in left] == [True, True]
    folders = Folders.take(work, root)
    assert not any(path.exists() for path in left)
    assert not list(folders.executors.iterdir())
    with pytest.raises(InvalidConfigError, match="another executor manager uses"):
        Folders.take(work, root)
    folders.release()
    assert not folders.sockets.exists()
    assert not folders.doors.exists()


def test_only_what_it_made_itself_is_removed(tmp_path: Path) -> None:
    work, precious = tmp_path / "work", tmp_path / "precious"
    precious.mkdir()
    work.mkdir()
    (work / "doors").symlink_to(precious)
    Folders.take(work, tmp_path / "sockets").release()
    assert precious.is_dir()

"""Folders and registry of local clusters, with sockets in place of daemons."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from flame.local import registry
from flame.local.folders import check_name, private_folder, runtime_root
from flame.local.registry import ClusterRecord
from flame.model.errors import InvalidConfigError


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A short folder for sockets: those of pytest are too long for them."""
    import shutil
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="fl", dir="/tmp"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    yield folder / "flame"
    shutil.rmtree(folder)


def record(name: str, data: Path, **changes: bool) -> ClusterRecord:
    made = ClusterRecord(
        name=name,
        pid=1,
        endpoint="unix:x",
        storage="none",
        data=str(data),
        log="l",
        version="0",
        started=0.0,
        **changes,
    )
    registry.write_record(registry.cluster_folder(name), made)
    return made


def listen(name: str) -> socket.socket:
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.bind(str(registry.cluster_folder(name) / registry.SOCKET))
    server.listen()
    return server


def test_a_cluster_is_found_while_its_socket_answers(root: Path, tmp_path: Path) -> None:
    made = record("one", tmp_path)
    assert registry.find("one") is None
    with listen("one"):
        assert registry.find("one") == made
        assert registry.running() == [made]
        assert registry.listener(root / "one") == os.getpid()
    assert registry.find("one") is None
    assert registry.running() == []


def test_a_record_that_is_not_ours_counts_as_none(root: Path) -> None:
    with listen("one"):
        (registry.cluster_folder("one") / registry.RECORD).write_text("{")
        assert registry.find("one") is None


def test_one_process_holds_the_lock(root: Path) -> None:
    folder = registry.cluster_folder("one")
    lock = registry.take_lock(folder)
    assert lock is not None
    assert registry.take_lock(folder) is None
    os.close(lock)
    again = registry.take_lock(folder)
    assert again is not None
    os.close(again)


def test_what_a_killed_temporary_cluster_left_is_swept(root: Path, tmp_path: Path) -> None:
    for name in ("killed", "alive", "lasting"):
        (tmp_path / name).mkdir()
    record("killed", tmp_path / "killed", temporary=True, anonymous=True)
    record("alive", tmp_path / "alive", temporary=True, anonymous=True)
    record("lasting", tmp_path / "lasting")
    lock = registry.take_lock(registry.cluster_folder("alive"))
    assert lock is not None
    registry.sweep()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alive", "lasting"]
    assert sorted(path.name for path in root.iterdir()) == ["alive", "lasting"]
    os.close(lock)


def test_a_named_cluster_keeps_its_folder_for_the_next(root: Path, tmp_path: Path) -> None:
    made = record("run", tmp_path / "data", temporary=True)
    registry.retire(root / "run", made)
    assert (root / "run").is_dir()
    assert registry.read_record(root / "run") is None


def test_folders_are_private(root: Path) -> None:
    assert runtime_root() == root
    assert root.stat().st_mode & 0o777 == 0o700
    root.chmod(0o755)
    assert runtime_root().stat().st_mode & 0o777 == 0o700


def test_a_link_is_not_taken_for_a_folder(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(PermissionError):
        private_folder(tmp_path / "link")


def test_a_long_runtime_folder_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / ("long" * 20)))
    monkeypatch.delenv("TMPDIR", raising=False)
    assert runtime_root() == Path(f"/tmp/flame-{os.getuid()}")


@pytest.mark.parametrize("name", ["", "..", "a/b", "-x", "a" * 33, "a b"])
def test_names_can_not_leave_their_folder(name: str) -> None:
    with pytest.raises(InvalidConfigError, match="invalid cluster name"):
        check_name(name)

"""The folders of one node: taken for this process alone, and cleaned of what an earlier one left."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from flame.model.errors import InvalidConfigError
from flame.shims.keeper import kill_owned_by
from flame.shims.removal import remove_tree

_MEMORY = Path("/dev/shm")


class Folders:
    """`executors` holds a folder for each executor that lives, named by its id. `sockets` and `doors` have short paths;
    `doors` is for what instances may write to, and in memory where this machine has a place for that."""

    def __init__(self, lock: int, executors: Path, sockets: Path, doors: Path) -> None:
        self._lock: int | None = lock
        self.executors = executors
        self.sockets = sockets
        self.doors = doors

    @classmethod
    def take(cls, work_dir: Path, socket_root: Path) -> Folders:
        """Make them. Ends processes whose executor manager and keeper were both killed: their folders still name them.

        May block for a while. Raises InvalidConfigError when another process uses `work_dir`, and OSError.
        """
        executors, links = work_dir / "executors", (work_dir / "sockets", work_dir / "doors")
        executors.mkdir(parents=True, exist_ok=True, mode=0o700)
        socket_root.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(work_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            roots = (socket_root, _MEMORY if os.access(_MEMORY, os.W_OK) else socket_root)
            _clean(executors, dict(zip(links, roots, strict=True)))
            sockets, doors = (Path(tempfile.mkdtemp(prefix="flame-", dir=root)) for root in roots)
            for link, target in zip(links, (sockets, doors), strict=True):
                link.symlink_to(target)
        except BlockingIOError:
            os.close(lock)
            raise InvalidConfigError(
                f"another executor manager uses {work_dir}", remedy="give each node of a machine a work_dir of its own"
            ) from None
        except BaseException:
            os.close(lock)
            raise
        return cls(lock, executors, sockets, doors)

    def release(self) -> None:
        """Nothing of this node runs any more. Harmless when repeated."""
        for folder in (self.sockets, self.doors):
            remove_tree(folder)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _clean(executors: Path, links: Mapping[Path, Path]) -> None:
    """`links` maps links to folders to where these must lie."""
    left = {folder.name for folder in executors.iterdir()}
    if left:
        kill_owned_by(left)
        for name in left:
            remove_tree(executors / name)
    for link, root in links.items():
        if link.is_symlink():
            target = link.readlink()
            if target.parent == root:
                remove_tree(target)
            link.unlink()

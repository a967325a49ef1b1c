"""The folders of one node: taken for this process alone, and cleaned of what an earlier one left."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

from flame.model.errors import InvalidConfigError
from flame.shims.keeper import kill_owned_by


class Folders:
    """`executors` holds a folder for each executor that lives, named by its id; `sockets` has a short path."""

    def __init__(self, lock: int, executors: Path, sockets: Path) -> None:
        self._lock: int | None = lock
        self.executors = executors
        self.sockets = sockets

    @classmethod
    def take(cls, work_dir: Path, socket_root: Path) -> Folders:
        """Make them. Ends processes whose executor manager and keeper were both killed: their folders still name them.

        May block for a while. Raises InvalidConfigError when another process uses `work_dir`, and OSError.
        """
        executors, link = work_dir / "executors", work_dir / "sockets"
        executors.mkdir(parents=True, exist_ok=True, mode=0o700)
        socket_root.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(work_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _clean(executors, link, socket_root)
            sockets = Path(tempfile.mkdtemp(prefix="n", dir=socket_root))
            link.symlink_to(sockets)
        except BlockingIOError:
            os.close(lock)
            raise InvalidConfigError(
                f"another executor manager uses {work_dir}", remedy="give each node of a machine a work_dir of its own"
            ) from None
        except BaseException:
            os.close(lock)
            raise
        return cls(lock, executors, sockets)

    def release(self) -> None:
        """Nothing of this node runs any more. Harmless when repeated."""
        shutil.rmtree(self.sockets, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _clean(executors: Path, link: Path, socket_root: Path) -> None:
    left = {folder.name for folder in executors.iterdir()}
    if left:
        kill_owned_by(left)
        for name in left:
            shutil.rmtree(executors / name, ignore_errors=True)
    if link.is_symlink():
        sockets = link.readlink()
        if sockets.parent == socket_root:
            shutil.rmtree(sockets, ignore_errors=True)
        link.unlink()

"""What is made once and used by many: snapshots, and disks of virtual machines, each a folder with files in it.

A thing is known by its kind and a key that changes with all it was made from, and it is there only when it is whole:
made in a folder of its own, under a lock that the kernel takes from a maker that dies, and renamed when it is done.
Who uses a file opens it, so that it may be removed at any time. Only the standard library: the runner uses it.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Generator, Iterable

_MAKING = ".making"
_LOCKS = "locks"


class Cache:
    """The things below `folder`; `kept` of each kind at most, those that were used last. Other folders are not ours."""

    def __init__(self, folder: str, kept: dict[str, int]) -> None:
        self.folder = folder
        self.kept = kept

    def open(self, kind: str, key: str, names: list[str], *, writable: bool = False) -> list[int] | None:
        """These files of a thing, open for reading, None = there is no such thing. Notes that it was used."""
        place = self.place(kind, key)
        opened: list[int] = []
        if not _is_ours(place):
            return None
        with contextlib.suppress(OSError):  # it may be where nobody may write
            _used_now(place)
        try:
            for name in names:
                flags = os.O_RDWR if writable else os.O_RDONLY
                opened.append(os.open(f"{place}/{name}", flags | os.O_CLOEXEC))
        except FileNotFoundError:
            for descriptor in opened:
                os.close(descriptor)
            return None
        return opened

    def has(self, kind: str, key: str, names: Iterable[str] = ()) -> bool:
        """Whether there is such a thing, with these files."""
        place = self.place(kind, key)
        return _is_ours(place) and all(os.path.exists(f"{place}/{name}") for name in names)

    def remove(self, kind: str, key: str) -> None:
        """Away with it; who has its files open keeps them."""
        shutil.rmtree(self.place(kind, key), ignore_errors=True)

    def place(self, kind: str, key: str) -> str:
        """The folder of a thing that is there."""
        return f"{self.folder}/{kind}-{key}"

    def make(self, kind: str, key: str, names: list[str], making: Callable[[str], None]) -> list[int]:
        """Its files, open for reading; `making` puts them into the folder that it is given, if nobody has yet. Of
        several who want it at the same time one makes it, the others wait. Raises what `making` does, and OSError."""
        while True:
            opened = self.open(kind, key, names)
            if opened is not None:
                return opened
            with self.locked(f"{kind}-{key}"):
                if self.has(kind, key, names):
                    continue
                with self.making(kind, key) as folder:
                    making(folder)

    @contextlib.contextmanager
    def making(self, kind: str, key: str) -> Generator[str]:
        """A folder that becomes the thing when the block ends well, in place of one that has lost its files. The caller
        holds the lock."""
        place = self.place(kind, key)
        folder = place + _MAKING
        shutil.rmtree(folder, ignore_errors=True)  # of a maker that died
        os.makedirs(folder, mode=0o700)
        try:
            yield folder
            for name in os.listdir(folder):
                with open(f"{folder}/{name}", "rb") as file:
                    os.fsync(file.fileno())
            _used_now(folder)
            shutil.rmtree(place, ignore_errors=True)
            os.rename(folder, place)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self.trim(kind)

    @contextlib.contextmanager
    def locked(self, name: str) -> Generator[None]:
        """Alone among all processes of this machine; waits for those before. The file of a lock is never removed: who
        waits for it would hold another one than who comes later."""
        for folder in (self.folder, f"{self.folder}/{_LOCKS}"):
            os.makedirs(folder, mode=0o700, exist_ok=True)
        with open(f"{self.folder}/{_LOCKS}/{name}", "a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def trim(self, kind: str) -> None:
        """Remove those of a kind that were not used for longest, above what is kept, and what makers that died left."""
        found: list[tuple[float, str]] = []
        for name in os.listdir(self.folder):
            if name.endswith(_MAKING):
                self._remove_unfinished(name)
            elif name.startswith(kind + "-"):
                with contextlib.suppress(FileNotFoundError):
                    found.append((os.stat(f"{self.folder}/{name}").st_mtime, name))
        for _, name in sorted(found)[: -self.kept[kind]]:
            shutil.rmtree(f"{self.folder}/{name}", ignore_errors=True)

    def _remove_unfinished(self, name: str) -> None:
        with open(f"{self.folder}/{_LOCKS}/{name.removesuffix(_MAKING)}", "a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return  # its maker lives
            shutil.rmtree(f"{self.folder}/{name}", ignore_errors=True)


def _is_ours(place: str) -> bool:
    """Whether there is a thing, made by this user: nobody runs what somebody else has put there."""
    try:
        return os.stat(place).st_uid == os.geteuid()
    except FileNotFoundError:
        return False


def _used_now(place: str) -> None:
    now = time.time_ns()  # what the system takes for now may be some milliseconds ago
    os.utime(place, ns=(now, now))


def digest(*parts: object) -> str:
    """A key for what these say; their `repr` must be complete."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def fingerprint(path: str) -> tuple[object, ...]:
    """What changes when a file does: its size, time and number. Not the time of its entry, which a link changes."""
    status = os.stat(path)
    return (path, status.st_mode, status.st_size, status.st_mtime_ns, status.st_ino)


def fingerprints(path: str, hidden: frozenset[str] = frozenset()) -> list[object]:
    """Of a file, or of all files below a folder but those at or below `hidden`, and those that Python makes itself."""
    found: list[object] = []
    if path in hidden:
        return found
    if not os.path.isdir(path) or os.path.islink(path):
        return [(path, os.readlink(path)) if os.path.islink(path) else fingerprint(path)]
    pending = [path]
    while pending:
        folder = pending.pop()
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.path in hidden or entry.name == "__pycache__":
                    continue
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                    found.append(entry.path)
                elif entry.is_symlink():
                    found.append((entry.path, os.readlink(entry.path)))
                elif entry.is_file(follow_symlinks=False):
                    status = entry.stat(follow_symlinks=False)
                    found.append((entry.path, status.st_mode, status.st_size, status.st_mtime_ns, status.st_ino))
    return found


def system_state(prefixes: Iterable[str]) -> list[object]:
    """What changes when a package is installed in one of these Pythons, or Flame itself is changed; cheap."""
    found: list[object] = []
    for prefix in prefixes:
        packages = glob.glob(f"{prefix}/lib/python3*/site-packages") + glob.glob(f"{prefix}/lib/python3*/dist-packages")
        if not packages:
            found += fingerprints(prefix)
            continue
        for folder in (prefix, *packages):
            with os.scandir(folder) as entries:
                found.append((folder, sorted((entry.name, entry.stat().st_mtime_ns) for entry in entries)))
    return found


def room_state(paths: Iterable[str], hidden: frozenset[str]) -> list[object]:
    """What changes when something in one of these does that is shown: cheap for a Python with its packages, else all of
    its files."""
    return [system_state([path]) if _is_python(path) else fingerprints(path, hidden) for path in paths]


def _is_python(path: str) -> bool:
    return os.path.exists(f"{path}/pyvenv.cfg") or bool(glob.glob(f"{path}/lib/python3*/os.py"))

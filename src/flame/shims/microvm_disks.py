"""Disks of virtual machines, made from files of the node: ext4, read-only, with what is in them at the same path.

The disk of the system is the same for all machines of a node: the Python that runs it, Flame, the shared libraries that
those need, and busybox for everything else. The disk of the room has what one program is shown besides. A machine whose
root is an image has the disk of that (container_disk.py), and one with a Python for process 1. Only the standard
library: the runner uses it.
"""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import stat
import subprocess
from collections.abc import Mapping, Sequence

from flame.shims.build_cache import Cache, digest, fingerprint, fingerprints, room_state, system_state

IMAGE = "disk.ext4"
_LAYOUT = 1  # a part of each key: grows when what is made of the same files changes
_ALIASES = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_SYSTEM = ("/usr", "/usr/local")  # of a Python there only what is its own is taken
_LEFT_OUT = ("test", "tests", "idlelib", "turtledemo", "ensurepip", "include", "config-*", "*.a")  # of a Python
_FILES = (
    "/etc/localtime", "/etc/mime.types", "/etc/nsswitch.conf", "/etc/protocols", "/etc/services", "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf", "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/usr/share/zoneinfo",
    "/usr/lib/locale/C.utf8", "/usr/share/terminfo", "/lib/terminfo", "/usr/share/ca-certificates",
)  # fmt: skip
_LIBRARIES = ("libgcc_s.so.1", "libstdc++.so.6", "libz.so.1", "libgomp.so.1", "libnss_files.so.2", "libnss_dns.so.2",
              "libresolv.so.2", "librt.so.1", "libpthread.so.0", "libdl.so.2", "libutil.so.1", "libm.so.6")  # fmt: skip
_TEXTS = {
    "/etc/passwd": "root:x:0:0:root:/:/bin/sh\nflame:x:1000:1000::/tmp:/bin/sh\n",
    "/etc/group": "root:x:0:\nflame:x:1000:\n",
    "/etc/hosts": "127.0.0.1 localhost flame\n::1 localhost\n",
    "/etc/resolv.conf": "nameserver 10.0.2.3\n",  # there is one when the machine has a network
}
_NOT_FOR_INIT = ("site-packages", "dist-packages", "lib2to3", "pydoc_data", "tkinter", "unittest")
_BATCH = 400  # files that ldd looks at at a time
_SLACK = 1.15, 32 * 1024**2  # room that the file system itself takes


class DiskError(Exception):
    """A disk can't be made; the text says why."""


def system_disk(cache: Cache, prefixes: Sequence[str], added: Sequence[str], busybox: str) -> tuple[str, int]:
    """The key of the system's disk, and the disk, open for reading. `prefixes` are those of the node's Python (its own
    first) and Flame's folder, `added` what the operator wants there too. Raises DiskError, OSError."""
    key = digest(_LAYOUT, system_state(prefixes), [fingerprints(path) for path in added], fingerprint(busybox))

    def make(folder: str) -> None:
        tree = Tree(folder + "/tree")
        own, *others = prefixes
        skipped = _foreign_packages(own, others)
        for prefix in prefixes:
            for path in _parts(prefix):
                tree.add(path, left_out=_LEFT_OUT, hidden=skipped)
        for path in (*_FILES, *added):
            tree.add(path)
        tree.add_libraries()
        tree.add_busybox(busybox)
        tree.finish(_TEXTS)
        write_disk(tree.top, f"{folder}/{IMAGE}")

    return key, cache.make("system", key, [IMAGE], make)[0]


def room_disk(cache: Cache, paths: Sequence[str], hidden: Sequence[str], program: str) -> tuple[str, int | None]:
    """The key of a room's disk, and the disk, open for reading; None = nothing is in it. `program` is a file that is
    needed with its libraries even where it is one of the system's; empty = it is one of an image, which nothing of the
    system is mixed with. Raises DiskError, OSError."""
    covered = frozenset(hidden)
    programs = [program] if program.startswith(tuple(f"{top}/" for top in ("/usr", "/bin", "/sbin"))) else []
    if not paths and not programs:
        return "", None
    key = digest(_LAYOUT, room_state(paths, covered), [fingerprint(path) for path in programs], bool(program))

    def make(folder: str) -> None:
        tree = Tree(folder + "/tree", aliases=_ALIASES if program else ())
        for path in paths:
            tree.add(path, hidden=covered)
        for path in programs:
            tree.add_program(path)
        if program:
            tree.add_libraries()
        tree.finish({})
        write_disk(tree.top, f"{folder}/{IMAGE}")

    return key, cache.make("room", key, [IMAGE], make)[0]


def directory_disk(cache: Cache, folder: str) -> tuple[str, int]:
    """The key of a disk with everything that is in an operator's folder as its root, and the disk. Raises as above."""
    key = digest(_LAYOUT, fingerprints(folder))
    return key, cache.make("system", key, [IMAGE], lambda into: write_disk(folder, f"{into}/{IMAGE}"))[0]


def python_disk(cache: Cache, files: Mapping[str, str]) -> tuple[str, int]:
    """The key of a disk with a Python for process 1 in the root of an image, and the disk. `files` are what belongs to
    it, by the path on the disk. Raises as above."""
    key = digest(_LAYOUT, [(path, fingerprint(_mark_of(file))) for path, file in sorted(files.items())])

    def make(folder: str) -> None:
        tree = folder + "/tree"
        for path, file in files.items():
            os.makedirs(os.path.dirname(tree + path), exist_ok=True)
            if os.path.isdir(file):
                left_out = shutil.ignore_patterns(*_LEFT_OUT, *_NOT_FOR_INIT)
                shutil.copytree(file, tree + path, symlinks=True, ignore=left_out)
            else:
                shutil.copy(file, tree + path)
        write_disk(tree, f"{folder}/{IMAGE}")

    return key, cache.make("python", key, [IMAGE], make)[0]


def _mark_of(path: str) -> str:
    """The file that changes when another Python is installed there."""
    return f"{path}/os.py" if os.path.isdir(path) else path


def write_disk(tree: str, path: str) -> None:
    """Make an ext4 image of a folder, and remove the folder if it lies beside the image. Raises DiskError."""
    command, _ = making(tree, path)
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DiskError(f"mke2fs can't make a disk of {tree}: {done.stderr.strip() or done.returncode}")
    if os.path.dirname(path) == os.path.dirname(tree):
        shutil.rmtree(tree)


def making(tree: str, path: str) -> tuple[list[str], int]:
    """The command that makes an ext4 image of a folder, and its size in bytes. Raises DiskError."""
    used = 0
    count = 0
    for folder, folders, files in os.walk(tree):
        count += len(folders) + len(files)
        used += 4096 * len(folders)
        for name in files:
            status = os.lstat(f"{folder}/{name}")
            used += -(-status.st_size // 4096) * 4096
    size = int(used * _SLACK[0]) + _SLACK[1] + 512 * count
    command = ["mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-b", "4096", "-I", "256",
               "-N", str(count + 1024), "-d", tree, path, f"{size // 1024}k"]  # fmt: skip
    path_of_tools = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    tool = shutil.which(command[0], path=path_of_tools)
    if tool is None:
        raise DiskError("mke2fs is not installed")
    return [tool, *command[1:]], size


class Tree:
    """The files of a disk before it is made: links to those of the node where that is possible."""

    def __init__(self, top: str, aliases: Sequence[str] = _ALIASES) -> None:
        self.top = top
        self._machine_code: list[str] = []
        os.makedirs(top)
        # Where /bin is a link into /usr there, it is one here.
        for name in aliases:
            if os.path.islink(f"/{name}"):
                inside = os.readlink(f"/{name}").lstrip("/")
                os.makedirs(f"{top}/{inside}", exist_ok=True)
                os.symlink(inside, f"{top}/{name}")

    def add(self, path: str, *, left_out: Sequence[str] = (), hidden: frozenset[str] = frozenset()) -> None:
        """A file or a folder with all below it, where it lies; what is not there is left out. Raises OSError."""
        if path in hidden or not os.path.lexists(path):
            return
        if os.path.isdir(path) and not os.path.islink(path):
            self._folder(path)
            with os.scandir(path) as entries:
                for entry in entries:
                    if not any(_matches(entry.name, pattern) for pattern in left_out):
                        # Only a Python's own library has parts that nobody needs.
                        below = left_out if entry.name in ("lib", "lib64") or entry.name.startswith("python3") else ()
                        self.add(entry.path, left_out=below, hidden=hidden)
            return
        self._folder(os.path.dirname(path))
        target = self.top + path
        if os.path.lexists(target):
            return
        if os.path.islink(path):
            os.symlink(os.readlink(path), target)
            pointed = os.path.realpath(path)
            if path.startswith(("/usr/", "/etc/", "/lib")) and os.path.exists(pointed):
                self.add(pointed)
        elif stat.S_ISREG(os.stat(path).st_mode):
            self._file(path, target)

    def add_program(self, path: str) -> None:
        """A program of the system with what it needs: its libraries, and its own if it is a Python."""
        self.add(path)
        real = os.path.realpath(path)
        self.add(real)
        name = os.path.basename(real)
        if name.startswith("python3"):
            prefix = os.path.dirname(os.path.dirname(real))
            for part in (f"{prefix}/lib/{name}", f"{prefix}/lib/python3"):
                self.add(part, left_out=_LEFT_OUT)

    def add_libraries(self) -> None:
        """The shared libraries of what was added, as far as the system has them."""
        wanted: set[str] = set()
        for begin in range(0, len(self._machine_code), _BATCH):
            done = subprocess.run(
                ["ldd", *self._machine_code[begin : begin + _BATCH]], stdin=subprocess.DEVNULL, capture_output=True,
                text=True, check=False, env={"PATH": os.environ.get("PATH", "/usr/bin:/bin")},
            )  # fmt: skip
            for line in done.stdout.splitlines():
                words = [word for word in line.split() if word.startswith("/") and not word.endswith(":")]
                wanted.update(word for word in words if word.startswith(("/lib", "/usr/lib")))
        for name in _LIBRARIES:
            wanted.update(glob.glob(f"/lib/*-linux-gnu/{name}") or glob.glob(f"/lib64/{name}"))
        for path in sorted(wanted):
            self.add(path)

    def add_busybox(self, busybox: str) -> None:
        """All commands of busybox that are not there yet."""
        listed = subprocess.run(
            [busybox, "--list"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True
        )
        self._folder("/bin")
        shutil.copy(busybox, f"{self.top}/bin/busybox")
        for name in listed.stdout.split():
            if not any(os.path.lexists(f"{self.top}{folder}/{name}") for folder in ("/bin", "/usr/bin", "/sbin")):
                os.symlink("busybox", f"{self.top}/bin/{name}")

    def finish(self, texts: dict[str, str]) -> None:
        """Files with these texts."""
        for path, text in texts.items():
            self._folder(os.path.dirname(path))
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.top + path)
            with open(self.top + path, "w") as file:
                file.write(text)

    def _folder(self, path: str) -> None:
        """A folder with all above it. All may look into it: inside there is one user only."""
        target = self.top + path
        if not os.path.isdir(target):
            os.makedirs(target, mode=0o755, exist_ok=True)

    def _file(self, path: str, target: str) -> None:
        mode = os.stat(path).st_mode
        readable = mode & stat.S_IROTH and (not mode & stat.S_IXUSR or mode & stat.S_IXOTH)
        with contextlib.suppress(OSError):
            if readable:
                os.link(path, target)
        if not os.path.lexists(target):
            shutil.copy(path, target)
            os.chmod(target, 0o755 if mode & stat.S_IXUSR else 0o644)
        name = os.path.basename(path)
        if name.endswith(".so") or ".so." in name or mode & stat.S_IXUSR:
            with open(path, "rb") as file:
                if file.read(4) == b"\x7fELF":
                    self._machine_code.append(path)


def _parts(prefix: str) -> list[str]:
    """What is taken of a prefix: all of it, or of one that others share what belongs to Python."""
    if prefix not in _SYSTEM:
        return [prefix]
    programs = [path for path in glob.glob(f"{prefix}/bin/python3*") if "config" not in path]
    return [*programs, *glob.glob(f"{prefix}/lib/python3*"), *glob.glob(f"{prefix}/lib/libpython3*")]


def _foreign_packages(own: str, others: Sequence[str]) -> frozenset[str]:
    """The packages of the Python that a virtual environment is made from, which the environment does not use."""
    try:
        with open(f"{own}/pyvenv.cfg") as file:
            shares = "include-system-site-packages = true" in file.read().lower()
    except FileNotFoundError:
        return frozenset()
    if shares:
        return frozenset()
    return frozenset(path for each in others for path in glob.glob(f"{each}/lib/python3*/site-packages"))


def _matches(name: str, pattern: str) -> bool:
    if pattern.endswith("*"):
        return name.startswith(pattern[:-1])
    return name.endswith(pattern[1:]) if pattern.startswith("*") else name == pattern

"""Sandboxes made by bubblewrap: what a program sees there, as the arguments of `bwrap`.

Inside are the system's programs and libraries, the Python that runs the node, and what the application names, all
read-only; one private /tmp of limited size; a /proc of its own processes only; and the socket of the instance's link.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from flame.model.isolation import Limits
from flame.shims import isolation_filter
from flame.shims.keeper import FIRST_OPENED
from flame.shims.processes import Program
from flame.shims.shim import Launch

TMP = "/tmp"
USER = (1000, 1000)  # the number of the one user inside, and of that user's group
DEFAULT_DISK = 256 * 1024**2
SHARED_MEMORY = 64 * 1024**2
_ALIASES = ("bin", "sbin", "lib", "lib32", "lib64")  # links into /usr, folders on older systems
_ETC = (
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
    "alternatives",
    "nsswitch.conf",
    "mime.types",
    "ssl/certs",
    "ssl/openssl.cnf",
    "pki/ca-trust",
    "pki/tls/certs",
)
_ETC_OF_NETWORKS = ("resolv.conf", "hosts", "services", "protocols", "gai.conf")
_ETC_OF_IMAGES = ("resolv.conf", "hosts")  # of the node's network, in place of the image's own
_MADE = ("/proc", "/sys", "/dev", "/run", TMP)  # never those of an image
_FORBIDDEN = ("/", "/proc", "/sys", "/dev", "/run", "/etc")
_PROBE_S = 10.0

# What is done (`show` a path of the node read-only, `open` one to be written to, `link`, `hide` what is there), the
# path inside, and what stands behind it.
Step = tuple[str, str, str]
_OPTIONS = {"show": "--ro-bind", "open": "--bind", "link": "--symlink"}


class Room(msgspec.Struct, frozen=True, kw_only=True):
    """What one sandbox has. `readable` are files and folders that can be read in it, `hidden` what shall not be
    seen even where a folder above it is readable. `sockets` are those it may connect to, and folders where it may make
    some, `devices` files in /dev beside the usual ones; `disk` is the size of /tmp in bytes. `proxy` is the socket of a
    proxy that a `Carrier` (levels.py) carries connections to. With `root`, an unpacked image, that stands in the place
    of the system's and our own folders, and `added` are files of the node that it has too, by the path inside. `user`
    is whom its program runs as at level process."""

    readable: Sequence[Path] = ()
    sockets: Sequence[Path] = ()
    hidden: Sequence[Path] = ()
    devices: Sequence[Path] = ()
    disk: int = DEFAULT_DISK
    network: bool = False
    proxy: Path | None = None
    cwd: str = TMP
    root: Path | None = None
    added: Mapping[str, Path] = {}
    user: tuple[int, int] = USER


class Sandboxes:
    """The sandboxes of a node, which are its level process. `missing` says why there can be none; empty = there can."""

    name = "process"
    streams = False

    def __init__(self, bwrap: str, folder: Path, missing: str = "") -> None:
        self.missing = missing
        self._bwrap = bwrap
        self._folder = folder

    @classmethod
    def find(cls, folder: Path, environ: Mapping[str, str] = os.environ) -> Sandboxes:
        """Look whether this machine can make them, by making one. `folder` is for what they share. Blocks a moment;
        raises OSError."""
        bwrap = shutil.which("bwrap", path=environ.get("PATH"))
        machine = os.uname().machine
        if bwrap is None:
            return cls("", folder, "bubblewrap (bwrap) is not installed")
        if machine not in isolation_filter.MACHINES:
            return cls(bwrap, folder, f"there is no filter of system calls for {machine}")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (folder / "filter").write_bytes(isolation_filter.program(machine))
        (folder / "passwd").write_text(f"flame:x:1000:1000::{TMP}:/bin/sh\n")
        (folder / "group").write_text("flame:x:1000:\n")
        found = cls(bwrap, folder)
        found.missing = found._probe()
        return found

    def wrap(self, program: Program, room: Room, limits: Limits, launch: Launch) -> Program:
        """The program, run in a sandbox."""
        # What an application says to the loader of programs must not be heard by the one that makes its sandbox.
        env = {name: value for name, value in program.env.items() if not name.startswith("LD_")}
        loader = [("--setenv", name, value) for name, value in program.env.items() if name not in env]
        options = [*arguments(room, self._folder, FIRST_OPENED), *(word for words in loader for word in words)]
        argv = [self._bwrap, *options, "--", program.path, *program.argv[1:]]
        opened = [str(self._folder / "filter")]
        return msgspec.structs.replace(program, path=self._bwrap, argv=argv, env=env, opened=opened, boxed=True)

    def around(self, limits: Limits) -> Limits:
        """The same: its own two processes are counted too."""
        return limits

    def _probe(self) -> str:
        """Why no sandbox can be made, empty = one could."""
        with (self._folder / "filter").open("rb") as file, tempfile.TemporaryFile() as words:
            command = [self._bwrap, *arguments(Room(), self._folder, file.fileno()), "--", "/bin/sh", "-c", ":"]
            try:
                done = subprocess.run(
                    command, pass_fds=[file.fileno()], stdin=subprocess.DEVNULL, stdout=words, stderr=words,
                    timeout=_PROBE_S, check=False,
                )  # fmt: skip
            except (OSError, subprocess.TimeoutExpired) as error:
                return f"bubblewrap does not run: {error}"
            words.seek(0)
            text = words.read(2000).decode(errors="replace").strip()
            return "" if not done.returncode else f"bubblewrap can't make a sandbox here: {text or done.returncode}"


def arguments(room: Room, folder: Path, descriptor: int) -> list[str]:
    """The options of bwrap; the filter of system calls is open as `descriptor`."""
    found = ["--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    found += [] if room.network else ["--unshare-net"]
    user, group = map(str, room.user)
    found += ["--die-with-parent", "--cap-drop", "ALL", "--uid", user, "--gid", group, "--hostname", "flame"]
    found += ["--seccomp", str(descriptor)]
    # Read-only too: who owns /proc/sys outside could write to it, without any capability.
    found += ["--proc", "/proc", "--remount-ro", "/proc", "--dev", "/dev"]
    for path in room.devices:
        found += ["--dev-bind", str(path), str(path)]
    found += ["--size", str(SHARED_MEMORY), "--perms", "1777", "--tmpfs", "/dev/shm"]
    found += ["--size", str(room.disk), "--perms", "1777", "--tmpfs", TMP]
    covered: list[str] = []
    for kind, path, source in layout(room, folder):
        if kind == "hide":
            found += ["--size", "4096", "--perms", "0711", "--tmpfs", path]
            covered.append(path)
        else:
            found += [_OPTIONS[kind], source, path]
    for path in (*covered, "/dev", "/"):
        found += ["--remount-ro", path]
    return [*found, "--chdir", room.cwd]


def layout(room: Room, folder: Path) -> list[Step]:
    """What is where inside, in the order in which it is put there. `folder` has the files passwd and group."""
    if room.root is not None:
        return _layout_of_image(room, room.root)
    found: list[Step] = []
    for path in (Path("/usr"), *(Path("/") / name for name in _ALIASES)):
        if path.is_symlink():
            found.append(("link", str(path), os.readlink(path)))  # noqa: PTH115 - as it is written
        elif path.is_dir():
            found.append(_show(path))
    etc = (Path("/etc") / name for name in (*_ETC, *(_ETC_OF_NETWORKS if room.network else ())))
    found += [_show(path) for path in etc if path.exists()]
    found += [("show", f"/etc/{name}", str(folder / name)) for name in ("passwd", "group")]
    shown = sorted({*own_folders(), *room.readable}, key=lambda path: len(path.parts))
    found += [_show(path) for path in shown]
    for path in room.hidden:
        if any(path.is_relative_to(each) for each in shown):
            found.append(("hide", str(path), ""))
            found += [_show(each) for each in shown if each != path and each.is_relative_to(path)]
    return [*found, *(("open", str(path), str(path)) for path in room.sockets)]


def _layout_of_image(room: Room, root: Path) -> list[Step]:
    """What an image has, but for folders that sandboxes have of their own. Where something else shall be seen in one of
    its folders, that is made anew with all it has."""
    etc = [Path("/etc") / name for name in _ETC_OF_IMAGES if room.network and (root / "etc" / name).is_file()]
    added = [*(path for path in (*etc, *room.readable) if path.exists()), *room.sockets, *map(Path, room.added)]
    above = {folder for path in added for folder in path.parents}
    found: list[Step] = []
    pending = [Path("/")]
    for folder in pending:
        for file in sorted((root / str(folder).lstrip("/")).iterdir()):
            path = folder / file.name
            if path in added or str(path) in _MADE:
                continue
            if file.is_symlink():
                found.append(("link", str(path), os.readlink(file)))  # noqa: PTH115 - as it is written
            elif path in above and file.is_dir():
                pending.append(path)
            else:
                found.append(("show", str(path), str(file)))
    found += [_show(path) for path in (*etc, *room.readable) if path.exists()]
    found += [("show", path, str(source)) for path, source in room.added.items()]
    return [*found, *(("open", str(path), str(path)) for path in room.sockets)]


def own_folders() -> list[Path]:
    """Where the Python that runs this process, and Flame, lie."""
    folders = [Path(sys.base_prefix), Path(sys.prefix), Path(__file__).parents[1]]
    return [folder for folder in dict.fromkeys(folders) if not _visible(folder, ())]


def folders_of_interpreter(path: Path) -> list[Path]:
    """What has to be readable for this program to run: the file, and all of the Python that it belongs to."""
    found: list[Path] = []
    for each in dict.fromkeys((path, path.resolve())):
        prefix = each.parent.parent
        settings = prefix / "pyvenv.cfg"
        if settings.is_file():
            found.append(prefix)
            for line in settings.read_text(errors="replace").splitlines():
                name, _, value = line.partition("=")
                if name.strip() == "home" and Path(value.strip()).is_dir():
                    found.append(Path(value.strip()).parent)
        elif each.parent.name == "bin" and any((prefix / "lib").glob("python3*/os.py")):
            found.append(prefix)
        else:
            found.append(each)
    return found


def readable(paths: Iterable[Path]) -> list[Path]:
    """Those of the paths that exist, may be shown, and are not there anyway."""
    found: list[Path] = []
    for path in paths:
        if path.exists() and not forbidden(path) and not _visible(path, (*own_folders(), *found)):
            found.append(path)
    return found


def forbidden(path: Path) -> bool:
    """Whether showing this folder would take the sandbox apart."""
    kept = ("/proc", "/sys", "/dev")
    return not path.is_absolute() or str(path) in _FORBIDDEN or any(path.is_relative_to(each) for each in kept)


def _visible(path: Path, shown: Iterable[Path]) -> bool:
    return any(path.is_relative_to(each) for each in (Path("/usr"), *(Path("/") / name for name in _ALIASES), *shown))


def _show(path: Path) -> Step:
    return ("show", str(path), str(path))

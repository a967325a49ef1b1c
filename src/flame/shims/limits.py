"""Control groups that hold what an instance may use, and say what it used. Both layouts: one tree (version 2), or one
tree for each controller (version 1)."""

from __future__ import annotations

import errno
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from flame.model.isolation import Limits
from flame.shims.shim import Usage

WANTED = ("memory", "pids", "cpu")
_COUNTING = "cpuacct"  # version 1 counts processor time in a tree that need not be that of its limits
_PERIOD_US = 100_000
_LEAST_QUOTA_US = 1_000
_MOST_PIDS = 1 << 22  # the kernel takes no larger number, and has no more processes
# Version 1 counts buffers of TCP by themselves. All groups together stay below what the kernel allows the machine.
_TCP_PART, _LEAST_TCP = 16, 4 * 1024**2
_PREFIX = "flame-"
_REMOVE_S, _PAUSE_S = 5.0, 0.01


class Group:
    """The group of one instance: a folder in each tree, by controller."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self.by_controller = folders
        self._counters: tuple[Path | None, Path | None, Path | None] | None = None  # as far as they were found

    @property
    def folders(self) -> list[Path]:
        """Each once."""
        return list(dict.fromkeys(self.by_controller.values()))

    def usage(self) -> Usage:
        """What it used so far."""
        if self._counters is None:
            self._counters = self._find_counters()
        cpu, peak, kills = self._counters
        if cpu is not None and cpu.name == "cpu.stat":
            nanoseconds = _field(cpu, "usage_usec") * 1000
        else:
            nanoseconds = _number(cpu) if cpu is not None else 0
        return Usage(
            cpu=nanoseconds / 1e9,
            peak_memory=_number(peak) if peak is not None else 0,
            kills=_field(kills, "oom_kill") if kills is not None else 0,
        )

    def _find_counters(self) -> tuple[Path | None, Path | None, Path | None]:
        """The files that have processor time, peak memory and kills; which they are depends on the layout."""
        memory, counting = self.by_controller["memory"], self.by_controller.get(_COUNTING, self.by_controller["cpu"])
        return (
            _first(counting / "cpuacct.usage", counting / "cpu.stat"),
            _first(memory / "memory.peak", memory / "memory.max_usage_in_bytes"),
            _first(memory / "memory.events", memory / "memory.oom_control"),
        )

    def remove(self) -> None:
        """After its last process ended. Blocks: the kernel may need a moment to be done with that one."""
        deadline = time.monotonic() + _REMOVE_S
        for folder in self.folders:
            while _remove_tree(folder) and time.monotonic() < deadline:
                time.sleep(_PAUSE_S)  # nothing tells when it may be removed


class Groups:
    """The groups of a node, below one of its own in each tree. `missing` says why there can be none, empty = there
    can."""

    def __init__(self, trees: Mapping[str, Path], missing: str = "", moved: Sequence[Path] = ()) -> None:
        """`moved`: folders of version 2 which this process has left for groups below."""
        self.missing = missing
        self._trees = trees
        self._moved = moved

    @classmethod
    def find(cls, root: Path = Path("/")) -> Groups:
        """Make the node's own groups. `root` is where /proc and /sys are, for tests. Removes what nodes left that were
        killed. Blocks a moment; in version 2 this process may move into a group below its own."""
        name = f"{_PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
        trees: dict[str, Path] = {}
        problems: list[str] = []
        moved: list[Path] = []
        for controllers, folder in _hierarchies(root):
            if not controllers and folder.name == _leaf(folder).name:
                folder = folder.parent  # another node of this process has moved it
            try:
                given = controllers or _open_tree(folder)
                if not given & {*WANTED, _COUNTING}:
                    if not controllers:
                        problems.append(f"{folder}: it was given none; systemd gives them to units with Delegate=yes")
                    continue
                _remove_stale(folder, root)
                own = folder / name
                own.mkdir(exist_ok=True)
                if not controllers:
                    _enable(own, given)
            except OSError as error:
                problems.append(f"{folder}: {_why(error, in_one_tree=not controllers)}")
                continue
            finally:
                if not controllers and _leaf(folder).is_dir():
                    moved.append(folder)
            trees.update(dict.fromkeys(given & {*WANTED, _COUNTING}, own))
        missing = [controller for controller in WANTED if controller not in trees]
        if not missing:
            return cls(trees, "", moved)
        why = f"no writable control groups for {', '.join(missing)} ({'; '.join(problems) or 'none found'})"
        found = cls(trees, why, moved)
        found.remove()
        return found

    def within(self, name: str, limits: Limits) -> Groups:
        """The groups that are made in one of this name: these limits hold for all of them together. Raises OSError."""
        group = self.make(name, limits)
        try:
            for folder in group.folders:
                if (folder / "cgroup.subtree_control").exists():  # in version 1 all have the controller of their tree
                    _enable(folder, set(WANTED))
        except OSError:
            group.remove()
            raise
        return Groups(group.by_controller)

    def make(self, name: str, limits: Limits) -> Group:
        """A group of this name that holds these limits. Raises OSError."""
        group = Group({controller: tree / name for controller, tree in self._trees.items()})
        try:
            for folder in group.folders:
                folder.mkdir(exist_ok=True, parents=True)
            for controller, settings in settings_of(limits).items():
                folder = self._trees[controller] / name
                for file, value in settings.items():
                    if (folder / file).exists():
                        _hold(folder / file, value)
        except OSError:
            group.remove()
            raise
        return group

    def remove(self) -> None:
        """Nothing of the node runs any more. This process goes back to where it was."""
        for tree in dict.fromkeys(self._trees.values()):
            _remove_tree(tree)
        for folder in self._moved:
            _move_back(folder)


def _hold(file: Path, value: str) -> None:
    try:
        file.write_text(value)
    except OSError as error:
        raise OSError(error.errno, f"the kernel refuses {file.name} = {value}: {error.strerror}") from error


def settings_of(limits: Limits) -> dict[str, dict[str, str]]:
    """By controller, the files of both layouts and what is written into them, in order."""
    found: dict[str, dict[str, str]] = {}
    if limits.memory:
        most = str(limits.memory)
        found["memory"] = {
            "memory.max": most,
            "memory.swap.max": "0",
            "memory.limit_in_bytes": most,
            "memory.memsw.limit_in_bytes": most,
            "memory.kmem.tcp.limit_in_bytes": str(max(_LEAST_TCP, limits.memory // _TCP_PART)),
        }
    if limits.pids:
        found["pids"] = {"pids.max": str(min(limits.pids, _MOST_PIDS))}
    if limits.cpu_millis:
        quota = max(_LEAST_QUOTA_US, limits.cpu_millis * _PERIOD_US // 1000)
        found["cpu"] = {
            "cpu.max": f"{quota} {_PERIOD_US}",
            "cpu.cfs_period_us": str(_PERIOD_US),
            "cpu.cfs_quota_us": str(quota),
        }
    return found


def _hierarchies(root: Path) -> list[tuple[set[str], Path]]:
    """The folder of this process's group in each tree, with the tree's controllers; none named in version 2."""
    own = [line.split(":", 2)[1:] for line in _text(root / "proc/self/cgroup").splitlines()]
    found: list[tuple[set[str], Path]] = []
    for line in _text(root / "proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ", 2)
        if kind not in ("cgroup", "cgroup2"):
            continue
        above, mounted = left.split(" ")[3:5]
        for names, path in own:
            controllers = {name for name in names.split(",") if name}
            if bool(controllers) != (kind == "cgroup") or not controllers <= set(options.split(",")):
                continue
            # In a container the path may be that of the outside; the mounted tree then begins at our own group.
            inside = path[len(above) :] if above != "/" and path.startswith(above) else path if above == "/" else ""
            tree = root / mounted.lstrip("/")
            folder = tree / inside.lstrip("/")
            found.append((controllers, folder if folder.is_dir() else tree))
    return found


def _open_tree(folder: Path) -> set[str]:
    """Let groups below this one of version 2 have controllers; gives those that they can have. Raises OSError."""
    given = set(_text(folder / "cgroup.controllers").split()) & set(WANTED)
    if not given:
        return set()
    try:
        _enable(folder, given)
    except OSError:
        # Only groups without processes of their own may hand controllers down: move away, which helps if we are alone.
        leaf = _leaf(folder)
        leaf.mkdir(exist_ok=True)
        (leaf / "cgroup.procs").write_text("0")
        try:
            _enable(folder, given)
        except OSError:
            (folder / "cgroup.procs").write_text("0")
            leaf.rmdir()
            raise
    return given


def _leaf(folder: Path) -> Path:
    """Where this process moves to, below its group of version 2."""
    return folder / f"{_PREFIX}{os.getpid()}-manager"


def _move_back(folder: Path) -> None:
    """Undo what `_open_tree` did, when no other node of this process and nobody else has a group there."""
    leaf = _leaf(folder)
    if any(below.is_dir() and below != leaf for below in folder.iterdir()):
        return
    try:
        handed = _text(folder / "cgroup.subtree_control").split()
        (folder / "cgroup.subtree_control").write_text(" ".join(f"-{name}" for name in handed))
        for pid in _text(leaf / "cgroup.procs").split():
            (folder / "cgroup.procs").write_text(pid)
        leaf.rmdir()
    except OSError:
        pass  # it stays there, where it is held to no less


def _why(error: OSError, *, in_one_tree: bool) -> str:
    if in_one_tree and error.errno == errno.EBUSY:
        return "other processes are in this group: start the executor manager in one of its own"
    return error.strerror or str(error)


def _enable(folder: Path, controllers: set[str]) -> None:
    (folder / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in sorted(controllers)))


def _remove_stale(folder: Path, root: Path) -> None:
    for left in folder.glob(f"{_PREFIX}*-*"):
        pid = left.name.split("-")[1]
        if pid.isdecimal() and not (root / "proc" / pid).exists():
            _remove_tree(left)


def _remove_tree(folder: Path) -> bool:
    """With all groups below it: who may write to it may have made some. True when something is still there."""
    return sum(_remove(Path(below)) for below, _, _ in os.walk(folder, topdown=False)) > 0


def _remove(folder: Path) -> bool:
    """True when it is still there."""
    try:
        folder.rmdir()
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _first(*files: Path) -> Path | None:
    return next((file for file in files if file.exists()), None)


def _field(file: Path, name: str) -> int:
    for line in _text(file).splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.isdecimal():
            return int(value)
    return 0


def _number(file: Path) -> int:
    text = _text(file).strip()
    return int(text) if text.isdecimal() else 0


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""

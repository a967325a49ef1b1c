"""What a program sees in a sandbox of gVisor, as data: the tree that becomes its root, and its OCI configuration.

It is what it sees at level process (isolation_sandbox.py); only the kernel is another one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from flame.shims.gvisor_sandbox import DOOR
from flame.shims.isolation_sandbox import SHARED_MEMORY, TMP, Room, Step, layout

NOBODY = 65534  # who a sandbox is on the node that has users of its own
_IN_MEMORY = (TMP, "/dev", "/proc", "/sys")  # made by gVisor itself: nothing of the tree is seen below


class Copied(msgspec.Struct, frozen=True):
    """What the plan of an instance has that may be a copy: all that is its own, and nothing of which is saved.

    `added` are further steps of its tree, and `door` is the folder that it finds at DOOR. Snapshots are in `cache`, not
    more than the number `kept` says of each kind of thing there. One is used for instances with as much `memory`
    (bytes, 0 = not said), as long as nothing changes in the Pythons `prefixes` and in what is `readable`, but for what
    is `hidden` there.
    """

    added: Sequence[Step]
    door: str
    cache: str
    kept: Mapping[str, int]
    memory: int
    prefixes: Sequence[str]
    readable: Sequence[str]
    hidden: Sequence[str]


class Plan(msgspec.Struct, frozen=True):
    """What gvisor_runner.py does: it makes `tree`, adds what only it knows to `configuration`, and runs `command`. All
    of it is in `folder`, where nobody else sees it."""

    folder: str
    network: bool
    command: Sequence[str]
    tree: Sequence[Step]
    configuration: dict[str, object]
    copied: Copied | None = None


def plan(room: Room, pids: int, folder: Path, command: Sequence[str], copied: Copied | None = None) -> Plan:
    """`pids` is how many processes and threads it may have, 0 = not said. `folder` has the files passwd and group, and
    an empty folder `run`; `command` is runsc with its own options."""
    steps = layout(room, folder)
    mounts = [_mount(step) for step in steps if _is_below(step[1], _IN_MEMORY)]
    if copied is not None:
        mounts.append(_mount(("open", DOOR, "")))
    tree = [step for step in steps if not _is_below(step[1], _IN_MEMORY)]
    wanted = [*command, *options(room, makes=copied is not None)]
    return Plan(str(folder / "run"), room.network, wanted, tree, configuration(room, pids, mounts), copied)


def options(room: Room, *, makes: bool = False) -> list[str]:
    """The options of runsc that follow from the room; `makes`: it makes sockets besides."""
    sockets = "all" if makes or any(path.is_dir() for path in room.sockets) else "open" if room.sockets else "none"
    return [f"--network={'host' if room.network else 'none'}", f"--host-uds={sockets}"]


def configuration(room: Room, pids: int, mounts: Sequence[dict[str, object]]) -> dict[str, object]:
    """All but the root, and the arguments and the environment of the process."""
    user, mappings = _user(room)
    limits = {"RLIMIT_CORE": 0, **({"RLIMIT_NPROC": pids} if pids else {})}
    namespaces = (
        "pid",
        "ipc",
        "uts",
        "mount",
        *(() if room.network else ("network",)),
        *(("user",) if mappings else ()),
    )
    return {
        "ociVersion": "1.0.2",
        "hostname": "flame",
        "process": {
            "user": {"uid": user[0], "gid": user[1]},
            "cwd": room.cwd,
            "capabilities": {},
            "noNewPrivileges": True,
            # When memory runs out, gVisor itself shall be killed, not one of the processes that it can't do without.
            "oomScoreAdj": 1000,
            "rlimits": [{"type": name, "hard": most, "soft": most} for name, most in limits.items()],
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "dev", "source": "dev"},
            _memory("/dev/shm", SHARED_MEMORY, "1777"),
            _memory(TMP, room.disk, "1777"),
            *mounts,
        ],
        "linux": {"namespaces": [{"type": name} for name in namespaces], **mappings},
    }


def _user(room: Room) -> tuple[tuple[int, int], dict[str, object]]:
    """Who its program is, and what makes all files that user's: those that are shown belong to the node's user. That is
    root inside, but for images where it is root outside, too, so that it may say who is who. A sandbox in the node's
    network can't say that."""
    if room.root is None or room.network or os.geteuid() or not room.user[0]:
        return (0, 0), {}
    names = zip(("uidMappings", "gidMappings"), room.user, strict=True)
    return room.user, {name: _mapping(number) for name, number in names}


def _mapping(number: int) -> list[dict[str, int]]:
    """What root outside is called inside, and who root inside is outside: gVisor has to be that, besides."""
    called = {number: 0} if not number else {0: NOBODY, number: 0}
    return [{"containerID": inside, "hostID": outside, "size": 1} for inside, outside in called.items()]


def _mount(step: Step) -> dict[str, object]:
    kind, path, source = step
    if kind == "hide":
        return _memory(path, 4096, "0711", "ro")
    options = ["rbind", "rw" if kind == "open" else "ro"]
    return {"destination": path, "type": "bind", "source": source, "options": options}


def _memory(path: str, size: int, mode: str, *more: str) -> dict[str, object]:
    return {
        "destination": path,
        "type": "tmpfs",
        "source": "tmpfs",
        "options": ["nosuid", "nodev", f"size={size}", f"mode={mode}", *more],
    }


def _is_below(path: str, folders: Sequence[str]) -> bool:
    return any(Path(path).is_relative_to(folder) for folder in folders)

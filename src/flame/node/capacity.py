"""What this machine can give: usable cores, memory within the control group's limit, GPUs."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from flame.model.resources import Resources
from flame.node import gpus


class Machine(msgspec.Struct, frozen=True):
    """What a node has. `devices` are the GPUs as CUDA_VISIBLE_DEVICES names them, `shares` how many executors may use
    one of them; resources count the shares."""

    resources: Resources
    devices: tuple[str, ...] = ()
    shares: int = 1

    def visible(self, numbers: Sequence[int]) -> str | None:
        """What CUDA_VISIBLE_DEVICES shall say to an executor that got these shares; None on a node without GPUs."""
        if not self.devices:
            return None
        found = (number // self.shares for number in numbers)
        return ",".join(dict.fromkeys(self.devices[device] for device in found if device < len(self.devices)))


def detect(environ: Mapping[str, str] = os.environ, root: Path = Path("/")) -> Machine:
    """Look at this machine. `root` is where /proc, /sys and /dev are, for tests."""
    devices = gpus.find(environ, root)
    cpu, memory = limits(root)
    return Machine(Resources(cpu=cpu, memory=memory, gpu=len(devices)), devices)


def limits(root: Path = Path("/")) -> tuple[int, int]:
    """Cores and bytes of memory that this process may use now: of the machine, its control groups and its affinity."""
    groups = _groups(root)
    cores = min([len(os.sched_getaffinity(0)), *_quotas(groups)])
    return max(1, cores), min([_total_memory(root), *_memory_limits(groups)])


def offered(found: Machine, capacity: Resources | None, devices: Sequence[str] | None, shares: int) -> Machine:
    """What a node offers: what was found, except for what its settings say.

    GPUs of `devices` replace those that were found. A capacity that counts more of them than have names is believed;
    the others are named by their index.
    """
    names = tuple(found.devices if devices is None else devices)
    total = found.resources if capacity is None else capacity
    count = len(names) * shares
    if capacity is not None and (capacity.gpu or devices is None):
        count = capacity.gpu
        needed = -(-count // shares)
        names = (*names, *(str(index) for index in range(len(names), needed)))[:needed]
    return Machine(msgspec.structs.replace(total, gpu=count), names, shares)


def _groups(root: Path) -> list[Path]:
    """The folders of this process's control groups and of all above them; their limits apply too."""
    mounted = root / "sys/fs/cgroup"
    folders: list[Path] = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        # Version 2 has no controllers here and one tree, version 1 a tree for each.
        trees = [mounted / name for name in controllers.split(",")] if controllers else [mounted, mounted / "unified"]
        for tree in trees:
            folder = tree / path.lstrip("/")
            # In a container the path may be that of the outside; the mounted tree then begins at our own group.
            folders += [each for each in (folder, *folder.parents) if each.is_relative_to(tree)]
    return [folder for folder in dict.fromkeys(folders) if folder.is_dir()]


def _quotas(groups: list[Path]) -> list[int]:
    """Whole cores that the CPU quotas allow."""
    found: list[int] = []
    for group in groups:
        quota, _, period = _read(group / "cpu.max").partition(" ")  # version 2: "max 100000"
        if not quota:
            quota, period = _read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us")
        if _is_number(quota) and _is_number(period) and int(quota) > 0 and int(period) > 0:
            found.append(math.floor(int(quota) / int(period)))
    return found


def _memory_limits(groups: list[Path]) -> list[int]:
    texts = [_read(group / name) for group in groups for name in ("memory.max", "memory.limit_in_bytes")]
    return [int(text) for text in texts if _is_number(text)]


def _total_memory(root: Path) -> int:
    for line in _read(root / "proc/meminfo").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return 0


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""

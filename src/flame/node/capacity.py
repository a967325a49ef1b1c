"""What this machine can give: usable cores, memory within the control group's limit, GPUs."""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from flame.model.resources import Resources


class Machine(msgspec.Struct, frozen=True):
    """What was found. `devices` are the GPUs as CUDA_VISIBLE_DEVICES names them; resources count them."""

    resources: Resources
    devices: tuple[str, ...] = ()


def detect(environ: Mapping[str, str] = os.environ, root: Path = Path("/")) -> Machine:
    """Look at this machine. `root` is where /proc and /sys are, for tests."""
    groups = _groups(root)
    devices = _devices(environ)
    cores = min([len(os.sched_getaffinity(0)), *_quotas(groups)])
    memory = min([_total_memory(root), *_memory_limits(groups)])
    return Machine(Resources(cpu=max(1, cores), memory=memory, gpu=len(devices)), devices)


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


def _devices(environ: Mapping[str, str]) -> tuple[str, ...]:
    named = environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return tuple(str(index) for index in range(_count_with_nvml()))
    devices: list[str] = []
    for item in (item.strip() for item in named.split(",")):
        if not item or item.startswith("-"):
            break  # CUDA itself ignores what comes after an invalid one
        devices.append(item)
    return tuple(devices)


def _count_with_nvml() -> int:
    """GPUs that the NVIDIA driver knows, 0 where its library is not installed or finds none."""
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ImportError:
        return 0
    try:
        nvml.nvmlInit()
        try:
            return int(nvml.nvmlDeviceGetCount())
        finally:
            nvml.nvmlShutdown()
    except nvml.NVMLError:
        return 0


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""

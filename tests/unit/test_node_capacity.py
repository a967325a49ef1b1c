"""What a machine can give, read from a made-up /proc and /sys."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flame.model.resources import Resources
from flame.node.capacity import detect

CORES = len(os.sched_getaffinity(0))
NO_GPUS = {"CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path, "proc/meminfo", "MemTotal:       16384 kB\nMemFree: 1 kB\n")
    write(tmp_path, "proc/self/cgroup", "0::/a/b\n")
    return tmp_path


def write(root: Path, file: str, text: str) -> None:
    path = root / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_without_limits_it_is_the_whole_machine(root: Path) -> None:
    assert detect(NO_GPUS, root).resources == Resources(cpu=CORES, memory=16 * 1024**2)


def test_the_limits_of_the_group_and_of_those_above_it_apply(root: Path) -> None:
    write(root, "sys/fs/cgroup/a/b/cpu.max", "max 100000\n")
    write(root, "sys/fs/cgroup/a/b/memory.max", "max\n")
    write(root, "sys/fs/cgroup/a/cpu.max", "150000 100000\n")
    write(root, "sys/fs/cgroup/a/memory.max", "1048576\n")
    assert detect(NO_GPUS, root).resources == Resources(cpu=1, memory=1024**2)


def test_less_than_a_core_still_counts_as_one(root: Path) -> None:
    write(root, "sys/fs/cgroup/a/b/cpu.max", "50000 100000\n")
    assert detect(NO_GPUS, root).resources.cpu == 1


def test_version_1_groups(root: Path) -> None:
    write(root, "proc/self/cgroup", "4:memory:/m\n2:cpu,cpuacct:/c\n0::/\n")
    write(root, "sys/fs/cgroup/memory/m/memory.limit_in_bytes", "2097152\n")
    write(root, "sys/fs/cgroup/cpu/c/cpu.cfs_quota_us", "100000\n")
    write(root, "sys/fs/cgroup/cpu/c/cpu.cfs_period_us", "100000\n")
    assert detect(NO_GPUS, root).resources == Resources(cpu=1, memory=2 * 1024**2)


def test_no_quota_in_version_1_is_minus_one(root: Path) -> None:
    write(root, "proc/self/cgroup", "2:cpu:/c\n")
    write(root, "sys/fs/cgroup/cpu/c/cpu.cfs_quota_us", "-1\n")
    write(root, "sys/fs/cgroup/cpu/c/cpu.cfs_period_us", "100000\n")
    assert detect(NO_GPUS, root).resources.cpu == CORES


def test_a_container_that_sees_its_group_as_the_root(root: Path) -> None:
    write(root, "sys/fs/cgroup/memory.max", "1048576\n")
    assert detect(NO_GPUS, root).resources.memory == 1024**2


@pytest.mark.parametrize(
    ("named", "devices"),
    [
        ("", ()),
        ("-1", ()),
        ("0", ("0",)),
        ("1, 3", ("1", "3")),
        ("GPU-a,MIG-b", ("GPU-a", "MIG-b")),
        ("0,-1,2", ("0",)),
        ("NoDevFiles,", ("NoDevFiles",)),
    ],
)
def test_gpus_are_those_that_the_environment_names(root: Path, named: str, devices: tuple[str, ...]) -> None:
    machine = detect({"CUDA_VISIBLE_DEVICES": named}, root)
    assert machine.devices == devices
    assert machine.resources.gpu == len(devices)


def test_without_a_driver_there_are_no_gpus(root: Path) -> None:
    assert detect({}, root).devices == ()

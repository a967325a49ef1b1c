"""What a machine can give, read from a made-up /proc and /sys."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flame.model.resources import Resources
from flame.node.capacity import Machine, detect, offered
from flame.node.gpus import listing, parse_listing

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
        ("NoDevFiles", ()),
        ("0,0,1", ("0",)),
        ("MIG-GPU-5e/1/0", ("MIG-GPU-5e/1/0",)),
    ],
)
def test_gpus_are_those_that_the_environment_names(root: Path, named: str, devices: tuple[str, ...]) -> None:
    machine = detect({"CUDA_VISIBLE_DEVICES": named}, root)
    assert machine.devices == devices
    assert machine.resources.gpu == len(devices)


def test_without_a_driver_there_are_no_gpus(root: Path) -> None:
    write(root, "dev/null", "")
    assert detect({}, root).devices == ()


def test_gpus_are_counted_by_the_files_of_the_driver(root: Path) -> None:
    for name in ("nvidia0", "nvidia3", "nvidiactl", "nvidia-uvm", "nvidia-caps/nvidia-cap1"):
        write(root, f"dev/{name}", "")
    machine = detect({"PATH": ""}, root)
    assert machine.devices == ("0", "1")
    assert machine.resources.gpu == 2


def test_gpus_that_nobody_used_yet_are_asked_for(root: Path) -> None:
    """The driver is loaded and makes the files of its devices when it is first asked."""
    write(root, "proc/driver/nvidia/gpus/0000:01:00.0/information", "Model: NVIDIA A100\n")
    assert detect(program(root, f"cat <<'END'\n{WHOLE}END"), root).devices == ("0", "1")


def test_parts_of_gpus_are_asked_for(root: Path) -> None:
    write(root, "dev/nvidia0", "")
    write(root, "proc/driver/nvidia/capabilities/gpu0/mig/gi1/access", "DeviceFileMinor: 3\n")
    machine = detect(program(root, f"cat <<'END'\n{DIVIDED}END"), root)
    assert machine.devices == ("MIG-0a11", "MIG-0a12", "GPU-0b")
    assert machine.resources.gpu == 3


@pytest.mark.parametrize("script", ["exit 9", "printf '\\377'", "echo 'Failed to initialize NVML'; exit 1"])
def test_a_program_that_fails_lists_nothing(root: Path, script: str) -> None:
    assert listing(program(root, script)) == ""


def test_a_program_that_hangs_is_not_waited_for(root: Path) -> None:
    assert listing(program(root, "exec sleep 1000"), timeout=0.2) == ""


def program(root: Path, script: str) -> dict[str, str]:
    """An environment in which this is `nvidia-smi -L`."""
    write(root, "bin/nvidia-smi", f'#!/bin/sh\n[ "$1" = -L ] || exit 8\n{script}\n')
    (root / "bin/nvidia-smi").chmod(0o755)
    return {"PATH": f"{root / 'bin'}:{os.environ['PATH']}"}


# --- names of GPUs ---------------------------------------------------------------------------------------------------

WHOLE = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-0a)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-0b)
"""
DIVIDED = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-0a)
  MIG 3g.20gb     Device  0: (UUID: MIG-0a11)
  MIG 2g.10gb     Device  1: (UUID: MIG-0a12)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-0b)
"""


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", ()),
        ("No devices were found\n", ()),
        (WHOLE, ("0", "1")),
        (DIVIDED, ("MIG-0a11", "MIG-0a12", "GPU-0b")),
        (
            "GPU 0: A100 (UUID: GPU-0a)\n  MIG 1g.5gb Device 0: (UUID: MIG-GPU-0a/7/0)\n",  # of drivers before 470
            ("MIG-GPU-0a/7/0",),
        ),
        ("Unable to determine the device handle for GPU 0000:01:00.0: Unknown Error\n" + WHOLE, ("0", "1")),
    ],
)
def test_the_listing_of_the_driver_is_read(text: str, names: tuple[str, ...]) -> None:
    assert parse_listing(text) == names


# --- what a node offers of it ----------------------------------------------------------------------------------------

FOUND = Machine(Resources(cpu=8, memory=64, gpu=2), ("0", "1"))


@pytest.mark.parametrize(
    ("capacity", "devices", "shares", "gpu", "names"),
    [
        (None, None, 1, 2, ("0", "1")),
        (None, None, 4, 8, ("0", "1")),
        (None, ("MIG-a",), 3, 3, ("MIG-a",)),
        (None, (), 1, 0, ()),
        (Resources(cpu=2), None, 1, 0, ()),  # no GPU is offered
        (Resources(cpu=2), ("GPU-a",), 2, 2, ("GPU-a",)),  # those that are listed are
        (Resources(cpu=2, gpu=1), None, 1, 1, ("0",)),
        (Resources(cpu=2, gpu=3), None, 2, 3, ("0", "1")),
        (Resources(cpu=2, gpu=4), None, 1, 4, ("0", "1", "2", "3")),  # who wrote that knows better
        (Resources(cpu=2, gpu=3), ("GPU-a", "GPU-b"), 2, 3, ("GPU-a", "GPU-b")),
    ],
)
def test_the_settings_say_what_is_offered(
    capacity: Resources | None, devices: tuple[str, ...] | None, shares: int, gpu: int, names: tuple[str, ...]
) -> None:
    machine = offered(FOUND, capacity, devices, shares)
    expected = Resources(2, 0, gpu) if capacity is not None else Resources(8, 64, gpu)
    assert (machine.resources, machine.devices, machine.shares) == (expected, names, shares)


@pytest.mark.parametrize(
    ("machine", "numbers", "visible"),
    [
        (Machine(Resources()), [], None),
        (FOUND, [], ""),
        (FOUND, [1], "1"),
        (FOUND, [0, 1], "0,1"),
        (Machine(Resources(gpu=8), ("GPU-a", "MIG-b"), 4), [3], "GPU-a"),
        (Machine(Resources(gpu=8), ("GPU-a", "MIG-b"), 4), [4], "MIG-b"),
        (Machine(Resources(gpu=8), ("GPU-a", "MIG-b"), 4), [2, 3, 4], "GPU-a,MIG-b"),
        (FOUND, [7], ""),  # of an executor that came from a time when there were more
    ],
)
def test_shares_are_parts_of_devices(machine: Machine, numbers: list[int], visible: str | None) -> None:
    assert machine.visible(numbers) == visible

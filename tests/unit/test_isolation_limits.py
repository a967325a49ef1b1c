"""Control groups: what is written for limits in both layouts, what is read back, and what a node does without them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flame.model.isolation import Limits
from flame.proto import shim_pb2, types_pb2
from flame.shims.isolation import Confinement, with_defaults
from flame.shims.isolation_sandbox import Sandboxes
from flame.shims.keeper import members
from flame.shims.limits import Group, Groups, settings_of
from flame.shims.shim import BindError, Launch, Usage
from shared_time import MEASURE, SLACK

MIB = 1024**2
EVERYTHING = Limits(memory=64 * MIB, pids=20, cpu_millis=500)


def launch(devices: str | None = None, **spec: Any) -> Launch:
    context = shim_pb2.SessionContext()
    resreq = types_pb2.ResourceRequirement(cpu=2, memory=512 * MIB)
    return Launch("e-1", "token", types_pb2.ApplicationSpec(command="run", **spec), context, devices, resreq=resreq)


def test_what_is_written_has_a_file_for_each_layout() -> None:
    assert settings_of(EVERYTHING) == {
        "memory": {
            "memory.max": "67108864",
            "memory.swap.max": "0",
            "memory.limit_in_bytes": "67108864",
            "memory.memsw.limit_in_bytes": "67108864",
            "memory.kmem.tcp.limit_in_bytes": "4194304",
        },
        "pids": {"pids.max": "20"},
        "cpu": {"cpu.max": "50000 100000", "cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "50000"},
    }
    assert settings_of(Limits(wall_ms=1, output=1, disk=1)) == {}
    assert settings_of(Limits(pids=2**31))["pids"] == {"pids.max": "4194304"}


def test_limits_beyond_all_bounds_are_held_and_refused_ones_named(tmp_path: Path) -> None:
    groups = Groups.find()
    if groups.missing:
        pytest.skip(groups.missing)
    try:
        groups.make("e-1", Limits(memory=99999 << 40, pids=2**31, cpu_millis=4_000_000_000)).remove()
    finally:
        groups.remove()
    (tmp_path / "e-2").mkdir()
    (tmp_path / "e-2" / "pids.max").mkdir()
    with pytest.raises(OSError, match=r"the kernel refuses pids\.max = 64: Is a directory"):
        Groups({"pids": tmp_path}).make("e-2", Limits(pids=64))


def test_the_real_groups_of_this_machine_hold_what_they_are_told() -> None:
    groups = Groups.find()
    if groups.missing:
        pytest.skip(groups.missing)
    try:
        group = groups.make("e-1", EVERYTHING)
        script = "".join(f"echo 0 > {folder}/cgroup.procs && " for folder in group.folders)
        done = subprocess.run(
            ["sh", "-c", f'{script} exec "$0" -c "print(len(bytearray(32 << 20)))"', sys.executable],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout == f"{32 * MIB}\n"
        used = group.usage()
        assert used.cpu > 0
        assert 32 * MIB < used.peak_memory <= 64 * MIB
        assert used.kills == 0
        group.remove()
        assert not any(folder.exists() for folder in group.folders)
    finally:
        groups.remove()


def test_what_was_made_below_a_group_is_ended_and_removed_with_it() -> None:
    """As an instance can that may write to its group: at level none, where the executor manager is root."""
    groups = Groups.find()
    if groups.missing:
        pytest.skip(groups.missing)
    try:
        group = groups.make("e-1", EVERYTHING)
        folders = [folder / "mine/below" for folder in group.folders]
        for folder in folders:
            folder.mkdir(parents=True)
        with subprocess.Popen(["sleep", "3600"]) as process:
            for folder in folders:
                (folder / "cgroup.procs").write_text(str(process.pid))
            found = [members(str(folder)) for folder in group.folders]
            process.kill()
        assert found == [[process.pid]] * len(group.folders)
        group.remove()
        assert not any(folder.exists() for folder in group.folders)
    finally:
        groups.remove()


def test_groups_in_one_have_its_processor_time_together() -> None:
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    if found["missing"]:
        pytest.skip(found["missing"])
    assert min(found["used"]) > 0
    assert sum(found["used"]) < found["allowed"] + SLACK
    assert found["left"] == []


class Machine:
    """A machine whose /proc and /sys are plain files."""

    def __init__(self, root: Path, own: str, mounts: str) -> None:
        self.root = root
        (root / "proc/self").mkdir(parents=True)
        (root / "proc/self/cgroup").write_text(own)
        (root / "proc/self/mountinfo").write_text(mounts)
        (root / "proc" / str(os.getpid())).mkdir()

    def folder(self, path: str, **files: str) -> Path:
        folder = self.root / "sys/fs/cgroup" / path
        folder.mkdir(parents=True)
        for name, text in files.items():
            (folder / name.replace("__", ".")).write_text(text)
        return folder


def test_one_tree_for_all(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "0::/a.service\n", "30 20 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
    own = machine.folder("a.service", cgroup__controllers="cpuset cpu io memory pids\n")
    (own / "flame-999999999-left").mkdir()  # of a process that is gone
    groups = Groups.find(tmp_path)
    assert not groups.missing
    assert (own / "cgroup.subtree_control").read_text() == "+cpu +memory +pids"
    [node] = own.glob("flame-*")
    assert (node / "cgroup.subtree_control").read_text() == "+cpu +memory +pids"
    group = groups.make("e-1", EVERYTHING)
    assert group.folders == [node / "e-1"]
    assert not list(group.folders[0].iterdir())  # plain folders have no files for limits
    (group.folders[0] / "memory.max").touch()
    (group.folders[0] / "cpu.max").touch()
    groups.make("e-1", EVERYTHING)
    assert (group.folders[0] / "memory.max").read_text() == "67108864"
    assert (group.folders[0] / "cpu.max").read_text() == "50000 100000"


def test_a_tree_for_each_controller(tmp_path: Path) -> None:
    mounts = "".join(
        f"3{number} 20 0:2{number} {above} /sys/fs/cgroup/{names} rw - cgroup cgroup rw,{names}\n"
        for number, (names, above) in enumerate(
            [("cpu,cpuacct", "/"), ("memory", "/outer"), ("pids", "/"), ("cpuset", "/")]
        )
    )
    machine = Machine(tmp_path, "4:cpu,cpuacct:/x\n3:memory:/outer/y\n2:pids:/gone\n1:cpuset:/\n0::/\n", mounts)
    cpu, memory, pids = machine.folder("cpu,cpuacct/x"), machine.folder("memory/y"), machine.folder("pids")
    groups = Groups.find(tmp_path)
    assert not groups.missing
    made = groups.make("e-1", Limits(pids=5)).folders
    assert [folder.parent.parent for folder in made] == [cpu, memory, pids]
    groups.remove()
    assert not [*cpu.iterdir(), *memory.iterdir(), *pids.iterdir()]


def test_a_machine_without_groups_says_what_is_missing(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "0::/\n", "30 20 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
    folder = machine.folder(".", cgroup__controllers="hugetlb\n")
    assert Groups.find(tmp_path).missing == (
        f"no writable control groups for memory, pids, cpu ({folder.resolve()}: it was given none;"
        " systemd gives them to units with Delegate=yes)"
    )
    assert [file.name for file in folder.iterdir()] == ["cgroup.controllers"]


def test_usage_is_read_in_both_layouts(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    for folder in (old, new):
        folder.mkdir()
    (old / "cpuacct.usage").write_text("1500000000\n")
    (old / "memory.max_usage_in_bytes").write_text("4096\n")
    (old / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n")
    (new / "cpu.stat").write_text("usage_usec 1500000\nuser_usec 1\n")
    (new / "memory.peak").write_text("4096\n")
    (new / "memory.events").write_text("low 0\noom 3\noom_kill 2\n")
    for folder in (old, new):
        assert Group(dict.fromkeys(("memory", "cpu", "pids"), folder)).usage() == Usage(1.5, 4096, 2)


# --- what a node does with them ------------------------------------------------------------------------------------


def able(sandboxes: str = "", groups: str = "") -> Confinement:
    return Confinement([Sandboxes("bwrap", Path("/nowhere"), sandboxes)], Groups({}, groups), ())


def sealed() -> Confinement:
    level = Sandboxes("bwrap", Path("/nowhere"))
    level.name = "gvisor"
    level.streams = True  # no socket gets inside
    return Confinement([level], Groups({}), ())


def test_a_sandbox_gets_no_more_than_its_executor() -> None:
    resreq = types_pb2.ResourceRequirement(cpu=2, memory=512 * MIB)
    assert with_defaults(Limits(), resreq) == Limits(memory=512 * MIB, pids=1024, cpu_millis=2000)
    asked = Limits(memory=64 * MIB, pids=9, cpu_millis=9000, disk=5)
    assert with_defaults(asked, resreq) == Limits(memory=64 * MIB, pids=9, cpu_millis=2000, disk=5)
    assert with_defaults(Limits(), None) == Limits(pids=1024)


def test_a_plain_process_has_the_limits_that_were_asked_for() -> None:
    assert able().held(launch()) == Limits()
    assert able().held(launch(limits=types_pb2.Limits(memory=64 * MIB))) == Limits(memory=64 * MIB)
    assert able().held(launch(isolation="process")).memory == 512 * MIB


@pytest.mark.parametrize(
    ("node", "wanted", "message"),
    [
        (able(groups="no trees"), launch(limits=types_pb2.Limits(pids=9)), "this node can't hold limits: no trees"),
        (able("no bwrap"), launch(isolation="process"), "this node can't isolate at level process: no bwrap"),
        (able(), launch(isolation="vm"), "this node does not know isolation 'vm'"),
        (sealed(), launch(isolation="gvisor", devices="0"), "isolation gvisor can't give GPUs to an instance"),
        (
            sealed(),
            launch(isolation="gvisor", network="pypi.org"),
            "isolation gvisor can't hold a network of listed hosts: no socket of its proxy gets inside",
        ),
    ],
)
def test_what_can_not_be_held_is_refused(node: Confinement, wanted: Launch, message: str) -> None:
    with pytest.raises(BindError) as caught:
        node.held(wanted)
    assert caught.value.message.startswith(message)


def test_without_control_groups_a_sandbox_has_only_limits_that_need_none() -> None:
    assert able(groups="no trees").held(launch(isolation="process", limits=types_pb2.Limits(disk=5))) == Limits(disk=5)


@pytest.mark.parametrize(("cpu_millis", "share"), [(0, 1000), (500, 250), (2000, 1000), (64_000, 1000), (1, 100)])
def test_the_proxy_of_a_network_is_held_too(tmp_path: Path, cpu_millis: int, share: int) -> None:
    node = Confinement([], Groups(dict.fromkeys(("memory", "pids", "cpu"), tmp_path)), ())
    folder = tmp_path / "e-1-network"
    folder.mkdir()
    for name in ("memory.max", "pids.max", "cpu.max"):
        (folder / name).touch()
    group = node.group_of_proxy(node.groups, Limits(cpu_millis=cpu_millis), "e-1-network")
    assert group is not None
    assert group.folders == [folder]
    found = {file.name: file.read_text() for file in folder.iterdir()}
    assert found == {"memory.max": str(128 * MIB), "pids.max": "64", "cpu.max": f"{share * 100} 100000"}
    without = able(groups="no trees").shared_groups(Limits(), "e-1-shared")
    assert without is None
    assert node.group_of_proxy(without, Limits(), "e-1-network") is None


@pytest.mark.parametrize(
    ("node", "labels"),
    [
        (able(), {"flame.isolation.process": "yes", "flame.network.process": "yes", "flame.limits": "yes"}),
        (
            able("no bwrap", "no trees"),
            {"flame.isolation.process": "no", "flame.network.process": "no", "flame.limits": "no"},
        ),
        (sealed(), {"flame.isolation.gvisor": "yes", "flame.network.gvisor": "no", "flame.limits": "yes"}),
    ],
)
def test_a_node_says_what_it_can(node: Confinement, labels: dict[str, str]) -> None:
    assert node.labels() == labels

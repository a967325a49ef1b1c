"""What stands in front of an instance of level microvm, with a puppet where the machine would be."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from flame.shims.isolation_sandbox import Room
from flame.shims.microvm import Microvm
from flame.shims.processes import Program
from microvm_plugins import DOOR_LIES, LIES, NETWORK_LIES
from microvms import found, run, wrapped


def offer(folder: Path, monkeypatch: pytest.MonkeyPatch, **entries: str) -> None:
    """A package that offers these entry points is installed."""
    info = folder / "plugin-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 1.0\n")
    lines = [f"{name} = {value}\n" for name, value in entries.items()]
    (info / "entry_points.txt").write_text("[flame.vmms]\n" + "".join(lines))
    monkeypatch.syspath_prepend(folder)


@pytest.fixture
def level(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Microvm:
    offer(tmp_path / "site", monkeypatch, puppet="microvm_plugins:Puppet")
    (tmp_path / "root").mkdir()
    settings = {"FLAME_MICROVM_VMM": "puppet", "FLAME_MICROVM_ROOT": str(tmp_path / "root")}
    level = found(tmp_path / "level", FLAME_MICROVM_CACHE=str(tmp_path / "cache"), **settings)
    assert level.missing == ""
    return level


def puppet(level: Microvm, role: str) -> Program:
    return wrapped(level, "/bin/sh", env={"FLAME_TEST_PUPPET": role})


def verdict(program: Program) -> str:
    file = Path(program.verdict)
    return file.read_text() if file.exists() else ""


def test_streams_and_the_exit_status_pass_through(level: Microvm) -> None:
    done = run(puppet(level, "answers"), input=b"hello")
    assert (done.returncode, done.stdout, done.stderr) == (3, b"HELLO", b"done\n")
    assert level.labels == {}


@pytest.mark.parametrize("lie", LIES)
def test_a_machine_that_lies_is_ended_and_that_is_told(level: Microvm, lie: str) -> None:
    program = puppet(level, lie)
    done = run(program, input=b"")
    assert done.returncode == 125
    assert b"the virtual machine broke its contract" in done.stderr
    assert verdict(program).startswith("broke its contract: ")


@pytest.mark.parametrize("lie", NETWORK_LIES)
def test_a_machine_that_lies_on_its_way_out_is_ended_too(level: Microvm, tmp_path: Path, lie: str) -> None:
    with socket.socket(socket.AF_UNIX) as proxy:
        proxy.bind(str(tmp_path / "proxy"))
        proxy.listen()
        room = Room(proxy=tmp_path / "proxy")
        program = wrapped(level, "/bin/sh", env={"FLAME_TEST_PUPPET": lie}, room=room, network="pypi.org")
        assert run(program, input=b"").returncode == 125
    assert verdict(program).startswith("broke its contract: ")


@pytest.mark.parametrize("lie", DOOR_LIES)
def test_a_machine_that_lies_on_the_way_in_is_ended_too(level: Microvm, tmp_path: Path, lie: str) -> None:
    (tmp_path / "door").mkdir()
    program = wrapped(level, "/bin/sh", env={"FLAME_TEST_PUPPET": lie}, room=Room(sockets=[tmp_path / "door"]))
    assert run(program, input=b"").returncode == 125
    assert verdict(program).startswith("broke its contract: ")


def test_a_machine_that_ends_too_early(level: Microvm) -> None:
    done = run(puppet(level, "dies"), input=b"")
    assert done.returncode == 125
    assert b"no more\n" in done.stderr
    assert b"the virtual machine ended before its program did" in done.stderr


def test_a_machine_that_promises_more_than_it_sends(level: Microvm) -> None:
    assert run(puppet(level, "hides"), input=b"").returncode == 4


def test_the_environment_of_a_program_is_not_that_of_the_runner(level: Microvm) -> None:
    program = wrapped(
        level, "/bin/sh", env={"LD_PRELOAD": "/tmp/evil.so", "FLAME_INSTANCE_ID": "i", "A": "x" * 200_000}
    )
    assert "LD_PRELOAD" not in program.env
    assert program.env["FLAME_INSTANCE_ID"] == "i"
    assert max(map(len, program.env.values())) <= 100_000  # one variable may have 128 KiB


def test_what_a_plugin_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(tmp_path / "site", monkeypatch, other="microvm_plugins:Puppet")
    assert found(tmp_path, FLAME_MICROVM_VMM="mine").missing == (
        "FLAME_MICROVM_VMM names 'mine', and no installed package offers such a one"
    )


def test_what_is_missing_is_said_with_its_remedy(tmp_path: Path) -> None:
    bare = {"PATH": str(tmp_path)}
    assert Microvm.find(tmp_path, bare).missing == (
        "qemu-system-x86_64 is not installed: install QEMU (qemu-system-x86), busybox-static and e2fsprogs"
    )
    nowhere = found(tmp_path, FLAME_MICROVM_KERNEL="/nowhere").missing
    assert nowhere == "FLAME_MICROVM_KERNEL names /nowhere, which can't be read"
    assert found(tmp_path, FLAME_MICROVM_SNAPSHOTS="many").missing == (
        "FLAME_MICROVM_SNAPSHOTS must be the number of snapshots to keep, not 'many'"
    )

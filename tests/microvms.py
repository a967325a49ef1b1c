"""Virtual machines in tests: where what they need is kept, and how one is started by hand."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import scripted_manager
from cluster import ROOT
from flame.model.isolation import Limits
from flame.proto import shim_pb2, types_pb2
from flame.shims.isolation_sandbox import Room
from flame.shims.microvm import Microvm
from flame.shims.processes import Program
from flame.shims.shim import Launch

CACHE = ROOT / ".venv-microvm"  # disks outlive a run of the tests: making that of the system takes seconds
MIB = 1024**2
LIMITS = Limits(memory=128 * MIB, pids=64)
DISK = 8 * MIB


@contextmanager
def cached() -> Iterator[None]:
    """The level keeps its disks and snapshots where tests may, and tests are patient: on a busy machine one that is
    emulated may take its time to boot."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scripted_manager, "PATIENCE", 120.0)
        patch.setenv("FLAME_MICROVM_CACHE", str(CACHE))
        yield


@contextmanager
def at_hand(folder: Path) -> Iterator[None]:
    """QEMU and a kernel have to be there: `make test` installs them. The system's disk is made before a test waits."""
    level = found(folder / "probe")
    assert level.missing == ""
    assert run(wrapped(level, "/bin/sh", "-c", ":")).returncode == 0
    with cached():
        yield


def wrapped(
    level: Microvm, program: str, *arguments: str, room: Room | None = None, env: Mapping[str, str] | None = None,
    limits: Limits = LIMITS, labels: tuple[str, ...] = (), name: str = "by-hand", network: str = "",
) -> Program:  # fmt: skip
    """A program of the system as it is started at this level."""
    wanted = Program(program, [program, *arguments], {"PATH": "/usr/bin:/bin", **(env or {})}, "/tmp")
    application = types_pb2.ApplicationSpec(isolation="microvm", labels=labels, network=network)
    launch = Launch(name, "", application, shim_pb2.SessionContext())
    return level.wrap(wanted, room or Room(disk=DISK), limits, launch)


def run(program: Program, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Run what was wrapped to its end."""
    return subprocess.run(program.argv, env=dict(program.env), capture_output=True, timeout=180, check=False, **options)


def found(folder: Path, **settings: str) -> Microvm:
    """The level as a node finds it here."""
    return Microvm.find(folder, {**os.environ, "FLAME_MICROVM_CACHE": str(CACHE), **settings})


def owned(executor_id: str) -> list[int]:
    """The processes of this machine that belong to an executor."""
    mark = f"FLAME_INSTANCE_ID={executor_id}".encode()
    alive: list[int] = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdecimal() and mark in (folder / "environ").read_bytes().split(b"\0"):
                alive.append(int(folder.name))
        except OSError:
            continue
    return alive

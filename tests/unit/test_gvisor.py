"""Sandboxes of gVisor as data, and what a node says when it can't make one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import pytest

from flame.model.isolation import Limits
from flame.proto import shim_pb2, types_pb2
from flame.shims import gvisor_runner, gvisor_sandbox
from flame.shims.gvisor import Gvisor
from flame.shims.gvisor_processes import complain
from flame.shims.gvisor_root import Plan, plan
from flame.shims.isolation_sandbox import Room
from flame.shims.processes import Program
from flame.shims.shim import Launch

FOLDER = Path("/srv/level")
LAUNCH = Launch("e", "", types_pb2.ApplicationSpec(), shim_pb2.SessionContext())


def planned(room: Room, pids: int = 0) -> Plan:
    return plan(room, pids, FOLDER, ["runsc"])


def mounts(found: Plan) -> dict[str, dict[str, object]]:
    listed = cast(list[dict[str, object]], found.configuration["mounts"])
    return {str(mount["destination"]): mount for mount in listed}


def test_what_lies_where_gvisor_keeps_its_memory_is_mounted_there() -> None:
    found = planned(Room(readable=[Path("/srv/code"), Path("/tmp/code")], sockets=[Path("/dev/shm/door")]))
    assert ("show", "/srv/code", "/srv/code") in found.tree
    assert not [path for _, path, _ in found.tree if path.startswith(("/tmp", "/dev"))]
    assert mounts(found)["/tmp/code"]["options"] == ["rbind", "ro"]
    assert mounts(found)["/dev/shm/door"]["options"] == ["rbind", "rw"]
    assert list(mounts(found)).index("/tmp") < list(mounts(found)).index("/tmp/code")


def test_folders_that_are_hidden_are_covered() -> None:
    found = planned(
        Room(readable=[Path("/srv/code"), Path("/tmp/x")], hidden=[Path("/srv/code/own"), Path("/tmp/x/y")])
    )
    assert ("hide", "/srv/code/own", "") in found.tree
    assert mounts(found)["/tmp/x/y"]["options"] == ["nosuid", "nodev", "size=4096", "mode=0711", "ro"]


@pytest.mark.parametrize(
    ("room", "network", "sockets"),
    [
        (Room(), "none", "none"),
        (Room(sockets=[Path("/srv/link")]), "none", "open"),
        (Room(sockets=[Path("/usr")], network=True), "host", "all"),
    ],
)
def test_options_of_runsc(room: Room, network: str, sockets: str) -> None:
    assert planned(room).command == ["runsc", f"--network={network}", f"--host-uds={sockets}"]


def test_limits_and_rights_of_the_process() -> None:
    process = cast(dict[str, Any], planned(Room(cwd="/srv"), pids=9).configuration["process"])
    assert process["capabilities"] == {}
    assert process["noNewPrivileges"] is True
    assert process["cwd"] == "/srv"
    assert {"type": "RLIMIT_NPROC", "hard": 9, "soft": 9} in process["rlimits"]
    assert mounts(planned(Room(disk=1234)))["/tmp"]["options"] == ["nosuid", "nodev", "size=1234", "mode=1777"]


def test_its_group_leaves_room_for_what_gvisor_needs_itself() -> None:
    level = Gvisor([], FOLDER)
    assert level.around(Limits(memory=5, pids=10)) == Limits(memory=5, pids=1320)
    assert level.around(Limits(memory=5)) == Limits(memory=5)


# --- looking for it --------------------------------------------------------------------------------------------------


def fake(folder: Path, script: str) -> dict[str, str]:
    """An environment whose runsc is this script."""
    file = folder / "runsc"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    return {"PATH": str(folder)}


def test_no_runsc(tmp_path: Path) -> None:
    found = Gvisor.find(tmp_path / "level", {"PATH": str(tmp_path)})
    assert found.missing == "gVisor (runsc) is not installed: put runsc into the PATH of the executor manager"
    assert not (tmp_path / "level").exists()


def test_a_runsc_that_does_not_work_says_why_for_each_platform(tmp_path: Path) -> None:
    found = Gvisor.find(tmp_path / "level", fake(tmp_path, 'echo "no luck with $1" >&2; exit 1'))
    assert found.missing == (
        "gVisor (runsc) can't make a sandbox here: "
        "systrap: no luck with --platform=systrap; ptrace: no luck with --platform=ptrace"
    )


def test_the_first_platform_that_works_is_used(tmp_path: Path) -> None:
    said = tmp_path / "said"
    script = f'echo "$@" >> {said}; case "$1" in flags) echo "  -host-uds value";; esac'
    found = Gvisor.find(tmp_path / "level", fake(tmp_path, script))
    assert (found.missing, found.streams) == ("", False)
    assert "--platform=systrap --ignore-cgroups --network=none" in said.read_text()
    assert "ptrace" not in said.read_text()


def test_a_runsc_that_can_not_pass_sockets_on_gets_the_link_over_its_streams(tmp_path: Path) -> None:
    assert Gvisor.find(tmp_path / "level", fake(tmp_path, ":")).streams


def test_what_worked_is_not_tried_again_by_the_next_node_of_this_user(tmp_path: Path) -> None:
    said = tmp_path / "said"
    script = f'echo "$1" >> {said}; case "$1" in flags) echo "  -host-uds value";; *systrap) exit 1;; esac'
    environ = {**fake(tmp_path, script), "HOME": str(tmp_path)}
    first = Gvisor.find(tmp_path / "one", environ)
    tries = said.read_text()
    second = Gvisor.find(tmp_path / "two", environ)
    assert (second.missing, second.streams) == ("", False)
    assert said.read_text() == tries
    wrapped = [
        level.wrap(Program("/bin/true", ["true"], {}, "/"), Room(), Limits(), LAUNCH) for level in (first, second)
    ]
    assert all("--platform=ptrace" in found.argv[4] for found in wrapped)
    assert str(tmp_path / "two") in wrapped[1].argv[4]
    assert str(tmp_path / "one") not in wrapped[1].argv[4]


def test_another_runsc_is_tried_and_what_failed_is_tried_again(tmp_path: Path) -> None:
    environ = {**fake(tmp_path, "exit 1"), "HOME": str(tmp_path)}
    assert Gvisor.find(tmp_path / "level", environ).missing
    fake(tmp_path, ": works now")
    assert not Gvisor.find(tmp_path / "level", environ).missing
    fake(tmp_path, "echo broken again; exit 1")
    assert Gvisor.find(tmp_path / "level", environ).missing
    fake(tmp_path, ": works now")
    for note in (tmp_path / ".cache/flame/gvisor").iterdir():
        note.write_bytes(b"nonsense")
    assert not Gvisor.find(tmp_path / "level", environ).missing


# --- the runner ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("script", "status"), [("exit 7", 7), ("kill -9 $$", 137), ("exit 143", 143)])
def test_it_ends_as_the_program_does(tmp_path: Path, script: str, status: int) -> None:
    level = Gvisor.find(tmp_path / "level", fake(tmp_path, ":"))
    fake(tmp_path, script)
    wrapped = level.wrap(Program("/bin/true", ["true"], {}, "/"), Room(), Limits(), LAUNCH)
    assert subprocess.run(wrapped.argv, env=dict(wrapped.env), check=False).returncode == status


def test_what_gvisor_says_when_it_fails_is_told(tmp_path: Path) -> None:
    (tmp_path / gvisor_sandbox.PANIC).write_text("panic: something is wrong\n\ngoroutine 1\n")
    assert gvisor_sandbox.panic(str(tmp_path / gvisor_sandbox.PANIC)) == "panic: something is wrong"
    assert gvisor_sandbox.panic(str(tmp_path / "nothing")) == ""


def test_no_sandbox_without_its_folder(tmp_path: Path) -> None:
    runner = Path(gvisor_runner.__file__)
    wanted = '{"folder": "%s", "network": true, "command": [], "tree": [], "configuration": {}, "copied": null}' % (
        tmp_path / "gone"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(runner), wanted, "true"], env=dict(os.environ), capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == gvisor_runner.NO_PROGRAM
    assert done.stderr.startswith("can't make a sandbox of gVisor: ")


@contextmanager
def stderr() -> Generator[int]:
    """The other end of what is stderr meanwhile: a pipe that does not wait."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    saved = os.dup(2)
    os.dup2(writing, 2)
    os.close(writing)
    try:
        yield reading
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def fill(descriptor: int) -> None:
    with suppress(BlockingIOError):
        while True:
            os.write(descriptor, bytes(4096))


def test_what_it_complains_of_is_said_where_gvisor_made_stderr_one_that_does_not_wait() -> None:
    with stderr() as reading, os.fdopen(reading, "rb") as file, ThreadPoolExecutor() as other:
        fill(2)
        complained = other.submit(complain, "it is full")
        found = b""
        while b"full\n" not in found and not (complained.done() and complained.exception()):
            found = file.read1()
        complained.result()
        assert found.endswith(b"it is full\n")
        file.close()
        complain("nobody reads it")

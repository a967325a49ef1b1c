"""Images on a node whose executor manager is no root: with the real podman, which keeps them in its user's home.

The tests, which are root, make the user up: its number, its home, and, in a mount namespace that nobody else sees, what
/etc/passwd and /etc/subuid say of it, and a way to the Python that runs the tests, wherever that lies. Where a kernel
lets no such user make containers, what the node says is what podman or bubblewrap says.
"""

from __future__ import annotations

import asyncio
import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from uuid import uuid4

import pytest

from cluster import ROOT
from flame.link import unix
from flame.model.states import ExecutorState
from flame.proto import types_pb2
from images import add_busybox, oci_layout, podman
from scripted_manager import NODE_ALONE, SOURCE, ScriptedManager, descendants, gone

USER = 54321
NUMBERS = "200000:65536"  # of subordinate users and groups
LEVELS = {"none": 1000, "process": 1000, "gvisor": 0}  # and the number of the user inside
PROGRAMS = ("sh", "cat", "id")

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")


class Home:
    """A user with a home, and with numbers for the users of images, or without."""

    def __init__(self, folder: Path, *, numbers: bool) -> None:
        self.folder = folder
        self.numbers = numbers
        places = {"HOME": "home", "XDG_RUNTIME_DIR": "run", "XDG_DATA_HOME": "data", "XDG_CACHE_HOME": "cache"}
        self.environ: Mapping[str, str] = {
            **{name: str(folder / place) for name, place in places.items()}, "PATH": os.environ["PATH"],
        }  # fmt: skip
        for place in (*places.values(), "work"):
            (folder / place).mkdir(mode=0o700)
            os.chown(folder / place, USER, USER)
        known = Path("/etc/passwd").read_text()
        self._etc = {"passwd": f"{known}flametest:x:{USER}:{USER}::{folder}/home:/bin/sh\n"}
        self._etc.update(dict.fromkeys(("subuid", "subgid"), f"{USER}:{NUMBERS}\n" if numbers else ""))
        for name, text in self._etc.items():
            (folder / name).write_text(text)

    def command(self, *command: str) -> list[str]:
        """The command, run by this user."""
        lines = ["set -e", "touch -a /etc/subuid /etc/subgid", *opened(self.folder)]
        lines += [f"mount --bind {self.folder}/{name} /etc/{name}" for name in self._etc]
        lines += [f'exec setpriv --reuid {USER} --regid {USER} --clear-groups "$@"']
        return ["unshare", "--mount", "sh", "-c", "\n".join(lines), "sh", *command]

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*command), env=self.environ, cwd="/", capture_output=True, text=True, check=False
        )

    def processes(self) -> list[int]:
        """Those of this user that run. The folder of one in /proc may be root's."""
        found: list[int] = []
        for each in Path("/proc").glob("[0-9]*"):
            with suppress(FileNotFoundError, ProcessLookupError):
                status = (each / "status").read_text()
                if f"\nUid:\t{USER}\t" in status and "\nState:\tZ" not in status:
                    found.append(int(each.name))
        return found


def opened(folder: Path) -> list[str]:
    """The lines of a shell that show, to everybody, the Python and the checkout that the tests run from: where folders
    above them are closed, nothing else is there."""
    closed: dict[Path, list[Path]] = {}
    for path in dict.fromkeys((Path(sys.base_prefix), Path(sys.prefix), ROOT)):
        above = [each for each in reversed(path.parents) if not each.stat().st_mode & 0o001]
        if above:
            closed.setdefault(above[0], []).append(path)
    lines: list[str] = []
    for number, (top, paths) in enumerate(closed.items()):
        stage = [f"{folder}/stage-{number}-{part}" for part in range(len(paths))]
        for aside, path in zip(stage, paths, strict=True):
            lines += [f"mkdir -p {aside}", f"mount --bind {path} {aside}"]
        lines.append(f"mount -t tmpfs -o mode=755 tmpfs {top}")
        for aside, path in zip(stage, paths, strict=True):
            lines += [f"mkdir -p {path}", f"mount --bind {aside} {path}"]
    return lines


class Node:
    """An executor manager of this user."""

    def __init__(self, home: Home, manager: ScriptedManager) -> None:
        self.home = home
        self.manager = manager

    @property
    def label(self) -> str:
        return self.manager.hellos[-1].node.node.spec.labels["flame.shim.container"]

    async def says(self, channel: int, image: str, script: str, level: str) -> str:
        """What a script prints in an instance of the image, or why there is none."""
        self.manager.start(
            channel, "sh", "-c", script, shim=types_pb2.Container, image=image, isolation=level,
            labels=["stdio=once"], env={"PYTHONPATH": ""},
        )  # fmt: skip
        ends = (ExecutorState.BOUND, ExecutorState.RELEASED)
        reports = self.manager.reports.setdefault(channel, [])
        report = await self.manager.until(
            lambda: next((each for each in reports if each.state in ends), None), "an instance, or the reason for none"
        )
        if report.state == ExecutorState.RELEASED:
            return report.message
        [answer] = await self.manager.answered(channel, self.manager.run(channel, None))
        assert isinstance(answer, bytes), answer
        return answer.decode()


@asynccontextmanager
async def a_node(home: Home) -> AsyncGenerator[Node]:
    manager = ScriptedManager(unix(home.folder / "manager"))
    await manager.open()
    os.chown(home.folder / "manager", USER, USER)
    program = home.folder / "alone.py"
    program.write_text(NODE_ALONE)
    process = await asyncio.create_subprocess_exec(
        *home.command(sys.executable, str(program), str(manager.address), str(home.folder / "work")),
        env={**home.environ, "PYTHONPATH": str(SOURCE)}, cwd="/",
    )  # fmt: skip
    try:
        await manager.until(lambda: manager.hellos, "the node")
        yield Node(home, manager)
    finally:
        below = descendants(process.pid)
        if process.returncode is None:
            process.kill()
        await process.wait()
        for pid in below:
            await gone(pid)
        await manager.close()


@pytest.fixture(params=["numbers", "no numbers"])
def home(request: pytest.FixtureRequest) -> Iterator[Home]:
    # Podman makes a name for an image of the folder that it lies in, so that must be a good one.
    folder = Path(f"/tmp/fl{uuid4().hex[:8]}")
    folder.mkdir(mode=0o755)
    try:
        found = Home(folder, numbers=request.param == "numbers")
        yield found
        found.run("podman", "unshare", "rm", "-rf", found.environ["XDG_DATA_HOME"])
        while left := found.processes():  # podman leaves one
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
    finally:
        shutil.rmtree(folder)


def image_of(folder: Path, owner: int) -> str:
    """An image with a file that only its owner can read; where it is."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        add_busybox(tar, PROGRAMS)
        member = tarfile.TarInfo("etc/marker")
        member.size, member.mode, member.uid, member.gid = 5, 0o600, owner, owner
        tar.addfile(member, io.BytesIO(b"mine\n"))
    return oci_layout(folder, [stream.getvalue()])


def refusals(home: Home) -> list[str]:
    """What podman and bubblewrap say to this user, if it is nothing good."""
    info = home.run("podman", "info", "--format", "{{.Store.GraphRoot}}")
    box = home.run("bwrap", "--unshare-user", "--ro-bind", "/", "/", "true")
    return [done.stderr.strip().rpartition("Error: ")[2][-100:] for done in (info, box) if done.returncode]


async def test_a_file_of_another_user_of_the_image(home: Home) -> None:
    """Podman can have it where there are numbers for such users, and else says that it can't."""
    image = image_of(home.folder / "image", 77)
    refused = refusals(home)
    async with a_node(home) as node:
        found = await node.says(1, image, "cat /etc/marker", "process")
        if refused:
            assert any(why in found for why in refused)
        elif home.numbers:
            assert found == "mine\n"
        else:
            assert found.startswith(f"podman can't fetch image {image!r}: ")
            assert "insufficient UIDs or GIDs" in found


async def test_an_image_is_fetched_and_run_by_an_ordinary_user(home: Home) -> None:
    image = image_of(home.folder / "image", 0)
    refused = refusals(home)
    before = podman("images", "--all", "--quiet")
    async with a_node(home) as node:
        for channel, level in enumerate(LEVELS, 1):
            found = await node.says(channel, image, "id -u; cat /etc/marker", level)
            if refused:
                assert found.startswith("this node can't run that shim: ")
                assert any(why in found for why in refused)
            else:
                assert found == f"{LEVELS[level]}\nmine\n"
        assert node.label == ("no" if refused else "yes")
    assert podman("images", "--all", "--quiet") == before  # root's are others


async def test_where_podman_does_not_work_the_node_says_why(home: Home) -> None:
    """Its home is another user's."""
    os.chown(home.folder / "data", 0, 0)
    why = home.run("podman", "info").stderr
    async with a_node(home) as node:
        found = await node.says(1, "oci:/nowhere", "id", "process")
        assert node.label == "no"
    assert found.startswith("this node can't run that shim: ")
    assert "permission denied" in why
    assert "permission denied" in found

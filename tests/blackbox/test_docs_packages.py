"""The guide to packages runs as it stands, with a local cluster: its files, and its commands with what they print."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from flame.config.application import parse_applications

TEXT = (Path(__file__).parent.parent.parent / "docs" / "packages.md").read_text()
BLOCK = re.compile(r"^```(\w+)(?: file=(\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Shell:
    """A home of its own, with the short path that sockets need."""

    def __init__(self, home: Path) -> None:
        self.home = home
        kept = {name: value for name, value in os.environ.items() if not name.startswith("FLAME_")}
        folders = {name: str(home / name.lower()) for name in ("XDG_RUNTIME_DIR", "XDG_STATE_HOME", "TMPDIR")}
        for folder in folders.values():
            Path(folder).mkdir()
        path = f"{Path(sys.executable).parent}:{kept['PATH']}"
        self._environ = {**kept, **folders, "HOME": str(home), "PATH": path}

    def run(self, command: str) -> str:
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.home,
            env=self._environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout


@pytest.fixture
def shell() -> Iterator[Shell]:
    with tempfile.TemporaryDirectory(prefix="fl", dir="/tmp", ignore_cleanup_errors=True) as home:
        shell = Shell(Path(home))
        shell.run("flmadm up --detach")
        try:
            yield shell
        finally:
            shell.run("flmadm down --all")


def steps(block: str) -> Iterator[tuple[str, str]]:
    """The commands of a console block, each with what the guide shows of its output."""
    for step in block.removeprefix("$ ").split("\n$ "):
        command, _, output = step.partition("\n")
        yield command, output.strip("\n")


def test_the_guide_to_packages(shell: Shell) -> None:
    commands = 0
    for language, name, block in BLOCK.findall(TEXT):
        if name:
            file = shell.home / name
            file.parent.mkdir(exist_ok=True)
            file.write_text(block)
        elif language == "yaml":
            assert parse_applications(Path("packages.md"), block)
        else:
            assert language == "console"
            for command, output in steps(block):
                commands += 1
                assert output in shell.run(command)
    assert commands == 8
    assert "counts words" in shell.run("flmctl view -a words")

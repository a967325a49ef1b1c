"""Kernels as copies of the service at its beginning, made in a process of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from flame.sandbox.inside.kernel_start import changes

# A service that makes a kernel in a folder, closes its socket, and tells how the kernel ended.
SERVICE = """
import os, sys
from flame.sandbox.inside import kernel_start
before = sorted(os.listdir("/proc/self/fd"))
started = kernel_start.copy(os.environ, sys.argv[1])
started.socket.close()
print(started.wait())
for pipe in (started.stdout, started.stderr):
    os.close(pipe)
print(before == sorted(os.listdir("/proc/self/fd")))
"""


def ended(folder: Path) -> tuple[str, str]:
    """What the service says, and what stands in its log."""
    done = subprocess.run([sys.executable, "-c", SERVICE, str(folder)], capture_output=True, text=True, check=True)
    return done.stdout, done.stderr


def test_a_copy_ends_when_its_service_is_gone_and_leaves_nothing_open_there(tmp_path: Path) -> None:
    assert ended(tmp_path) == ("0\nTrue\n", "")


def test_a_copy_that_cant_begin_says_why_and_ends(tmp_path: Path) -> None:
    said, log = ended(tmp_path / "none")
    assert said == "1\nTrue\n"
    assert "FileNotFoundError" in log


@pytest.mark.parametrize(
    ("changed", "can"),
    [
        ({"FLAME_SESSION_ID": "s"}, True),
        ({"TZ": "UTC"}, True),
        ({"HOME": "/root"}, True),
        ({"PYTHONPATH": "/lib"}, False),
        ({"LD_LIBRARY_PATH": "/lib"}, False),
        ({"LC_ALL": "C"}, False),
        ({"LANG": "C"}, True),  # as it was
    ],
)
def test_variables_that_only_a_new_process_heeds(changed: dict[str, str], can: bool) -> None:
    before = {"LANG": "C", "HOME": "/"}
    after = {**before, **changed}
    there, back = changes(before, after), changes(after, before)
    if not can:
        assert there is back is None
        return
    assert there is not None
    assert back is not None
    told = {name: value for name, value in changed.items() if before.get(name) != value}
    assert (there, back) == (told, {name: before.get(name) for name in told})

"""Processes of a sandbox, without one."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from flame.sandbox.inside import processes


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]


def shell_and_child(went_on: Path) -> tuple[subprocess.Popen[str], int]:
    """A shell that waits for its child, and then makes the file. The child is the first in a set of both."""
    source = f"sh -c 'echo $$; exec sleep 3600'; : >{went_on}; sleep 3600"
    while True:
        shell = subprocess.Popen(["sh", "-c", source], stdout=subprocess.PIPE, text=True, start_new_session=True)
        assert shell.stdout is not None
        child = int(shell.stdout.readline())
        assert processes.below(shell.pid) == {shell.pid, child}
        if next(iter(processes.below(shell.pid))) == child:
            return shell, child
        os.killpg(shell.pid, signal.SIGKILL)
        with shell:
            pass


def test_nobody_goes_on_because_another_was_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    went_on = tmp_path / "went-on"
    shell, child = shell_and_child(went_on)
    kill = os.kill

    def slowly(pid: int, number: int) -> None:
        """Whoever waits for this one has all the time that it wants."""
        kill(pid, number)
        while pid == child and number == signal.SIGKILL and not went_on.exists() and state(shell.pid) in "RSD":
            pass

    with monkeypatch.context() as patched, shell:
        patched.setattr(os, "kill", slowly)
        processes.kill_family(shell.pid)
        assert shell.wait() == -signal.SIGKILL
    assert not went_on.exists()

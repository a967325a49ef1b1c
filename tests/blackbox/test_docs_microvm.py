"""The examples of docs/microvm.md run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from blackbox.test_docs import ROOT, folder
from microvms import cached, found, run, wrapped

__all__ = ["folder"]

GUIDE = (ROOT / "docs" / "microvm.md").read_text()
BLOCK = re.compile(r"^```python file=(\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_the_guide_to_virtual_machines(folder: Path, tmp_path: Path) -> None:
    level = found(tmp_path)
    assert level.missing == ""
    assert run(wrapped(level, "/bin/sh", "-c", ":")).returncode == 0  # the system's disk is made before anybody waits
    for name, text in BLOCK.findall(GUIDE):
        (folder / name).write_text(text)
    with cached():
        environment = {**os.environ, "HOME": str(folder), "XDG_RUNTIME_DIR": str(folder), "XDG_STATE_HOME": str(folder)}
    environment.pop("FLAME_ENDPOINT", None)
    command = [sys.executable, "-W", "error", "client.py"]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=150, check=False
    )
    assert (done.returncode, done.stdout.splitlines()) == (0, ["True", "True"]), done.stderr


def test_what_is_named_in_the_guide_is_there() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "src" / "flame" / "shims").glob("microvm*.py"))
    named = set(re.findall(r"FLAME_MICROVM_[A-Z]+", GUIDE))
    assert named == set(re.findall(r"\"(FLAME_MICROVM_[A-Z]+)\"", sources))
    for path in re.findall(r"tests/\S+\.py", GUIDE):
        assert (ROOT / path).is_file()

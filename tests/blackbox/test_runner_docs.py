"""The examples of the guide to the Runner run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
BLOCK = re.compile(r"^```python(?: file=(\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def run(folder: str, program: str) -> str:
    """What a program in the folder prints, with a local cluster of its own."""
    places = {"HOME": folder, "XDG_RUNTIME_DIR": folder, "XDG_STATE_HOME": folder}
    environment = {key: value for key, value in os.environ.items() if not key.startswith("FLAME_")} | places
    done = subprocess.run(
        [sys.executable, "-W", "error", program],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_guide_to_the_runner() -> None:
    program: list[str] = []
    with tempfile.TemporaryDirectory(prefix="fl", dir="/tmp") as folder:  # short, for the sockets' sake
        for name, block in BLOCK.findall((ROOT / "docs" / "runner.md").read_text()):
            if name:
                Path(folder, name).write_text(block)
            else:
                program.append(block)
        Path(folder, "guide.py").write_text("\n".join(program))
        run(folder, "guide.py")


def test_the_functions_of_the_readme() -> None:
    blocks = [block for _, block in BLOCK.findall((ROOT / "README.md").read_text())]
    with tempfile.TemporaryDirectory(prefix="fl", dir="/tmp") as folder:
        Path(folder, "program.py").write_text(blocks[2])
        assert run(folder, "program.py") == "332833500\n[0, 1, 4, 9, 16]\n"

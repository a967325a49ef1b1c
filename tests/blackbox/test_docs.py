"""The examples of the documentation run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
BLOCK = re.compile(r"^```python(?: file=(\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)

WAIT_FOR_REASON = '''
import time


def wait_for_reason(session):
    """The explanation, once the scheduler has had its first look."""
    for _ in range(300):
        text = session.explain().summary
        if ";" in text and "next pass" not in text:
            return text
        time.sleep(0.02)
    raise AssertionError(text)
'''


def run(folder: Path, program: str) -> str:
    """Run it with an embedded cluster of its own; what it printed."""
    environment = {**os.environ, "HOME": str(folder), "XDG_RUNTIME_DIR": str(folder), "XDG_STATE_HOME": str(folder)}
    environment.pop("FLAME_ENDPOINT", None)
    command = [sys.executable, "-W", "error", program]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def folder() -> Path:
    """Short, for the sockets' sake."""
    import tempfile

    return Path(tempfile.mkdtemp(prefix="fl", dir="/tmp"))


def test_the_first_service_of_the_readme(folder: Path) -> None:
    blocks = [text for _, text in BLOCK.findall((ROOT / "README.md").read_text())]
    (folder / "service.py").write_text(blocks[0])
    (folder / "client.py").write_text(blocks[1])
    assert run(folder, "client.py").split() == ["b'50'", "332834500"]


def test_the_guide_to_the_python_sdk(folder: Path) -> None:
    text = (ROOT / "docs" / "python.md").read_text()
    program = [f"folder = {str(folder)!r}\n{WAIT_FOR_REASON}"]
    for name, block in BLOCK.findall(text):
        if name:
            (folder / name).write_text(block)
        else:
            program.append(block)
    (folder / "guide.py").write_text("\n".join(program))
    run(folder, "guide.py")

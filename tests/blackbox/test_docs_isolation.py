"""The examples of docs/isolation.md run as they stand."""

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
from untrusted import require_sandboxes

GUIDE = Path(__file__).parent.parent.parent / "docs" / "isolation.md"
BLOCK = re.compile(r"^```python file=(\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short, for the sockets' sake."""
    with tempfile.TemporaryDirectory(prefix="fl", dir="/tmp") as made:
        yield Path(made)


def test_code_that_nobody_has_read(folder: Path, tmp_path: Path) -> None:
    require_sandboxes(tmp_path)
    for name, text in BLOCK.findall(GUIDE.read_text()):
        (folder / name).write_text(text)
    environment = {**os.environ, "HOME": str(folder), "XDG_RUNTIME_DIR": str(folder), "XDG_STATE_HOME": str(folder)}
    environment.pop("FLAME_ENDPOINT", None)
    command = [sys.executable, "-W", "error", "client.py"]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "b'45'",
        "b'False'",
        "<urlopen error [Errno 101] Network is unreachable>",
        "True",
    ]


def test_the_document_of_an_application() -> None:
    text = GUIDE.read_text().split("```yaml\n")[1].split("```")[0]
    [application] = parse_applications(GUIDE, text)
    assert application.spec.isolation == "process"
    assert application.spec.limits.cpu_millis == 500

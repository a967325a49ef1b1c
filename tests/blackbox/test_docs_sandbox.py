"""The examples of docs/sandbox.md run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from untrusted import require_sandboxes

GUIDE = Path(__file__).parent.parent.parent / "docs" / "sandbox.md"
EXAMPLES = dict(re.findall(r"^```python file=(\S+)\n(.*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL))
PRINTED = {
    "first.py": [
        "12.566370614359172 working",
        "ZeroDivisionError division by zero",
        r"CommandResult(exit_code=4, stdout=b'1\n2\n3\n', stderr=b'', timed_out=False, dropped=0)",
    ],
    "streaming.py": ["step 0", "step 1", "step 2", "TimeoutError 1"],
    "commands.py": [r"b'5\n'", "True", "True", r"b'1\n2\n3\n'"],
    "files.py": ["created a", "['b'] 1"],
    "ports.py": ["b'from inside'"],
    "snapshots.py": ["dict_keys(['lock'])", "{'weights': [1, 2]} so far", "{'weights': [1, 2]} {}"],
}


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Short, for the sockets' sake."""
    with tempfile.TemporaryDirectory(prefix="fl", dir="/tmp") as made:
        yield Path(made)


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples(folder: Path, name: str) -> None:
    require_sandboxes(folder / "probe")
    (folder / name.replace(".py", "_.py")).write_text(EXAMPLES[name])  # no module is to be hidden by its name
    environment = {**os.environ, "HOME": str(folder), "XDG_RUNTIME_DIR": str(folder), "XDG_STATE_HOME": str(folder)}
    environment.pop("FLAME_ENDPOINT", None)
    command = [sys.executable, "-W", "error", "-W", "default::ResourceWarning", name.replace(".py", "_.py")]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == PRINTED[name]

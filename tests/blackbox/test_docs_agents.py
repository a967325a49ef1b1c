"""The examples of docs/agents.md run as they stand, with a model that answers from a script."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from flame.cli.mcp import flame_mcp
from model_stub import ModelStub, Turn
from untrusted import require_sandboxes

GUIDE = (Path(__file__).parent.parent.parent / "docs" / "agents.md").read_text()
EXAMPLES = dict(re.findall(r"^```python file=(\S+)\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL))
CODE = "sum(n * n for n in range(1, 101))"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Short, for the sockets' sake."""
    require_sandboxes(tmp_path)
    with tempfile.TemporaryDirectory(prefix="fl", dir="/tmp") as made:
        yield Path(made)


def run(folder: Path, name: str, **variables: str) -> list[str]:
    """The lines that an example prints."""
    (folder / name).write_text(EXAMPLES[name])
    places = {"HOME": str(folder), "XDG_RUNTIME_DIR": str(folder), "XDG_STATE_HOME": str(folder)}
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("FLAME_", "OPENAI_"))}
    done = subprocess.run(
        [sys.executable, name],
        cwd=folder,
        env={**environment, **places, **variables},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("name", ["with_openai_agents.py", "with_langchain.py"])
def test_frameworks_that_call_tools(folder: Path, name: str) -> None:
    script = (
        lambda seen: Turn(calls=[("run_code", {"code": CODE})]),
        lambda seen: Turn(f"It is {seen[-1]}."),
    )
    with ModelStub(*script) as model:
        variables = {"OPENAI_BASE_URL": model.url, "OPENAI_API_KEY": "none", "OPENAI_AGENTS_DISABLE_TRACING": "1"}
        assert run(folder, name, **variables) == ["It is 338350."]


def test_a_framework_whose_actions_are_code(folder: Path) -> None:
    with ModelStub(lambda seen: Turn(f"Thought: I compute it.\n<code>\nfinal_answer({CODE})\n</code>")) as model:
        printed = run(folder, "with_smolagents.py", OPENAI_BASE_URL=model.url, OPENAI_API_KEY="none")
    assert printed[-1] == "338350"


def test_tools_by_hand(folder: Path) -> None:
    assert run(folder, "by_hand.py") == ["338350", "True", "error: there is no nothing"]


def test_all_examples_are_tried() -> None:
    assert EXAMPLES.keys() == {"with_openai_agents.py", "with_langchain.py", "with_smolagents.py", "by_hand.py"}


def test_the_flags_of_the_server_are_those_that_it_has() -> None:
    known = {name for param in flame_mcp.params for name in param.opts} - {"--version"}
    table = GUIDE.split("## flame-mcp")[1].split("## OpenAI")[0]
    assert set(re.findall(r"--[a-z][a-z-]+", table)) == known
    (setting,) = re.findall(r"^```json\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
    server = json.loads(setting)["mcpServers"]["flame"]
    assert server["command"] == "flame-mcp"
    assert flame_mcp.make_context("flame-mcp", server["args"]).params["memory"] == "512Mi"

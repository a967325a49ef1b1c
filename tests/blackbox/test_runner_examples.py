"""The examples run as they stand, each with a local cluster of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from model_stub import ModelStub, Turn
from untrusted import require_sandboxes

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


def run(name: str, *arguments: str, **variables: str) -> str:
    """What an example prints."""
    with tempfile.TemporaryDirectory(prefix="fl", dir="/tmp") as folder:  # short, for the sockets' sake
        places = {"HOME": folder, "XDG_RUNTIME_DIR": folder, "XDG_STATE_HOME": folder}
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("FLAME_", "OPENAI_"))}
        environment |= places | variables
        command = [sys.executable, "-W", "error", str(EXAMPLES / name), *arguments]
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=100, check=False
        )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_pi() -> None:
    printed = run("pi.py", "--darts", "200000")
    assert float(printed.removeprefix("pi is about ")) == pytest.approx(3.1416, abs=0.02)


def test_monte_carlo_option_pricing() -> None:
    match = re.fullmatch(
        r"simulated ([\d.]+) \+- [\d.]+, exact ([\d.]+)\n", run("monte_carlo_option_pricing.py", "--paths", "100000")
    )
    assert match is not None
    assert float(match[1]) == pytest.approx(float(match[2]), abs=0.1)


def test_parameter_server() -> None:
    match = re.search(r"is off by ([\d.]+)$", run("parameter_server.py").strip())
    assert match is not None
    assert float(match[1]) < 0.05


def test_replay_buffer() -> None:
    printed = run("replay_buffer.py")
    assert printed.startswith(f"learned: {' '.join(['right'] * 7)}; ")


def test_batch_embedding() -> None:
    lines = run("batch_embedding.py", "--texts", "2000").splitlines()
    assert lines[0] == "2000 texts, 256 dimensions; nearest to 'a scientist looks at the sky':"
    assert lines[1] == "  The physicist measured a distant star."


def test_coding_agent(tmp_path: Path) -> None:
    require_sandboxes(tmp_path)
    printed = run("coding_agent.py")
    fails, passes, answers = (printed.index(f"--- {word}\n") for word in ("fails", "passes", "answers"))
    assert "AssertionError" in printed[fails:passes]
    assert "all is right" in printed[passes:answers]
    assert "return (ordered[middle - 1] + ordered[middle]) / 2" in printed[answers:]


def test_coding_agent_with_a_model_elsewhere(tmp_path: Path) -> None:
    require_sandboxes(tmp_path)
    script = (
        lambda seen: Turn(calls=[("run_code", {"wrong": "arguments"})]),
        lambda seen: Turn(calls=[("run_code", {"code": "print(6 * 7)"})]),
        lambda seen: Turn(" and ".join(seen)),
    )
    with ModelStub(*script) as model:
        printed = run("coding_agent.py", "What is 6 * 7?", OPENAI_BASE_URL=model.url, OPENAI_MODEL="other")
    assert printed.endswith("--- answers\nerror: the arguments must be a JSON object with the key code and 42\n")
    assert model.requests[0]["model"] == "other"
    assert model.requests[0]["messages"][1]["content"] == "What is 6 * 7?"


def test_each_example_is_described() -> None:
    commands = r"^\| `(?:python|jupyter lab) (\w+\.\w+)`"
    described = set(re.findall(commands, (EXAMPLES / "README.md").read_text(), re.MULTILINE))
    assert described == {file.name for file in EXAMPLES.iterdir() if file.suffix in (".py", ".ipynb")}

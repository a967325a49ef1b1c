"""The guide to scheduling runs as it stands: its settings, its programs and its commands, on three nodes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cluster import Cluster

TEXT = (Path(__file__).parent.parent.parent / "docs" / "scheduling.md").read_text()
BLOCK = re.compile(r"^```(\w+)(?: file=(\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NODES = {
    "node-1": {"capacity": "cpu=4,mem=8g", "labels": {"zone": "a"}},
    "node-2": {"capacity": "cpu=4,mem=8g", "labels": {"zone": "b"}},
    "node-3": {
        "capacity": "cpu=4,mem=8g,gpu=2",
        "labels": {"zone": "b"},
        "taints": ["gpu"],
        "devices": ["0", "1"],
    },
}
PREAMBLE = '''
import shlex
import subprocess
import time


def until(condition):
    """Wait for what must come and announces itself in no other way."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "waited 30 s"
        time.sleep(0.02)


def command(text):
    """What a command of the guide prints."""
    program, *arguments = shlex.split(text)
    done = subprocess.run([bin_folder + program, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, (text, done.stdout, done.stderr)
    return done.stdout
'''


def program(folder: Path) -> str:
    """All blocks in their order as one program; files are written down."""
    parts = [f"folder = {str(folder)!r}\nbin_folder = {str(Path(sys.executable).parent)!r} + '/'\n{PREAMBLE}"]
    for language, name, block in BLOCK.findall(TEXT):
        if name:
            (folder / name).write_text(block)
        elif language == "python":
            parts.append(block)
        elif language == "console":
            lines = [line.removeprefix("$ ") for line in block.splitlines() if line.startswith("$ ")]
            parts.append("\n".join(f"command({line!r})" for line in lines))
    return "\n".join(parts)


@pytest.mark.timeout(180)
def test_the_guide_to_scheduling(tmp_path: Path) -> None:
    text = program(tmp_path)
    settings = yaml.safe_load((tmp_path / "flame-cluster.yaml").read_text())["cluster"]
    for key in ("name", "endpoint"):
        del settings[key]
    cluster = Cluster(tmp_path, nodes=0, settings=settings)
    with cluster:
        common = yaml.safe_load(cluster.config.read_text())
        for name, section in NODES.items():
            cluster.config = tmp_path / f"{name}.yaml"
            cluster.config.write_text(yaml.safe_dump({"cluster": {**common["cluster"], "executors": section}}))
            cluster.start_node(name)
        (tmp_path / "guide.py").write_text(text)
        done = subprocess.run(
            [sys.executable, "-W", "error", "guide.py"],
            cwd=tmp_path,
            env=cluster.environ(),
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
        )
        assert done.returncode == 0, f"{done.stderr}\n{cluster.manager.log}"

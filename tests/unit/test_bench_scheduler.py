"""`make bench-scheduler` in small: it runs through, writes what it measured, and tenants share as they should."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def test_a_quick_run_writes_its_tables_and_the_shares_are_right(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.scheduler", "--quick", "--into", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=110)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "scheduler.json").read_text())
    table = (tmp_path / "scheduler.md").read_text()
    assert table in done.stdout
    for row in found["pass"]:
        assert {"executor ends", "session opens", "node is lost", "gang of 8 waits"} <= row["figures"].keys()
        assert all(figures["samples"] for figures in row["figures"].values())
    assert [row["nodes"] for row in found["turn"]] == [10, 100]
    assert [row["starts"] for row in found["first"]] == [40, 400]
    assert min(found["memory"].values()) > 0
    for phase in found["shares"]["phases"]:  # in virtual time: the same on every machine
        assert phase["worst"] <= 1, phase
        assert f"| {phase['title']} | {phase['worst']:.2f} |" in table

"""The figures as a picture, drawn by an interpreter that has matplotlib, which development does not need otherwise."""

from __future__ import annotations

import subprocess
import sys
import venv
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PLOTS = ROOT / ".venv-plots"
PACKAGE = "matplotlib>=3.8"


def draw(figures: Path, picture: Path, *, install: bool, script: str = "") -> bool:
    """Draw the picture, with a script of its own if need be; False = there is no matplotlib, and it was not to be
    installed or could not be."""
    python = _interpreter(install=install)
    if python is None:
        print("no plot: matplotlib is not there", file=sys.stderr)
        return False
    subprocess.run([python, "-c", script or SCRIPT, str(figures), str(picture)], check=True)
    return True


def _interpreter(*, install: bool) -> Path | None:
    if find_spec("matplotlib") is not None:
        return Path(sys.executable)
    for folder in (PLOTS, ROOT / ".venv-peers"):
        if (folder / ".stamp-installed").exists():
            return folder / "bin" / "python"
    if not install:
        return None
    print("installing matplotlib into .venv-plots", file=sys.stderr, flush=True)
    venv.create(PLOTS, with_pip=True)
    python = PLOTS / "bin" / "python"
    if subprocess.run([python, "-m", "pip", "install", "--quiet", PACKAGE], check=False).returncode:
        return None
    (PLOTS / ".stamp-installed").touch()
    return python


SCRIPT = """
import json, sys
import matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot as plt
found = json.load(open(sys.argv[1]))
figure, axes = plt.subplots(2, 2, figsize=(14, 10))
plain = [row for row in found["pass"] if not row["variant"]]
ladder = sorted({row["nodes"] for row in plain})

def growth(axis, kind):
    for sessions in ladder:
        rows = [row for row in plain if row["sessions"] == sessions]
        axis.plot([r["nodes"] for r in rows], [r["figures"][kind]["p50_ms"] for r in rows], marker="o",
                  label=f"{sessions:,} sessions")
    axis.set(xscale="log", yscale="log", xlabel="nodes", ylabel="ms, median", title=f"one pass: {kind}")
    axis.axhline(10, color="#868e96", linestyle="--", linewidth=1)
    axis.legend()

growth(axes[0][0], "executor ends")
axis = axes[0][1]
rows = {}
for row in found["pass"]:
    if row["nodes"] == row["sessions"] == ladder[-1]:
        rows[row["variant"] or "10 tenants, 4 shapes"] = row["figures"]
kinds = list(next(iter(rows.values())))
for place, (variant, figures) in enumerate(rows.items()):
    spots = [number + place * 0.28 for number in range(len(kinds))]
    axis.barh(spots, [figures[kind]["p50_ms"] for kind in kinds], height=0.26, label=variant)
    axis.plot([figures[kind]["p99_ms"] for kind in kinds], spots, "k|", markersize=7)
axis.set_yticks([number + 0.28 for number in range(len(kinds))], kinds)
axis.invert_yaxis()
axis.axvline(10, color="#868e96", linestyle="--", linewidth=1)
axis.set(xscale="log", xlabel="ms, median; | is the 99th percentile",
         title=f"one pass, {ladder[-1]:,} sessions on {ladder[-1]:,} nodes", xlim=(None, 200))
axis.legend()

held, error = axes[1]
shares = found["shares"]
times = [sample["at_ms"] / 1000 for sample in shares["samples"]]
for tenant, colour in zip(shares["weights"], ("#1c7ed6", "#2f9e44", "#d9480f")):
    held.plot(times, [sample["held"][tenant] for sample in shares["samples"]], color=colour,
              label=f"{tenant} (weight {shares['weights'][tenant]:g})")
    held.plot(times, [sample["ideal"][tenant] for sample in shares["samples"]], color=colour, linestyle=":")
held.set(xlabel="virtual seconds", ylabel="executors", title="shares of three tenants (dotted: what they deserve)")
held.legend()
error.plot(times, [sample["error"] for sample in shares["samples"]], color="#1c7ed6")
error.axhline(1, color="#868e96", linestyle="--", linewidth=1)
for phase in shares["phases"]:
    for axis in (held, error):
        axis.axvline(phase["begun_ms"] / 1000, color="#ced4da", linewidth=1)
    error.text(phase["begun_ms"] / 1000 + 0.5, error.get_ylim()[1] * 0.97, phase["title"], rotation=90, va="top",
               fontsize=8)
error.set(xlabel="virtual seconds", ylabel="executors", title="largest difference from the deserved share")
figure.tight_layout()
figure.savefig(sys.argv[2], dpi=100)
"""

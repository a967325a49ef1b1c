"""Figures of all contenders as a table in Markdown and as a plot."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

COLUMNS = (
    ("bulk_per_s", "tasks/s, bulk", "{:,.0f}"),
    ("futures_per_s", "tasks/s, a future each", "{:,.0f}"),
    ("bulk_cpu_us", "CPU us/task", "{:,.1f}"),
    ("single_p50_us", "one at a time p50 us", "{:,.0f}"),
    ("single_p99_us", "p99 us", "{:,.0f}"),
    ("sleep_share", "10 ms tasks, share of ideal", "{:.1%}"),
    ("first_s", "command to first result s", "{:.2f}"),
    ("idle_pss_mb", "idle PSS MB", "{:,.0f}"),
)


def medians(runs: list[dict[str, float]]) -> dict[str, float]:
    """The median of each figure over the runs of one contender."""
    keys = {key for run in runs for key in run}
    return {key: statistics.median(run[key] for run in runs if key in run) for key in sorted(keys)}


def table(results: dict[str, list[dict[str, float]]], reference: str) -> str:
    """One row per contender, then how many times better `reference` is than each."""
    lines = ["| contender | " + " | ".join(title for _, title, _ in COLUMNS) + " | runs |"]
    lines.append("|---" * (len(COLUMNS) + 2) + "|")
    middle = {name: medians(runs) for name, runs in results.items()}
    for name, figures in middle.items():
        cells = [form.format(figures[key]) if key in figures else "-" for key, _, form in COLUMNS]
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {len(results[name])} |")
    if reference in middle:
        lines += ["", f"Ratio of {reference} to each (throughput: times as many; time and memory: times as much):", ""]
        lines.append("| against | " + " | ".join(title for _, title, _ in COLUMNS) + " |")
        lines.append("|---" * (len(COLUMNS) + 1) + "|")
        for name, figures in middle.items():
            if name == reference:
                continue
            cells = [
                f"{middle[reference][key] / figures[key]:.3g}" if figures.get(key) and key in middle[reference] else "-"
                for key, _, _ in COLUMNS
            ]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def hops(results: dict[str, list[dict[str, float]]]) -> str:
    """Where the CPU time of a bulk task goes, per part."""
    lines = ["| contender | part | CPU us/task |", "|---|---|---|"]
    for name, runs in results.items():
        for key, value in medians(runs).items():
            if key.startswith("bulk_cpu_us_"):
                lines.append(f"| {name} | {key.removeprefix('bulk_cpu_us_')} | {value:.1f} |")
    return "\n".join(lines) + "\n"


def save(results: dict[str, list[dict[str, float]]], reference: str, machine: str, into: Path, name: str) -> str:
    """Write <name>.md and <name>.json; answers the text."""
    into.mkdir(parents=True, exist_ok=True)
    text = f"{machine}\n\n{table(results, reference)}\nWhere the CPU time goes (bulk):\n\n{hops(results)}"
    (into / f"{name}.md").write_text(text)
    (into / f"{name}.json").write_text(json.dumps(results, indent=1))
    return text


PLOT = """
import json, statistics, sys
import matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot as plt
results = json.load(open(sys.argv[1]))
names = list(results)
panels = (("bulk_per_s", "tasks/s, bulk"), ("single_p50_us", "one at a time, p50 us"), ("idle_pss_mb", "idle PSS, MB"))
figure, axes = plt.subplots(1, 3, figsize=(13, 4))
for axis, (key, title) in zip(axes, panels):
    rows = [(n, [r[key] for r in results[n] if key in r]) for n in names]
    rows = [(n, v) for n, v in rows if v]
    middles = [statistics.median(v) for _, v in rows]
    axis.barh([n for n, _ in rows], middles, color=["#d9480f" if n.startswith("flame") else "#868e96" for n, _ in rows])
    for place, value in enumerate(middles):
        axis.text(value, place, f" {value:,.0f}", va="center")
    axis.set_title(title)
    axis.set_xscale("log")
    axis.margins(x=0.25)
    axis.invert_yaxis()
figure.tight_layout()
figure.savefig(sys.argv[2], dpi=110)
"""

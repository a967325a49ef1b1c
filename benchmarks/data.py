"""`python -m benchmarks.data`: objects of 100 MB and of 1 KB, put and got: Flame, Ray, Dask, and what a machine allows.

Contenders take turns, each in a process of its own; a contender is a module that prints one JSON line of figures with
the names of `ROWS` (`contenders/data_job.py`). The table has medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks.__main__ import PEERS, machine, peers

HERE = Path(__file__).resolve().parent
RUN_LIMIT_S = 300
REFERENCE, LIMIT = "flame", "machine"

# name, what it is, the least that we want, what we aim at, whether less is better
ROWS = (
    ("put_mb_s", "put of a 100 MB numpy array, same node, MB/s", 2_000, 8_000, False),
    ("get_elsewhere_ms", "get of it by another process of the node, ms", 1.0, 0.3, True),
    ("tcp_get_mb_s", "get of it over TCP, MB/s", 900, 1_500, False),
    ("small_puts_s", "puts of 1 KB one after another, per s", 1_500, 5_000, False),
    ("small_gets_s", "gets of 1 KB one after another, per s", 3_000, 10_000, False),
    ("first_put_mb_s", "the first put of all (fresh pages), MB/s", None, None, False),
    ("tcp_put_mb_s", "put of 100 MB over TCP, MB/s", None, None, False),
)


def contenders() -> dict[str, list[str]]:
    """Name -> command."""
    own, peer = [sys.executable, "-m"], str(PEERS / "bin" / "python")
    return {
        REFERENCE: [*own, "benchmarks.contenders.flame_objects"],
        "ray": [peer, str(HERE / "contenders" / "ray_data.py")],
        "dask": [peer, str(HERE / "contenders" / "dask_data.py")],
        LIMIT: [*own, "benchmarks.contenders.data_limits"],
    }


def install_peers() -> None:
    """Ray and Dask with numpy, in an environment of their own."""
    subprocess.run([peers(), "-m", "pip", "install", "--quiet", "numpy"], check=True)


def run_once(command: list[str]) -> dict[str, float]:
    """The figures of one run of one contender."""
    done = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True, timeout=RUN_LIMIT_S, check=False)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"event": "result"')]
    if done.returncode or not lines:
        raise SystemExit(f"error: {' '.join(command)} ended with {done.returncode}\n{done.stderr[-2000:]}")
    return {name: value for name, value in lines[-1].items() if name != "event"}


def table(results: dict[str, list[dict[str, float]]]) -> str:
    """A row for each figure, a column for each contender, and how many times better ours is than each."""
    names = list(results)
    others = [name for name in names if name != REFERENCE]
    titles = ["what", "least", "aim", *names, *(f"{REFERENCE} : {name}" for name in others)]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for key, what, least, aim, less in ROWS:
        middle = {name: statistics.median(run[key] for run in runs) for name, runs in results.items() if key in runs[0]}
        cells = [what, *(f"{goal:,g}" if goal is not None else "" for goal in (least, aim))]
        cells += [f"{middle[name]:,.4g}" if name in middle else "-" for name in names]
        for name in others:
            ratio = middle[REFERENCE] / middle[name] if name in middle and REFERENCE in middle else None
            cells.append("-" if ratio is None else f"{1 / ratio if less else ratio:.2f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run, print, and write benchmarks/results/data.md."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", action="append", default=[], metavar="NAME", choices=list(contenders()))
    options = parser.parse_args()
    picked = {name: command for name, command in contenders().items() if not options.only or name in options.only}
    if {"ray", "dask"} & picked.keys():
        install_peers()
    results: dict[str, list[dict[str, float]]] = {name: [] for name in picked}
    for number in range(options.rounds):
        for name, command in picked.items():
            print(f"round {number + 1}/{options.rounds}: {name}", file=sys.stderr, flush=True)
            results[name].append(run_once(command))
    text = f"{machine()}\n\nMedians of {options.rounds} rounds.\n\n{table(results)}"
    print(text)
    into = HERE / "results"
    into.mkdir(exist_ok=True)
    (into / "data.md").write_text(text)
    (into / "data.json").write_text(json.dumps(results, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

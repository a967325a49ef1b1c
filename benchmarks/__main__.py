"""`python -m benchmarks`: Flame against Ray, Dask and ProcessPoolExecutor, the same job in the same run.

Contenders take turns (A B C A B C), each in a process of its own; medians over the rounds are printed as ratios, since
one absolute figure says as much about the machine as about the program.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
import venv
from pathlib import Path

from benchmarks import report

ROOT = Path(__file__).resolve().parent.parent
HERE = Path(__file__).resolve().parent
PEERS = ROOT / ".venv-peers"
PEER_PACKAGES = ("ray>=2.40", "dask[distributed]>=2024.8", "matplotlib>=3.8")
RUN_LIMIT_S = 300


def peers() -> Path:
    """The interpreter of the peers' environment, made when it is missing."""
    python = PEERS / "bin" / "python"
    stamp = PEERS / ".stamp-installed"
    if not stamp.exists():
        print("installing Ray and Dask into .venv-peers", flush=True)
        if not python.exists():
            venv.create(PEERS, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PEER_PACKAGES], check=True)
        stamp.touch()
    return python


def contenders(chosen: list[str]) -> dict[str, tuple[list[str], dict[str, str]]]:
    """Name -> (command, environment to add)."""
    own = [sys.executable, "-m"]
    known: dict[str, tuple[list[str], dict[str, str]]] = {
        "flame": ([*own, "benchmarks.contenders.flame_embedded"], {}),
        "flame, storage none": ([*own, "benchmarks.contenders.flame_embedded"], {"FLAME_BENCH_STORAGE": "none"}),
        "ProcessPoolExecutor": ([sys.executable, str(HERE / "contenders" / "process_pool.py")], {}),
        "ray": ([str(PEERS / "bin" / "python"), str(HERE / "contenders" / "ray_tasks.py")], {}),
        "dask": ([str(PEERS / "bin" / "python"), str(HERE / "contenders" / "dask_tasks.py")], {}),
    }
    picked = {name: value for name, value in known.items() if not chosen or name.split(",")[0] in chosen}
    if not picked:
        raise SystemExit(f"error: none of {chosen} is known; the contenders are {', '.join(known)}")
    if {"ray", "dask"} & picked.keys():
        peers()
    return picked


def run_once(command: list[str], extra: dict[str, str], arguments: list[str]) -> dict[str, float]:
    """One run of one contender; its figures and the time from the command to the first result."""
    started = time.perf_counter()
    environment = {**os.environ, **extra}
    process = subprocess.Popen(
        [*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment
    )
    figures: dict[str, float] = {}
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if not line.startswith("{"):
                continue
            heard = json.loads(line)
            if heard.pop("event") == "first":
                figures["first_s"] = time.perf_counter() - started
            else:
                figures.update(heard)
        _, errors = process.communicate(timeout=RUN_LIMIT_S)
    except BaseException:
        process.kill()
        raise
    if process.returncode or "bulk_per_s" not in figures:
        raise SystemExit(f"error: {' '.join(command)} ended with {process.returncode}\n{errors[-2000:]}")
    return figures


def machine() -> str:
    """What this ran on, in one line."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    return f"{os.cpu_count()} cores ({model}), Python {platform.python_version()}, Linux {platform.release()}, loopback"


def main() -> int:
    """Run, print, and write benchmarks/results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="runs of each contender (default 5)")
    parser.add_argument("--tasks", type=int, default=30_000, help="tasks of the bulk part (default 30000)")
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="flame, ray, dask or ProcessPoolExecutor"
    )
    options = parser.parse_args()
    picked = contenders(options.only)
    results: dict[str, list[dict[str, float]]] = {name: [] for name in picked}
    into = HERE / "results"
    text = ""
    for number in range(options.rounds):
        for name, (command, extra) in picked.items():
            print(f"round {number + 1}/{options.rounds}: {name}", file=sys.stderr, flush=True)
            results[name].append(run_once(command, extra, ["--tasks", str(options.tasks)]))
        text = report.save(results, "flame", machine(), into, "tasks")  # after each round: a run may be ended early
    print(text)
    if (PEERS / "bin" / "python").exists():
        plot = [str(PEERS / "bin" / "python"), "-c", report.PLOT, str(into / "tasks.json"), str(into / "tasks.png")]
        subprocess.run(plot, check=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

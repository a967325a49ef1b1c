"""`python -m benchmarks.runner`: calls of a small function in each of the plain ways, and the first call of a project.

The calls of each session run in two executors of an embedded cluster, as those of `ProcessPoolExecutor` run in two
processes for comparison. The ways take turns, so that noise hits all of them alike; figures are medians.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import yaml

import flame
from benchmarks.runner_samples import increment
from benchmarks.starts import Stage
from flame.local import Cluster

CALLS = 10_000
BUDGETS = {"calls": (10_000, 40_000), "first": (2.0, 1.0)}  # must, aim: calls/s, seconds
RESULTS = Path(__file__).resolve().parent / "results"

# What a user runs: from the start of the program to the first result.
PROGRAM = """
import flame
from project_module import increment

with flame.Runner("project") as runner:
    assert runner.service(increment)(1).get() == 2
"""
PROJECT = """
[project]
name = "project-module"
version = "1"
requires-python = ">=3.11"
[build-system]
requires = ["uv_build>=0.5"]
build-backend = "uv_build"
"""
MODULE = "def increment(value):\n    return value + 1\n"


def ways(runner: flame.Runner, executor: flame.Executor, pool: ProcessPoolExecutor) -> dict[str, Callable[[], Any]]:
    """Each makes all calls and gives all results."""
    service = runner.service(increment, max_instances=2)
    base = 1
    closure = runner.service(lambda value: value + base, max_instances=2)
    numbers = range(CALLS)

    def with_chains() -> list[int]:
        """Half of the calls take the future of another one."""
        firsts = [service(number) for number in range(CALLS // 2)]
        return [future.get() for future in [service(first) for first in firsts]]

    return {
        "Runner, a future each": lambda: [future.get() for future in [service(number) for number in numbers]],
        "Runner, of a lambda": lambda: [future.get() for future in [closure(number) for number in numbers]],
        "Runner, half of them with a future as argument": with_chains,
        "Executor.submit": lambda: [
            future.result() for future in [executor.submit(increment, number) for number in numbers]
        ],
        "Executor.submit, of a lambda": lambda: [
            future.result() for future in [executor.submit(lambda value: value + base, number) for number in numbers]
        ],
        "Executor.map": lambda: list(executor.map(increment, numbers)),
        "Executor.map, chunks of 100": lambda: list(executor.map(increment, numbers, chunksize=100)),
        "ProcessPoolExecutor.submit": lambda: [
            future.result() for future in [pool.submit(increment, number) for number in numbers]
        ],
        "ProcessPoolExecutor.map, chunks of 100": lambda: list(pool.map(increment, numbers, chunksize=100)),
    }


def measure_calls(rounds: int) -> dict[str, list[float]]:
    """Calls per second of each way, once per round."""
    found: dict[str, list[float]] = {}
    with (
        Cluster(executors=6) as cluster,  # two for each of the three sessions, so that none waits for another one
        flame.connect(cluster.endpoint) as connection,
        flame.Runner("bench", connection=connection) as runner,
        flame.Executor(2, connection=connection) as executor,
        ProcessPoolExecutor(2) as pool,
    ):
        chosen = ways(runner, executor, pool)
        for way in chosen.values():
            way()
        for _ in range(rounds):
            for name, way in chosen.items():
                begun = time.perf_counter()
                way()
                found.setdefault(name, []).append(CALLS / (time.perf_counter() - begun))
    return found


def measure_first_call(rounds: int) -> list[float]:
    """Seconds of a whole program that makes one call, in a cluster that runs."""
    found: list[float] = []
    with tempfile.TemporaryDirectory() as folder, Cluster(executors=2) as cluster:
        Path(folder, "project_module.py").write_text(MODULE)
        Path(folder, "pyproject.toml").write_text('[project]\nname = "project"\nversion = "1"\n')
        Path(folder, "program.py").write_text(PROGRAM)
        environ = {**os.environ, "FLAME_ENDPOINT": cluster.endpoint}
        for _ in range(rounds + 1):
            begun = time.perf_counter()
            subprocess.run([sys.executable, "program.py"], cwd=folder, env=environ, check=True)
            found.append(time.perf_counter() - begun)
    return found[1:]


def measure_installed(rounds: int) -> list[float]:
    """The same with daemons as on other machines: the project is packed, and installed by the node.

    The first figure is that of a project that nobody has seen; the others are of the unchanged one.
    """
    found: list[float] = []
    with tempfile.TemporaryDirectory(prefix="fl") as root:
        folder = Path(root, "project")
        module = folder / "src" / "project_module" / "__init__.py"
        module.parent.mkdir(parents=True)
        module.write_text(MODULE)
        (folder / "pyproject.toml").write_text(PROJECT)
        (folder / "program.py").write_text(PROGRAM)
        packages = Path(root, "packages")
        packages.mkdir()
        context = {"name": "bench", "package": {"storage": packages.as_uri()}}
        settings = Path(root, "flame.yaml")
        settings.write_text(yaml.safe_dump({"current-context": "bench", "contexts": [context]}))
        stage = Stage(Path(root), free_port())
        environ = {
            **os.environ,
            "FLAME_ENDPOINT": stage.endpoint,
            "FLAME_CONFIG": str(settings),
            "PYTHONPATH": str(folder / "src"),
        }
        with stage.daemon("flame.manager.daemon"), stage.node():
            for _ in range(rounds + 1):
                begun = time.perf_counter()
                subprocess.run([sys.executable, "program.py"], cwd=folder, env=environ, check=True)
                found.append(time.perf_counter() - begun)
    return found


def free_port() -> int:
    """One whose neighbours are most likely free as well."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port if port < 65000 else port - 1000


def main() -> None:
    """Measure, print a table, and write it with the single figures to benchmarks/results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/runner.{json,md}")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    calls, first = measure_calls(arguments.rounds), measure_first_call(arguments.rounds)
    new, *known = measure_installed(arguments.rounds)
    rows = [
        f"| {name} | {statistics.median(rates):,.0f} calls/s | {min(rates):,.0f} | {max(rates):,.0f} |"
        for name, rates in calls.items()
    ]
    rows.append(
        f"| a program that makes one call of its project, start to end | {statistics.median(first):.2f} s "
        f"| {min(first):.2f} | {max(first):.2f} |"
    )
    rows.append(f"| the same in a cluster that gets it as a package, new | {new:.2f} s | | |")
    rows.append(
        f"| the same in a cluster that has the package | {statistics.median(known):.2f} s "
        f"| {min(known):.2f} | {max(known):.2f} |"
    )
    note = (
        f"{CALLS:,} calls, {arguments.rounds} rounds; budgets: {BUDGETS['calls'][0]:,} calls/s (aim "
        f"{BUDGETS['calls'][1]:,}), first call {BUDGETS['first'][0]:g} s (aim {BUDGETS['first'][1]:g}). "
        f"{os.cpu_count()} cores, Python {platform.python_version()}; load average before: {load:.1f}."
    )
    table = "\n".join(["| what | median | least | most |", "|---|---|---|---|", *rows, "", note, ""])
    print(table)
    if arguments.save:
        RESULTS.joinpath("runner.md").write_text(table)
        figures = {
            "calls_per_s": calls,
            "first_call_s": first,
            "new_package_s": new,
            "known_package_s": known,
            "load": load,
        }
        RESULTS.joinpath("runner.json").write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()

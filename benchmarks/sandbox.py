"""`python -m benchmarks.sandbox`: from the creation of a sandbox to the first output of its code, cold and with an
instance that waits, at each level of isolation that this machine has; calls per second in one sandbox; and tasks per
second through each shim. The daemons are the real ones; the levels take turns."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import flame
from benchmarks import shims
from benchmarks.isolation import LEVELS, READY_S
from benchmarks.scheduling import plot
from benchmarks.starts import Stage, below

CALLS = 2000
# must / aim of p50, p99 in ms
COLD = {"process": "200, 400 / 80, 150", "gvisor": "900, 1,500 / 400, 700", "microvm": "600, 1,200 / 300, 500"}
WARM = "50, 100 / 20, 40"


def available(connection: flame.Connection) -> list[str]:
    """The levels that the node can hold."""
    labels = connection.list_nodes()[0].labels
    return [level for level in LEVELS if level == "none" or labels.get(f"flame.isolation.{level}") == "yes"]


def create(connection: flame.Connection, level: str) -> flame.Sandbox:
    network = "host" if level == "none" else "none"
    return flame.Sandbox.create(isolation=level, network=network, connection=connection, timeout=120)


def first_output(connection: flame.Connection, level: str) -> float:
    """Milliseconds from the creation of a sandbox to the first output of its code."""
    begun = time.perf_counter()
    sandbox = create(connection, level)
    heard = sandbox.run_code("print('ready')").stdout
    took = time.perf_counter() - begun
    assert heard == "ready\n"
    sandbox.close()
    while connection.list_executors(sandbox.id):
        time.sleep(0.01)
    return took * 1000


def waiting(connection: flame.Connection, node: subprocess.Popen[str], level: str, starts: int) -> list[float]:
    """The first outputs of sandboxes for which an instance waits."""
    application = connection.get_application("flmexec")
    assert application is not None
    command = {"command": application.command, "warm_instances": 1, "delay_release": 0}
    connection.update_application("flmexec", command)
    first_output(connection, level)
    found: list[float] = []
    for _ in range(starts):
        settle(node, level)
        found.append(first_output(connection, level))
    connection.update_application("flmexec", {**command, "warm_instances": 0})
    return found


def settle(node: subprocess.Popen[str], level: str) -> None:
    """Wait until the instance that waits is there and does nothing any more."""
    quiet, before = 0, -1.0
    while quiet < 5:
        time.sleep(0.1)
        now = used(node.pid)
        quiet = quiet + 1 if now == before else 0
        before = now
    time.sleep(READY_S.get(level, 0.0))


def used(pid: int) -> float:
    """The processor time of all processes below this one so far, and their number."""
    total = 0.0
    for each in below(pid):
        try:
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += int(fields[11]) + int(fields[12]) + 1e-6
    return total


def per_second(call: Callable[[], object], calls: int) -> float:
    """One after another."""
    call()
    begun = time.perf_counter()
    for _ in range(calls):
        call()
    return calls / (time.perf_counter() - begun)


def measure(folder: Path, port: int, starts: int, levels: list[str]) -> dict[str, list[float]]:
    """All figures of sandboxes, by name and level."""
    found: dict[str, list[float]] = {}
    stage = Stage(folder, port)
    with ExitStack() as stack:
        stack.enter_context(stage.daemon("flame.manager.daemon"))
        node = stack.enter_context(stage.node())
        connection = stack.enter_context(flame.connect(stage.endpoint))
        levels = [level for level in available(connection) if level in levels]
        for level in levels:
            first_output(connection, level)
        for _ in range(starts):
            for level in levels:
                found.setdefault(f"cold {level}", []).append(first_output(connection, level))
        for level in levels:
            found[f"warm {level}"] = waiting(connection, node, level, starts)
            with create(connection, level) as sandbox:
                sandbox.files.write("small", b"x" * 100)
                found[f"run_code {level}"] = [per_second(lambda: sandbox.run_code("1 + 1"), CALLS)]
                found[f"run_command {level}"] = [per_second(lambda: sandbox.run_command(["true"]), CALLS // 4)]
                found[f"read {level}"] = [per_second(lambda: sandbox.files.read("small"), CALLS)]
    return found


def table(found: dict[str, list[float]], load: float) -> str:
    """The figures in Markdown."""
    lines = [
        (
            "| level | create to first output, cold: p50 / p99 ms | must / aim | same, an instance waits | must / aim "
            "| `run_code` calls/s | `run_command` calls/s | small files read/s |"
        ),
        "|---|---|---|---|---|---|---|---|",
    ]
    levels = [level for level in LEVELS if f"cold {level}" in found]
    for level in levels:
        rates = " | ".join(f"{found[f'{what} {level}'][0]:,.0f}" for what in ("run_code", "run_command", "read"))
        warm = WARM if level != "none" else ""
        lines.append(
            f"| {level} | {_spread(found[f'cold {level}'])} | {COLD.get(level, '')} "
            f"| {_spread(found[f'warm {level}'])} | {warm} | {rates} |"
        )
    missing = [level for level in LEVELS if level not in levels]
    lines += ["", f"Not measured, or not to be had on this machine: {', '.join(missing)}."] if missing else []
    cores = len(os.sched_getaffinity(0))
    note = (
        f"{cores} cores, Python {platform.python_version()}, loopback, durable journal, {len(found['cold none'])} "
        f"starts of each kind, calls one after another; load average before: {load:.1f}."
    )
    lines += ["", note]
    return "\n".join(lines) + "\n"


def _spread(values: list[float]) -> str:
    middle, last = statistics.median(values), statistics.quantiles(values, n=100, method="inclusive")[98]
    return f"{middle:.0f} / {last:.0f}"


PLOT = """
import json, statistics, sys
import matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot as plt
found = json.load(open(sys.argv[1]))
levels = [name.split()[1] for name in found if name.startswith("cold ")]
figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4.5))
for place, kind in enumerate(("cold", "warm")):
    spots = [number + 0.4 * place for number in range(len(levels))]
    middles = [statistics.median(found[f"{kind} {level}"]) for level in levels]
    tails = [statistics.quantiles(found[f"{kind} {level}"], n=100, method="inclusive")[98] for level in levels]
    left.bar(spots, middles, 0.35, label=f"{kind}, p50; line to p99", color=("#868e96", "#d9480f")[place],
             yerr=[[0] * len(levels), [tail - middle for tail, middle in zip(tails, middles)]])
    for spot, middle in zip(spots, middles):
        left.text(spot, middle, f"{middle:.0f}", ha="center", va="bottom")
left.set_xticks([number + 0.2 for number in range(len(levels))], levels)
left.set(yscale="log", ylabel="ms", title="sandbox created to first output")
left.legend()
rates = [(name.removeprefix("shim "), statistics.median(figures)) for name, figures in found.items()
         if name.startswith("shim ")]
rates += [(f"{name.split()[0]}, {name.split()[1]}", figures[0]) for name, figures in found.items()
          if name.startswith("run_")]
right.barh([name for name, _ in rates], [rate for _, rate in rates],
           color=["#d9480f" if name.startswith("run_") else "#868e96" for name, _ in rates])
for place, (_, rate) in enumerate(rates):
    right.text(rate, place, f" {rate:,.0f}", va="center")
right.set(xscale="log", title="per second: tasks through each shim; calls in a sandbox")
right.margins(x=0.25)
right.invert_yaxis()
figure.tight_layout()
figure.savefig(sys.argv[2], dpi=110)
"""


def main() -> int:
    """Measure, print the tables, keep them and the plot in `benchmarks/results`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sandbox", description=__doc__)
    parser.add_argument("--starts", type=int, default=40, help="sandboxes of each kind")
    parser.add_argument("--rounds", type=int, default=3, help="of tasks through each shim; 0 = none")
    parser.add_argument("--port", type=int, default=19_600, help="the first of eight free ports")
    parser.add_argument("--levels", default=",".join(LEVELS), help="which; none is needed")
    parser.add_argument("--into", type=Path, default=Path(__file__).resolve().parent / "results")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="fl") as folder:
        found = measure(Path(folder), options.port, options.starts, options.levels.split(","))
    text = table(found, load)
    if options.rounds:
        through = asyncio.run(shims.measure(options.port + 4, options.rounds, ()))
        text += "\nTasks through each shim:\n\n" + shims.table(through, load)
        found.update((f"shim {name}", figures) for name, figures in through.items())
    print(text)
    options.into.mkdir(exist_ok=True)
    (options.into / "sandbox.md").write_text(text)
    (options.into / "sandbox.json").write_text(json.dumps(found, indent=1))
    plot.draw(options.into / "sandbox.json", options.into / "sandbox.png", install=True, script=PLOT)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

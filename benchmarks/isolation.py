"""`python -m benchmarks.isolation`: what isolation costs: tasks per second, and from the creation of a session to the
first output, cold and with an instance that waits. The daemons are the real ones; the levels take turns."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import flame
from benchmarks.starts import SERVICE, Stage, fill

LEVELS = ("none", "process", "gvisor", "microvm")
# Of one instance: a sandbox has two beside the service, gVisor's several, a machine is QEMU and who watches over it.
PROCESSES = {"none": 1, "process": 3, "gvisor": 4, "microvm": 2}
PAYLOAD = b"x" * 100
TASKS = {"none": 100_000, "process": 100_000, "gvisor": 100_000, "microvm": 20_000}
READY_S = {"microvm": 2.0}  # until an instance that was started is ready, as a copy of a saved machine
COLD = {"process": "200, 400 / 80, 150", "gvisor": "900, 1,500 / 400, 700", "microvm": "600, 1,200 / 300, 500"}
BUDGETS = {"share": "90 % / 98 %", "warm": "50, 100 / 20, 40"}  # must / aim


def throughput(connection: flame.Connection, level: str) -> float:
    """Tasks per second of one executor that is there already."""
    with connection.create_session(f"cold-{level}", min_instances=1, max_instances=1) as session:
        session.invoke(PAYLOAD)
        begun = time.perf_counter()
        tasks = TASKS[level]
        count = sum(len(output) == len(PAYLOAD) for output in session.map(PAYLOAD for _ in range(tasks)))
        took = time.perf_counter() - begun
    assert count == tasks
    return tasks / took


def first_output(connection: flame.Connection, application: str) -> float:
    """Milliseconds from the creation of a session to its first output."""
    begun = time.perf_counter()
    with connection.create_session(application, max_instances=1) as session:
        session.invoke(PAYLOAD)
        took = time.perf_counter() - begun
    while connection.list_executors(session.id):
        time.sleep(0.01)
    return took * 1000


def waiting(connection: flame.Connection, node: subprocess.Popen[str], level: str, starts: int) -> list[float]:
    """The first outputs of sessions for which one instance waits."""
    application = f"warm-{level}"
    attributes = flame.ApplicationAttributes(
        command=sys.executable, arguments=[str(SERVICE)], isolation=level, warm_instances=1, delay_release=0
    )
    connection.register_application(application, attributes)
    first_output(connection, application)
    found: list[float] = []
    for _ in range(starts):
        fill(node, PROCESSES[level])
        time.sleep(READY_S.get(level, 0.0))
        found.append(first_output(connection, application))
    connection.unregister_application(application)
    return found


def measure(folder: Path, port: int, rounds: int, starts: int, levels: list[str]) -> dict[str, list[float]]:
    """All figures, by name and level."""
    found: dict[str, list[float]] = {}
    stage = Stage(folder, port)
    for level in levels:
        with ExitStack() as stack:
            stack.enter_context(stage.daemon("flame.manager.daemon"))
            node = stack.enter_context(stage.node())
            connection = stack.enter_context(flame.connect(stage.endpoint))
            found[f"warm {level}"] = waiting(connection, node, level, starts)
    with ExitStack() as stack:
        stack.enter_context(stage.daemon("flame.manager.daemon"))
        stack.enter_context(stage.node())
        connection = stack.enter_context(flame.connect(stage.endpoint))
        for level in levels:
            attributes = flame.ApplicationAttributes(
                command=sys.executable, arguments=[str(SERVICE)], isolation=level, delay_release=0
            )
            connection.register_application(f"cold-{level}", attributes)
            first_output(connection, f"cold-{level}")
        for _ in range(starts):
            for level in levels:
                found.setdefault(f"cold {level}", []).append(first_output(connection, f"cold-{level}"))
        for _ in range(rounds):
            for level in levels:
                found.setdefault(f"tasks {level}", []).append(throughput(connection, level))
    return found


def table(found: dict[str, list[float]], load: float) -> str:
    """The figures in Markdown."""
    lines = ["| level | tasks/s | cold p50 / p99 ms | waiting p50 / p99 ms |", "|---|---|---|---|"]
    levels = [level for level in LEVELS if f"tasks {level}" in found]
    for level in levels:
        rate = statistics.median(found[f"tasks {level}"])
        lines.append(
            f"| {level} | {rate:,.0f} | {_spread(found[f'cold {level}'])} | {_spread(found[f'warm {level}'])} |"
        )
    lines += [f"| must / aim of {level} | | {COLD[level]} | {BUDGETS['warm']} |" for level in levels[1:]]
    lines.append("")
    pairs = zip(found["tasks process"], found["tasks none"], strict=True)
    share = statistics.median(process / none for process, none in pairs)
    lines.append(f"Tasks/s of `process` as a share of `none`, median of pairs of neighbouring runs: {share:.1%} "
                 f"(must / aim {BUDGETS['share']}).")  # fmt: skip
    cores = len(os.sched_getaffinity(0))
    lines.append(f"{cores} cores, Python {platform.python_version()}, loopback, durable journal, one executor, "
                 f"{TASKS['none']:,} tasks of {len(PAYLOAD)} bytes a run ({TASKS['microvm']:,} at microvm), "
                 f"{len(found['tasks none'])} runs, "
                 f"{len(found['cold none'])} starts of each kind; load average before: {load:.1f}.")  # fmt: skip
    return "\n".join(lines) + "\n"


def _spread(values: list[float]) -> str:
    middle, last = statistics.median(values), statistics.quantiles(values, n=100, method="inclusive")[98]
    return f"{middle:.0f} / {last:.0f}"


def main() -> int:
    """Measure, print the table, keep it in `benchmarks/results`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.isolation", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="runs of many tasks")
    parser.add_argument("--starts", type=int, default=40, help="sessions of each kind")
    parser.add_argument("--port", type=int, default=19_500, help="the first of four free ports")
    parser.add_argument("--levels", default=",".join(LEVELS), help="which; none and process are needed")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="fl") as folder:
        found = measure(Path(folder), options.port, options.rounds, options.starts, options.levels.split(","))
    text = table(found, load)
    print(text)
    into = Path(__file__).resolve().parent / "results"
    (into / "isolation.md").write_text(text)
    (into / "isolation.json").write_text(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

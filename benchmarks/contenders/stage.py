"""What every contender measures, in the same way: the job is written here once, the contenders only say how to call.

A contender calls `play` with four functions. On standard output it prints JSON lines: {"event": "first"} at the first
result, then one {"event": "result", ...} with its figures. CPU time is that of the whole process tree.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

PAYLOAD = b"x" * 100
TICKS = os.sysconf("SC_CLK_TCK")


def say(**fields: object) -> None:
    """One line for the benchmark that runs this process."""
    print(json.dumps(fields), flush=True)


def tree(root: int | None = None) -> dict[int, str]:
    """Processes of this tree, also those that left it but carry its FLAME_BENCH_MARK, and their commands."""
    root = root or os.getpid()
    parents: dict[int, int] = {}
    commands: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            stat = (entry / "stat").read_text()
            commands[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            marked = b"FLAME_BENCH_MARK=" + str(root).encode() + b"\0" in (entry / "environ").read_bytes() + b"\0"
        except OSError:
            continue
        parents[int(entry.name)] = (
            root if marked and int(entry.name) != root else int(stat.rsplit(")", 1)[1].split()[1])
        )
    members = {root}
    grown = True
    while grown:
        grown = False
        for pid, parent in parents.items():
            if parent in members and pid not in members:
                members.add(pid)
                grown = True
    return {pid: commands.get(pid, "") for pid in members}


def cpu_seconds(pids: dict[int, str]) -> dict[int, float]:
    """User and system time of each process so far."""
    spent: dict[int, float] = {}
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        spent[pid] = (int(fields[11]) + int(fields[12])) / TICKS
    return spent


def pss_mb(pids: dict[int, str]) -> float:
    """Proportional share of memory of these processes, in MB."""
    total = 0
    for pid in pids:
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            continue
        total += next((int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")), 0)
    return total / 1000


def percentile(values: list[float], share: float) -> float:
    """The value that `share` of the sorted values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


@contextmanager
def timed(name: str, count: int, out: dict[str, float]) -> Iterator[None]:
    """Add `<name>_per_s` and `<name>_cpu_us` (whole tree, per task, and per role) to `out`."""
    pids = tree()
    before = cpu_seconds(pids)
    started = time.perf_counter()
    yield
    took = time.perf_counter() - started
    after = cpu_seconds(pids)
    out[f"{name}_per_s"] = count / took
    out[f"{name}_cpu_us"] = sum(after[pid] - before.get(pid, 0.0) for pid in after) / count * 1e6
    for pid, command in pids.items():
        role = role_of(pid, command)
        spent = (after.get(pid, 0.0) - before.get(pid, 0.0)) / count * 1e6
        if role:
            out[f"{name}_cpu_us_{role}"] = out.get(f"{name}_cpu_us_{role}", 0.0) + spent


def role_of(pid: int, command: str) -> str:
    """Which part of the contender a process is, empty when it has no parts worth telling apart."""
    if pid == os.getpid():
        return "client"
    for text, role in (
        ("flame.local.daemon", "cluster"),
        ("flame-session-manager", "manager"),
        ("flame.manager", "manager"),
        ("flame-executor-manager", "node"),
        ("flame.node", "node"),
        ("echo_service", "instance"),
        ("raylet", "raylet"),
        ("gcs_server", "gcs"),
        ("ray::", "worker"),
    ):
        if text in command:
            return role
    return "other"


def play(
    *,
    one: Callable[[bytes], bytes],
    many: Callable[[int], int],
    futures: Callable[[int], int],
    sleepers: Callable[[int, float], None] | None = None,
) -> None:
    """Run the job: the first result, idle memory, `many` in bulk, one `futures` each, one at a time, 10 ms tasks."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tasks", type=int, default=30_000)
    parser.add_argument("--rounds", type=int, default=1, help="of the bulk part; the medians are printed")
    parser.add_argument("--singles", type=int, default=1_000)
    options = parser.parse_args()
    figures: dict[str, float] = {}
    assert one(PAYLOAD) == PAYLOAD
    say(event="first")
    assert many(200) == 200  # both executors warm
    time.sleep(1)
    own = {os.getpid()}
    figures["idle_pss_mb"] = pss_mb({pid: command for pid, command in tree().items() if pid not in own})
    for name, bulk in (("bulk", many), ("futures", futures)):
        rounds: list[dict[str, float]] = []
        for _ in range(options.rounds):
            out: dict[str, float] = {}
            with timed(name, options.tasks, out):
                assert bulk(options.tasks) == options.tasks
            rounds.append(out)
        for key in rounds[0]:
            figures[key] = statistics.median(out[key] for out in rounds)
    times: list[float] = []
    for _ in range(options.singles):
        started = time.perf_counter()
        one(PAYLOAD)
        times.append((time.perf_counter() - started) * 1e6)
    figures["single_p50_us"] = percentile(times, 0.5)
    figures["single_p99_us"] = percentile(times, 0.99)
    if sleepers is not None:
        count = 200
        sleepers(4, 0.010)  # everybody may learn, untimed, that tasks are long now
        started = time.perf_counter()
        sleepers(count, 0.010)
        figures["sleep_share"] = count * 0.010 / 2 / (time.perf_counter() - started)
    say(event="result", **figures)

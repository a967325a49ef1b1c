"""`python -m benchmarks.scheduler`: how long a pass of the scheduler takes, and how well tenants share.

Clusters are described to the real scheduler in this process; no daemon runs and nothing sleeps. Times are of this
machine, shares are in virtual time and the same everywhere.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.__main__ import machine
from benchmarks.scheduling import memory, passes, plot, report, shares
from benchmarks.scheduling.clusters import Size

LADDER = (10, 100, 1_000, 10_000)
QUICK = (10, 100)


def measure(ladder: tuple[int, ...], samples: int, limit_s: float) -> dict[str, Any]:
    """All figures, for clusters with as many nodes and sessions as the ladder says in all combinations."""
    largest = ladder[-1]
    found: dict[str, Any] = {"pass": [], "turn": [], "first": [], "reasons": {}, "memory": {}}
    for nodes in ladder:
        for sessions in ladder:
            add(found["pass"], "passes", "", Size(nodes, sessions), passes.after_events, samples, limit_s)
    for count in ladder[-2:]:
        many = Size(count, count, tenants=max(10, count // 10))
        add(found["pass"], "passes", "a tenant for ten sessions", many, passes.after_events, samples, limit_s)
        mixed = Size(count, count, shapes=100)
        add(found["pass"], "passes", "100 shapes", mixed, passes.after_events, samples, limit_s)
    for count in ladder:
        size = Size(count, count)
        add(found["turn"], "turns of the engine", "", size, passes.in_engine, samples, limit_s)
        say(f"first pass: {count:,} sessions on {count:,} empty nodes")
        found["first"].append({"nodes": count, "sessions": count} | passes.first(size, 3 if count > 1_000 else 5))
    say(f"reasons and memory: {largest:,} sessions on {largest:,} nodes")
    found["reasons"] = passes.reasons(Size(largest, largest), 5)
    found["memory"] = memory.per_object(Size(largest, largest))
    say("shares of three tenants over three minutes of virtual time")
    found["shares"] = shares.as_figures(shares.replay())
    return found


def add(
    into: list[dict[str, Any]], what: str, variant: str, size: Size, take: Any, samples: int, limit_s: float
) -> None:
    """Measure one cluster."""
    began = time.perf_counter()
    gc.collect()
    figures = take(size, samples, limit_s)
    into.append({"nodes": size.nodes, "sessions": size.sessions, "variant": variant, "figures": figures})
    name = f", {variant}" if variant else ""
    say(f"{what}: {size.sessions:,} sessions on {size.nodes:,} nodes{name} ({time.perf_counter() - began:.1f} s)")


def say(text: str) -> None:
    """Progress."""
    print(text, file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and write benchmarks/results/scheduler.{md,json,png}."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scheduler", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small clusters and few samples: does it work at all")
    parser.add_argument("--into", type=Path, default=Path(__file__).resolve().parent / "results", metavar="FOLDER")
    parser.add_argument("--samples", type=int, default=100, help="of each kind of event (default 100)")
    parser.add_argument(
        "--limit", type=float, default=1.5, help="seconds for each kind of event in each cluster (default 1.5)"
    )
    options = parser.parse_args(arguments)
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)  # as the session manager has it
    began = time.perf_counter()
    found = measure(QUICK, 3, 1.0) if options.quick else measure(LADDER, options.samples, options.limit)
    text = f"{machine()}\n\n{report.text(found)}"
    options.into.mkdir(parents=True, exist_ok=True)
    (options.into / "scheduler.md").write_text(text)
    (options.into / "scheduler.json").write_text(json.dumps(found))
    print(text)
    plot.draw(options.into / "scheduler.json", options.into / "scheduler.png", install=not options.quick)
    say(f"took {time.perf_counter() - began:.0f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""The figures as tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

BUDGETS_MS = {1_000: 3.0, 10_000: 10.0}  # of one pass, with as many sessions on as many nodes

_SHARES = (
    "Tenants of weight 1, 2 and 5 share {} executors in virtual time. The error is the largest difference between what "
    "one of them holds and what it deserves, in executors, after 10 s of each phase."
)


def text(found: dict[str, Any]) -> str:
    """Everything that was measured."""
    parts = [
        "## One pass after one event",
        _events(found),
        "## The same against the size of the cluster",
        "Median in ms. 10 tenants and 4 shapes of sessions; 4 executors fit on a node, and all nodes are full.",
        _sizes(found),
        "## Whole turns of the engine",
        "Median / 99th percentile in ms; the pass is part of the turn.",
        _grid(found["turn"]),
        "## The first pass over empty nodes",
        _table(
            ("sessions and nodes", "executors started", "median ms", "CPU ms"),
            ((_n(r["nodes"]), _n(r["starts"]), _ms(r["p50_ms"]), _ms(r["cpu_p50_ms"])) for r in found["first"]),
        ),
        "## Reasons",
        _table(
            ("what", "median ms", "99th percentile ms"),
            ((name, _ms(f["p50_ms"]), _ms(f["p99_ms"])) for name, f in found["reasons"].items()),
        ),
        "## Memory of the scheduler",
        _table(("for each", "bytes"), ((name, _n(value)) for name, value in found["memory"].items())),
        "## Shares of three tenants",
        _SHARES.format(found["shares"]["executors"]),
        _table(
            ("phase", "worst error", "mean error", "settled to within one executor after"),
            (
                (p["title"], f"{p['worst']:.2f}", f"{p['mean']:.2f}", f"{p['settled_ms'] / 1000:.1f} s")
                for p in found["shares"]["phases"]
            ),
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _events(found: dict[str, Any]) -> str:
    """All kinds of event on the largest clusters with as many sessions as nodes, and what is over its budget."""
    rows = [row for row in found["pass"] if row["nodes"] == row["sessions"]]
    largest = sorted({row["nodes"] for row in rows})[-2:]
    rows = [row for row in rows if row["nodes"] in largest]
    limits = [f"{_n(n)} on {_n(n)}: {BUDGETS_MS[n]:g} ms" for n in largest if n in BUDGETS_MS]
    budget = f" The median must be under: {', '.join(limits)}; what is over it is bold." if limits else ""
    note = f"Median / 99th percentile in ms, in this process, wall time.{budget}"
    return f"{note}\n\n{_grid(rows)}"


def _grid(rows: Sequence[dict[str, Any]]) -> str:
    head = ["event"]
    for row in rows:
        variant = f", {row['variant']}" if row.get("variant") else ""
        head.append(f"{_n(row['sessions'])} on {_n(row['nodes'])}{variant}")
    lines: list[Sequence[str]] = []
    for kind in rows[0]["figures"]:
        cells = [kind]
        for row in rows:
            figures = row["figures"][kind]
            middle = _ms(figures["p50_ms"])
            if figures["p50_ms"] > BUDGETS_MS.get(row["nodes"], float("inf")):
                middle = f"**{middle}**"
            cells.append(f"{middle} / {_ms(figures['p99_ms'])}")
        lines.append(cells)
    return _table(head, lines)


def _sizes(found: dict[str, Any]) -> str:
    rows = [row for row in found["pass"] if not row["variant"]]
    kinds = list(rows[0]["figures"])
    return _table(
        ("nodes", "sessions", *kinds),
        ((_n(r["nodes"]), _n(r["sessions"]), *(_ms(r["figures"][kind]["p50_ms"]) for kind in kinds)) for r in rows),
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines)


def _n(value: float) -> str:
    return f"{value:,.0f}"


def _ms(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"

"""What flmping reports about a run of tasks."""

from __future__ import annotations

from collections.abc import Sequence

_RULE = "=" * 60


def percentile(ordered: Sequence[float], share: float) -> float:
    """The nearest-rank percentile of ascending values, `share` in (0, 1]; 0 for none."""
    if not ordered:
        return 0.0
    rank = -int(-share * len(ordered) // 1)  # rounded up
    return ordered[min(len(ordered), max(1, rank)) - 1]


def duration_text(seconds: float) -> str:
    """A latency with three figures: 85 us, 1.53 ms, 12.4 ms, 2.10 s."""
    if seconds < 0.0009995:
        return f"{seconds * 1e6:.0f} us"
    if seconds < 0.9995:
        value = seconds * 1e3
        return f"{value:.2f} ms" if value < 9.995 else f"{value:.1f} ms" if value < 99.95 else f"{value:.0f} ms"
    return f"{seconds:.2f} s"


def benchmark_document(total: int, failed: int, seconds: float, latencies: Sequence[float]) -> dict[str, object]:
    """The same figures for programs; null where there are none."""
    ordered = sorted(latencies)
    succeeded = total - failed

    def milliseconds(share: float) -> float | None:
        return percentile(ordered, share) * 1e3 if ordered else None

    return {
        "seconds": seconds,
        "succeeded": succeeded,
        "failed": failed,
        "tasks_per_second": succeeded / seconds if seconds > 0 else None,
        "latency_ms": {"p50": milliseconds(0.50), "p99": milliseconds(0.99)},
    }


def benchmark_lines(total: int, failed: int, seconds: float, latencies: Sequence[float]) -> list[str]:
    """The block that `flmping -p` prints. `latencies` in seconds, from the submission of a task to its result."""
    ordered = sorted(latencies)
    succeeded = total - failed
    rate = succeeded / seconds if seconds > 0 else 0.0
    latency = f"p50 {duration_text(percentile(ordered, 0.50))}, p99 {duration_text(percentile(ordered, 0.99))}"
    rows = (
        ("Duration:", f"{seconds:.2f}s"),
        ("Succeeded:", f"{succeeded}/{total}"),
        ("Failed:", f"{failed}"),
        ("Throughput:", f"{rate:.2f} tasks/sec"),
        ("Latency:", latency if ordered else "-"),
    )
    return ["", _RULE, "BENCHMARK RESULTS", _RULE, *(f"{label:<17}{value}" for label, value in rows), _RULE]

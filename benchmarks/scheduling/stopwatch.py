"""Wall and CPU time of many short stretches of code, and what is said of them."""

from __future__ import annotations

import statistics
import time
from types import TracebackType


class Stopwatch:
    """`with stopwatch:` takes one sample. CPU time is the calling thread's, without others on the machine."""

    def __init__(self) -> None:
        self.wall_ms: list[float] = []
        self.cpu_ms: list[float] = []
        self._began = (0.0, 0.0)

    def __enter__(self) -> None:
        self._began = (time.thread_time(), time.perf_counter())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        ended, cpu = time.perf_counter(), time.thread_time()
        self.cpu_ms.append((cpu - self._began[0]) * 1000)
        self.wall_ms.append((ended - self._began[1]) * 1000)

    def figures(self) -> dict[str, float]:
        """Median and 99th percentile in milliseconds, and how many samples they come from."""
        return {
            "p50_ms": statistics.median(self.wall_ms),
            "p99_ms": percentile(self.wall_ms, 99),
            "cpu_p50_ms": statistics.median(self.cpu_ms),
            "cpu_p99_ms": percentile(self.cpu_ms, 99),
            "samples": len(self.wall_ms),
        }


def percentile(values: list[float], percent: int) -> float:
    """The smallest value that so many percent of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]

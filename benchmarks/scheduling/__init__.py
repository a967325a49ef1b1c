"""Parts of `python -m benchmarks.scheduler`: clusters in memory, what happens to them, shares over time, the report."""

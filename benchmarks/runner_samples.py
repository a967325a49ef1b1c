"""What `benchmarks.runner` calls: a module that instances import."""

from __future__ import annotations


def increment(value: int) -> int:
    return value + 1

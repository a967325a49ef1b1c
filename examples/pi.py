"""Pi by throwing darts: `python pi.py [--darts N] [--calls N]`."""

from __future__ import annotations

import argparse
import random

import flame


@flame.function(max_retries=2)
def hits(darts: int, seed: int) -> int:
    """How many of the darts land in the quarter of a circle."""
    dice = random.Random(seed)
    return sum(dice.random() ** 2 + dice.random() ** 2 <= 1.0 for _ in range(darts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--darts", type=int, default=4_000_000)
    parser.add_argument("--calls", type=int, default=40)
    arguments = parser.parse_args()
    each = arguments.darts // arguments.calls
    futures = [hits.remote(each, seed) for seed in range(arguments.calls)]
    inside = sum(future.get() for future in flame.progress(futures, "throwing"))
    print(f"pi is about {4 * inside / (each * arguments.calls):.4f}")


if __name__ == "__main__":
    main()

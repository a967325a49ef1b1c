"""The price of a European call option by simulation, against the formula of Black and Scholes.

`python monte_carlo_option_pricing.py [--paths N]`
"""

from __future__ import annotations

import argparse
import math
import random
from functools import partial
from statistics import NormalDist, fmean, stdev
from typing import NamedTuple

import flame


class Option(NamedTuple):
    """A call option; rate and volatility per year, maturity in years."""

    spot: float
    strike: float
    rate: float
    volatility: float
    maturity: float


def mean_payoff(option: Option, paths: int, seed: int) -> float:
    """The mean of the discounted payoffs of so many paths and of their mirror images."""
    dice = random.Random(seed)
    drift = (option.rate - option.volatility**2 / 2) * option.maturity
    spread = option.volatility * math.sqrt(option.maturity)
    total = 0.0
    for _ in range(paths):
        shock = spread * dice.gauss(0.0, 1.0)
        for sign in (1.0, -1.0):
            total += max(0.0, option.spot * math.exp(drift + sign * shock) - option.strike)
    return math.exp(-option.rate * option.maturity) * total / (2 * paths)


def black_scholes(option: Option) -> float:
    """The exact price."""
    spread = option.volatility * math.sqrt(option.maturity)
    first = (math.log(option.spot / option.strike) + option.rate * option.maturity) / spread + spread / 2
    normal = NormalDist().cdf
    discounted = option.strike * math.exp(-option.rate * option.maturity)
    return option.spot * normal(first) - discounted * normal(first - spread)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--paths", type=int, default=2_000_000)
    arguments = parser.parse_args()
    option = Option(spot=100.0, strike=105.0, rate=0.03, volatility=0.2, maturity=1.0)
    batches = 200
    with flame.Executor() as executor:
        simulate = partial(mean_payoff, option, arguments.paths // batches)
        means = list(executor.map(simulate, range(batches), chunksize=5))
    error = stdev(means) / math.sqrt(batches)
    print(f"simulated {fmean(means):.3f} +- {error:.3f}, exact {black_scholes(option):.3f}")


if __name__ == "__main__":
    main()

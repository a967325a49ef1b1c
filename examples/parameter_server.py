"""Workers that train a linear model against a parameter server: `python parameter_server.py [--rounds N]`.

The server is an object of ours that lives in one instance. Workers call nothing themselves: a gradient is a future
that becomes an argument of the server's update, so the parameters go from instance to instance.
"""

from __future__ import annotations

import argparse

import numpy as np
import numpy.typing as npt

import flame

Array = npt.NDArray[np.float64]
WEIGHTS = np.array([2.0, -1.0, 0.5, 3.0])


class ParameterServer:
    """Holds the parameters and moves them along gradients."""

    def __init__(self, size: int, rate: float) -> None:
        self.weights = np.zeros(size)
        self.rate = rate

    def update(self, gradients: list[Array]) -> Array:
        """One step along the mean gradient; the new parameters."""
        self.weights -= self.rate * np.mean(gradients, axis=0)
        return self.weights


def gradient(weights: Array, seed: int) -> Array:
    """That of the squared error on a batch of noisy data."""
    dice = np.random.default_rng(seed)
    inputs = dice.normal(size=(256, len(weights)))
    targets = inputs @ WEIGHTS + dice.normal(scale=0.1, size=256)
    return 2.0 * inputs.T @ (inputs @ weights - targets) / len(inputs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--workers", type=int, default=4)
    arguments = parser.parse_args()
    with flame.Runner("parameter-server") as runner:
        server = runner.service(ParameterServer(len(WEIGHTS), rate=0.1))
        worker = runner.service(gradient)
        weights = server.update([np.zeros(len(WEIGHTS))])
        for step in range(arguments.rounds):
            seeds = range(step * arguments.workers, (step + 1) * arguments.workers)
            weights = server.update([worker(weights, seed) for seed in seeds])
        learned = weights.get()
    print(f"learned {np.round(learned, 2)}, which is off by {np.abs(learned - WEIGHTS).max():.3f}")


if __name__ == "__main__":
    main()

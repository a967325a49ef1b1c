"""Q-learning with a replay buffer: `python replay_buffer.py [--episodes N]`.

Actors walk through a corridor with the values learned so far and hand their steps to a buffer, which lives in one
instance. The learner, in this process, draws samples from it.
"""

from __future__ import annotations

import argparse
import random

import flame

LENGTH = 8  # cells of the corridor; the reward is at its right end
LEFT, RIGHT = 0, 1
DISCOUNT, RATE, CURIOSITY = 0.9, 0.5, 0.3

Step = tuple[int, int, float, int]  # state, action, reward, next state
Values = list[list[float]]


class ReplayBuffer:
    """The last `capacity` steps."""

    def __init__(self, capacity: int, seed: int = 0) -> None:
        self.capacity = capacity
        self.steps: list[Step] = []
        self.dice = random.Random(seed)

    def add(self, episodes: list[list[Step]]) -> int:
        """Keep the steps of these episodes; how many there are now."""
        for episode in episodes:
            self.steps += episode
        del self.steps[: -self.capacity]
        return len(self.steps)

    def sample(self, count: int) -> list[Step]:
        """So many of them, by chance."""
        return self.dice.choices(self.steps, k=count)


def act(values: Values, seed: int) -> list[Step]:
    """One episode of an actor that mostly does what seems best."""
    dice = random.Random(seed)
    state, steps = 0, list[Step]()
    while state < LENGTH - 1 and len(steps) < 200:
        curious = dice.random() < CURIOSITY or values[state][LEFT] == values[state][RIGHT]
        action = dice.choice((LEFT, RIGHT)) if curious else int(values[state][RIGHT] > values[state][LEFT])
        following = max(0, state - 1) if action == LEFT else state + 1
        steps.append((state, action, float(following == LENGTH - 1), following))
        state = following
    return steps


def learn(values: Values, steps: list[Step]) -> None:
    """Move the values towards what the steps say."""
    for state, action, reward, following in steps:
        target = reward + DISCOUNT * max(values[following]) * (following < LENGTH - 1)
        values[state][action] += RATE * (target - values[state][action])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=120)
    arguments = parser.parse_args()
    values: Values = [[0.0, 0.0] for _ in range(LENGTH)]
    actors = 4
    with flame.Runner("replay-buffer") as runner:
        buffer = runner.service(ReplayBuffer(capacity=2000))
        actor = runner.service(act)
        for first in range(0, arguments.episodes, actors):
            # The episodes go from the actors to the buffer; nobody here waits for them.
            buffer.add([actor(values, seed) for seed in range(first, first + actors)])
            learn(values, buffer.sample(400).get() if first else [])
    path = " ".join("right" if right > left else "left" for left, right in values[:-1])
    print(f"learned: {path}; the first step is worth {max(values[0]):.2f} of {DISCOUNT ** (LENGTH - 2):.2f}")


if __name__ == "__main__":
    main()

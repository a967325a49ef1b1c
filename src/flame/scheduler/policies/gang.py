"""All or nothing: sessions may ask that all their executors start together."""

from __future__ import annotations

from flame.scheduler.policy import Policy


class Gang(Policy):
    """Allows sessions with `gang: true`; placing them is the scheduler's."""

    name = "gang"
    gangs = True

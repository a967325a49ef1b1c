"""The service of the benchmarks: gives its input back; an input `sleep <seconds>` sleeps first."""

from __future__ import annotations

import time

import flame


class Echo(flame.FlameService):
    """No work at all, so that only the engine is measured."""

    def on_session_enter(self, context: flame.SessionContext) -> None:
        """Nothing to prepare."""

    def on_task_invoke(self, context: flame.TaskContext) -> bytes | None:
        """The input."""
        given = context.input
        if given is not None and given.startswith(b"sleep "):
            time.sleep(float(given[6:]))
        return given

    def on_session_leave(self) -> None:
        """Nothing to end."""


if __name__ == "__main__":
    flame.run(Echo())

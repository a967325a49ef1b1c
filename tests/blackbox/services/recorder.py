"""A service that writes down when each task begins and ends: JSON {"name", "seconds", "fail_until"}."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import flame


def note(text: str) -> None:
    """One line; lines of several processes stand in the order in which they were written."""
    with Path(os.environ["NOTES"]).open("a") as file:
        file.write(text + "\n")


class Recorder(flame.FlameService):
    """Fails in all attempts before number `fail_until`."""

    def on_task_invoke(self, context: flame.TaskContext) -> bytes:
        asked = json.loads(context.input or b"{}")
        name = asked["name"]
        note(f"begin {name}")
        try:
            time.sleep(asked.get("seconds", 0))
            if context.attempt < asked.get("fail_until", 0):
                raise ValueError(f"attempt {context.attempt} of {name} is not good enough")
        finally:
            note(f"end {name}")
        return f"{name} {context.attempt}".encode()


if __name__ == "__main__":
    flame.run(Recorder())

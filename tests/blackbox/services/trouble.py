"""A service that does what its input says, also what no service should: JSON {"do": ..., ...}."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import flame


def note(text: str) -> None:
    """One line into the file that FLAME_TEST_NOTES names, so that a test sees what really ran."""
    path = os.environ.get("NOTES")
    if path:
        with Path(path).open("a") as file:
            file.write(text + "\n")


class Trouble(flame.FlameService):
    """Answers {"echo": n, "pid": its process} unless told otherwise."""

    def on_session_enter(self, context: flame.SessionContext) -> None:
        self.session = context.session_id
        data = context.common_data()
        if data == b"refuse":
            raise RuntimeError("no model here")
        if data == b"die":
            os._exit(17)

    def on_task_invoke(self, context: flame.TaskContext) -> bytes | None:
        asked = json.loads(context.input or b"{}")
        note(f"{self.session} {context.task_id} {os.getpid()}")
        what = asked.get("do", "echo")
        if what == "raise":
            raise ValueError("the value is wrong")
        if what == "exit":
            os._exit(3)
        if what == "leave":
            sys.exit(4)
        if what == "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        if what == "loop":
            while True:
                pass
        if what == "sleep":
            time.sleep(asked["seconds"])
        if what == "big":
            return bytes(asked["size"])
        if what == "text":
            return "not bytes"  # type: ignore[return-value]
        if what == "print":
            line = "x" * 999
            for _ in range(asked["lines"]):
                sys.stdout.write(line + "\n")
        return json.dumps({"echo": asked.get("n"), "pid": os.getpid()}).encode()

    def on_session_leave(self) -> None:
        note(f"{self.session} left")


if __name__ == "__main__":
    flame.run(Trouble())

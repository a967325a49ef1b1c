"""Runs the Python that a task brings, with its parts behind the first line's end as `data`; answers with what that
leaves in `answer`: bytes as they are, else its text, or the type of the error and its text."""

from __future__ import annotations

import os
from typing import Any

import flame

AHEAD = "FLAME_SESSION_ID" not in os.environ  # whether it was started before there was a session for it


class Evaluating(flame.FlameService):
    def on_session_enter(self, context: flame.SessionContext) -> None:
        self.names: dict[str, Any] = {"session_id": context.session_id, "ahead": AHEAD}

    def on_task_invoke(self, context: flame.TaskContext) -> bytes:
        source, _, data = (context.input or b"").partition(b"\0")
        names = self.names
        names["data"] = data
        try:
            exec(source.decode(), names)
        except flame.FlameError as error:
            return f"{type(error).__name__}: {error}".encode()
        answer = names.get("answer")
        return answer if isinstance(answer, bytes) else repr(answer).encode()


if __name__ == "__main__":
    flame.run(Evaluating())

"""Answers with what it got, as often as the first byte says; the task `length` gets the length of the common data."""

from __future__ import annotations

import flame


class Large(flame.FlameService):
    def on_session_enter(self, context: flame.SessionContext) -> None:
        self.common = context.common_data() or b""

    def on_task_invoke(self, context: flame.TaskContext) -> bytes:
        data = context.input or b""
        return str(len(self.common)).encode() if data == b"length" else data * data[0]


if __name__ == "__main__":
    flame.run(Large())

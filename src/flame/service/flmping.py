"""The service behind `flmping`: sleeps and allocates as told, and says so.

Input: JSON `{"duration": milliseconds or null, "memory": bytes or null}`, or none. Output: JSON `{"message": text}`.
"""

from __future__ import annotations

import os
import time

from flame.service.api import FlameService, TaskContext
from flame.service.runtime import run

_PAGE = 4096


class PingService(FlameService):
    """Answers each task with where it ran and what it took."""

    def __init__(self) -> None:
        self._host = os.uname().nodename
        self._nothing = self._message(0, 0)
        self._parsed: tuple[bytes, int, int] = (b"", 0, 0)  # the last input and what it asked for

    def on_task_invoke(self, context: TaskContext) -> bytes:
        """Raises ValueError when the input is no JSON object with numbers, 0 or more."""
        if not context.input:
            return self._nothing
        if context.input != self._parsed[0]:
            self._parsed = (context.input, *parse(context.input))
        _, duration, memory = self._parsed
        if not duration and not memory:
            return self._nothing
        block = bytearray(memory)
        for page in range(0, memory, _PAGE):
            block[page] = 1  # the system gives memory only when it is written to
        if duration:
            time.sleep(duration / 1000)
        return self._message(duration, memory)

    def _message(self, duration: int, memory: int) -> bytes:
        import json

        text = f"Completed on <{self._host}> in <{duration}> milliseconds with <{_size(memory)}> memory"
        return json.dumps({"message": text}).encode()


def parse(data: bytes) -> tuple[int, int]:
    """Duration in milliseconds and memory in bytes from a task's input. Raises ValueError."""
    import json

    request = json.loads(data)
    if not isinstance(request, dict):
        raise ValueError(f"the input must be a JSON object, not {request!r}")
    values: list[int] = []
    for key in ("duration", "memory"):
        value = request.get(key)  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
        if value is not None and (not isinstance(value, int) or value < 0):
            raise ValueError(f"{key} must be a whole number, 0 or more, not {value!r}")
        values.append(int(value or 0))
    return values[0], values[1]


def _size(memory: int) -> str:
    if not memory:
        return "0"
    from flame.model.resources import format_size

    return format_size(memory)


def main() -> None:
    """The console script `flmping-service`."""
    run(PingService())


if __name__ == "__main__":
    main()

"""A service that says how many tasks it wants when it knows its session, and names another one if it shall."""

from __future__ import annotations

import asyncio
import sys
import threading

import flame


class Together(flame.FlameService):
    """Its tasks end when as many run as the session asks for; by threads."""

    def on_session_enter(self, context: flame.SessionContext) -> None:
        words = (context.common_data() or b"").decode().split()
        count = int(words[0])
        self.barrier = threading.Barrier(count)
        context.concurrency = count
        if "coroutines" in words:
            context.service = Coroutines(count)

    def on_task_invoke(self, context: flame.TaskContext) -> bytes:
        self.barrier.wait(30)
        return b"threads"


class Coroutines(flame.FlameService):
    """The same in an event loop."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.running = 0
        self.all_here = asyncio.Event()

    async def on_task_invoke(self, context: flame.TaskContext) -> bytes:
        self.running += 1
        if self.running == self.count:
            self.all_here.set()
        await asyncio.wait_for(self.all_here.wait(), 30)
        return b"coroutines"

    async def on_session_leave(self) -> None:
        sys.stdout.write("left\n")
        sys.stdout.flush()


if __name__ == "__main__":
    flame.run(Together())

"""Who wants to hear when a task or a session changes."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import contextmanager

from flame.engine.effects import Purge, SessionChanged, TaskChanged
from flame.engine.events import Unwatch, Watch
from flame.manager.turns import Turns


class Watcher:
    """One who waits. `changed` collects the ids of tasks that changed since it was last looked at."""

    def __init__(self) -> None:
        self.changed: dict[int, None] = {}
        self._due = False  # something changed that `wait` has not told yet
        self._woken = asyncio.Event()

    async def wait(self) -> None:
        """Until something changed since the last `wait` ended."""
        while not self._due:
            self._woken.clear()
            await self._woken.wait()
        self._due = False

    async def changes_within(self, seconds: float) -> bool:
        """As `wait`, but not longer than this; whether something changed."""
        if not self._due:
            self._woken.clear()
            timer = asyncio.get_running_loop().call_later(seconds, self._woken.set)
            try:
                await self._woken.wait()
            finally:
                timer.cancel()
        changed, self._due = self._due, False
        return changed

    def wake(self) -> None:
        """Something changed."""
        self._due = True
        self._woken.set()


class Watches:
    """All watchers, by session and task (0 = the session and all its tasks)."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._watchers: dict[str, dict[int, list[Watcher]]] = {}
        turns.handle(TaskChanged, self._task_changed)
        turns.handle(SessionChanged, self._session_changed)
        turns.handle(Purge, self._purged)

    @contextmanager
    def watch(self, session_id: str, task_id: int = 0) -> Generator[Watcher]:
        """A watcher that is told of changes until the block is left. From the block's start on it misses none."""
        watcher = Watcher()
        tasks = self._watchers.setdefault(session_id, {})
        tasks.setdefault(task_id, []).append(watcher)
        self._turns.post(Watch(session_id, task_id))
        self._turns.run_now()
        try:
            yield watcher
        finally:
            self._turns.post_later(Unwatch(session_id, task_id))
            tasks[task_id].remove(watcher)
            if not tasks[task_id]:
                del tasks[task_id]
            if not tasks and self._watchers.get(session_id) is tasks:
                del self._watchers[session_id]

    def _task_changed(self, effect: TaskChanged) -> None:
        tasks = self._watchers.get(effect.session_id)
        if tasks is None:
            return
        for task_id in effect.task_ids:
            for watcher in tasks.get(task_id, ()):
                watcher.wake()
        for watcher in tasks.get(0, ()):
            watcher.changed.update(dict.fromkeys(effect.task_ids))
            watcher.wake()

    def _session_changed(self, effect: SessionChanged) -> None:
        for watcher in self._watchers.get(effect.session_id, {}).get(0, ()):
            watcher.wake()

    def _purged(self, effect: Purge) -> None:
        for watchers in self._watchers.get(effect.session_id, {}).values():
            for watcher in watchers:
                watcher.wake()

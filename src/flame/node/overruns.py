"""Which running tasks have had their time: pure decisions, times come in from outside (seconds of any clock).

An instance works on the first `concurrency` of the tasks it holds, in the order in which it got them. A task among
them that runs longer than its time-out is told to stop; one that was told to and goes on for the grace time is
hopeless, and so is its instance.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import msgspec


class Sentence(msgspec.Struct, gc=False):
    """A task that shall stop. `since` is when it was told to."""

    reason: str
    timed_out: bool
    since: float


class Overruns:
    """The tasks of one instance that have a time-out or were told to stop; all others cost nothing here."""

    def __init__(self, grace: float) -> None:
        self._grace = grace
        self._timeouts: dict[int, float] = {}
        self._sentences: dict[int, Sentence] = {}
        self._running: dict[int, float] = {}  # when a task of the two above was first seen among the running ones

    @property
    def watching(self) -> bool:
        """Whether any task must be looked at."""
        return bool(self._timeouts or self._sentences)

    def given(self, task_ids: Iterable[int], timeout_ms: int) -> None:
        """The instance got these; `timeout_ms` 0 = none."""
        if timeout_ms:
            self._timeouts.update(dict.fromkeys(task_ids, timeout_ms / 1000))

    def cancelled(self, task_ids: Iterable[int], reason: str, now: float) -> None:
        """These were told to stop from outside."""
        for task_id in task_ids:
            self._sentences.setdefault(task_id, Sentence(reason, timed_out=False, since=now))

    def ended(self, task_ids: Iterable[int]) -> None:
        """These are not the instance's any more."""
        for task_id in task_ids:
            self._timeouts.pop(task_id, None)
            self._sentences.pop(task_id, None)
            self._running.pop(task_id, None)

    def look(self, running: Collection[int], now: float) -> tuple[list[int], list[int]]:
        """Tasks whose time is over now, which are told to stop by this; and tasks that are hopeless."""
        for task_id in running:
            if task_id in self._timeouts or task_id in self._sentences:
                self._running.setdefault(task_id, now)
        over: list[int] = []
        hopeless: list[int] = []
        for task_id in self._running:
            if self._due(task_id) > now:
                continue
            if task_id in self._sentences:
                hopeless.append(task_id)
            else:
                over.append(task_id)
                reason = f"task timed out after {round(self._timeouts[task_id] * 1000)} ms"
                self._sentences[task_id] = Sentence(reason, timed_out=True, since=now)
        return over, hopeless

    def sentence(self, task_id: int) -> Sentence:
        """Why the task was told to stop."""
        return self._sentences[task_id]

    def next_look(self) -> float | None:
        """When to look again at the latest, None = not before something changes."""
        return min((self._due(task_id) for task_id in self._running), default=None)

    def _due(self, task_id: int) -> float:
        began = self._running[task_id]
        sentence = self._sentences.get(task_id)
        if sentence is None:
            return began + self._timeouts[task_id]
        return max(began, sentence.since) + self._grace

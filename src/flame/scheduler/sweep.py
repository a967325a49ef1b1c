"""Taking back where many queues wait in vain: each pass tries some, and a sweep of passes tries all of them."""

from __future__ import annotations

from collections.abc import Hashable

from flame.scheduler.queues import Queue, Waiting

FRUITLESS = 32  # queues per pass for which nothing could be taken back, before the others wait for the next pass
RESUME_MS = 100  # when that comes without any change


class Sweep:
    """The queues that were tried in vain since it began; they are tried again in the next one."""

    def __init__(self, waiting: Waiting) -> None:
        self.waiting = waiting
        self._tired: set[Queue] = set()
        self._began: Hashable = None  # what had changed by then

    def hopeful(self, changes: Hashable) -> set[Queue]:
        """The queues to be tried in this pass: where there are few, all of them."""
        queues = set(self.waiting.queues.values())
        fresh = queues - self._tired
        if not fresh or len(queues) <= FRUITLESS:
            self._tired.clear()
            fresh = queues
        if not self._tired:
            self._began = changes
        return fresh

    def tried(self, queue: Queue) -> None:
        """It was tried in vain."""
        self._tired.add(queue)

    def renew(self, queue: Queue) -> None:
        """Another session came into the queue."""
        self._tired.discard(queue)

    def resume(self, changes: Hashable, now: int) -> int:
        """When the next pass is due, the same for all until then: the sweep has to go on, or another one to follow for
        what changed since this one began (others may have more now, also by the passes themselves). 0 = neither."""
        if not self._tired or (self._began == changes and self._tired.issuperset(self.waiting.queues.values())):
            return 0
        return now - now % RESUME_MS + RESUME_MS

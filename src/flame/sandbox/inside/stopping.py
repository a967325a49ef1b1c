"""All that the sandbox started, stopped and let go on again."""

from __future__ import annotations

import signal
from collections.abc import Callable

from flame.sandbox.inside import processes
from flame.sandbox.inside.waiting import Clock


class Stopping:
    """`known` are the processes that the service started itself."""

    def __init__(self, clock: Clock, known: Callable[[], set[int]]) -> None:
        self.alone = False  # all processes that can be seen here are of this sandbox
        self._clock = clock
        self._known = known
        self._stopped: set[int] = set()
        self._holds = 0

    def stop(self) -> None:
        """None of them runs any more when this returns. Each `stop` needs a `go`."""
        self._holds += 1
        if self._holds > 1:
            return
        self._clock.stop()
        while True:
            # Those that were started meanwhile; what is stopped starts none.
            more = processes.everybody(self._known(), alone=self.alone) - self._stopped
            if not more:
                return
            processes.signal_all(more, signal.SIGSTOP)
            self._stopped |= more

    def go(self) -> None:
        """Undo one `stop`."""
        self._holds = max(0, self._holds - 1)
        if self._holds:
            return
        processes.signal_all(self._stopped, signal.SIGCONT)
        self._stopped.clear()
        self._clock.go()

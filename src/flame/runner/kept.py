"""Executors that outlive who used them, for the next one that wants the same: a session's start is not paid twice."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import Any

from flame.model.errors import FlameError
from flame.model.states import SessionState
from flame.runner.executor import Executor

KEPT_S = 300.0  # without anybody who uses it


class KeptExecutors:
    """Those of this process. One has one user at a time; it ends with the process at the latest."""

    def __init__(self, keep: float = KEPT_S) -> None:
        """`keep` in seconds."""
        self._keep = keep
        self._lock = threading.Lock()
        self._idle: list[tuple[object, Executor, threading.Timer]] = []  # by what it was made for, the last used last
        self._made_for: dict[Executor, object] = {}

    def take(self, workers: int, arguments: dict[str, Any]) -> Executor:
        """One with so many workers and these arguments of an Executor. Raises FlameError."""
        wanted = (os.getpid(), workers, arguments, Path.cwd(), list(sys.path))
        while (known := self._find(wanted)) is not None:
            if _usable(known):
                return known
            self.drop(known)
        made = Executor(workers, **arguments)
        self._made_for[made] = wanted
        return made

    def _find(self, wanted: object) -> Executor | None:
        with self._lock:
            for place in reversed(range(len(self._idle))):
                made_for, executor, timer = self._idle[place]
                if made_for == wanted:
                    del self._idle[place]
                    timer.cancel()
                    return executor
        return None

    def give_back(self, executor: Executor) -> None:
        """Its user needs it no more; all calls have ended."""
        timer = threading.Timer(self._keep, self._expire, (executor,))
        timer.daemon = True
        with self._lock:
            self._idle.append((self._made_for[executor], executor, timer))
        timer.start()

    def drop(self, executor: Executor) -> None:
        """Nobody shall use it again: what has not ended is cancelled."""
        self._made_for.pop(executor, None)
        try:
            executor.abort()
        except FlameError:
            pass  # its session is gone

    def _expire(self, executor: Executor) -> None:
        with self._lock:
            left = [known for known in self._idle if known[1] is not executor]
            taken = len(left) == len(self._idle)
            self._idle = left
        if not taken:
            self.drop(executor)


def _usable(executor: Executor) -> bool:
    """Whether its session is there: somebody may have closed it, or the cluster is another one."""
    try:
        return executor.session_state() is SessionState.OPEN
    except FlameError:
        return False

"""What a program leaves open is closed at its end, or before, when nobody can use it any more.

Its sessions would stay open for ever otherwise.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from flame.model.errors import FlameError
from flame.runner.storage import background

if TYPE_CHECKING:
    from flame.client.synchronous import Connection

logger = logging.getLogger("flame.runner")


class Ending:
    """Closes something once, whoever comes first, the end of the program at the latest. `close` cancels calls that have
    not ended, `wait` returns when all have."""

    def __init__(
        self, connection: Connection, close: Callable[[], object], wait: Callable[[], object] = lambda: None
    ) -> None:
        self._connection = connection
        self._wait = wait
        self._close = close
        self._process = os.getpid()
        with _lock:
            _open[self] = None
        # Not before there is a connection: what ends the local cluster at exit must come after this.
        atexit.unregister(_end_all)
        atexit.register(_end_all)

    def close(self) -> None:
        """Close it. Does nothing when that was done, or in a process that was forked since."""
        with _lock:
            if _open.pop(self, self) is self or self._process != os.getpid():
                return
        self._close()

    def finish(self) -> None:
        """Close it when its calls have ended."""
        self._wait()
        self.close()

    def dropped(self) -> None:
        """Nobody can make further calls: close it when those that were made have ended. Never waits, and takes no lock:
        objects go at any time."""
        if self in _open:
            background.do(threading.Thread(target=self._finish_quietly, name="flame-ending", daemon=True).start)

    def _finish_quietly(self) -> None:
        try:
            self.finish()
        except FlameError as error:
            logger.debug("it can't be closed: %s", error)

    def end(self) -> None:
        """The program ends. A cluster that is away is not waited for."""
        try:
            if self._connection.connected:
                self.close()
        except Exception as error:  # the others have their turn, too
            logger.warning("what the program left open can't be closed: %s", error)


_lock = threading.Lock()
_open: dict[Ending, None] = {}


def _end_all() -> None:
    """What was opened last is closed first."""
    while True:
        with _lock:
            ending = next(reversed(_open), None)
        if ending is None:
            return
        ending.end()
        with _lock:
            _open.pop(ending, None)

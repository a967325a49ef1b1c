"""Large payloads that no task needs any more: what a client put into the object cache, or took from there, goes.

An input goes when its task has ended, an output with the future that it was taken from. What a client did not put or
take (it was gone, it only watched) stays until the end of the session. $FLAME_KEEP_PARCELS keeps all of them that long.
"""

from __future__ import annotations

import os
import queue
import threading
from typing import TYPE_CHECKING

from flame.client.futures import CancelledTaskError, TaskFuture
from flame.model.errors import FlameError, TaskFailedError
from flame.objects import parcels

if TYPE_CHECKING:
    from collections.abc import Iterable

    from flame.client.futures import Settled

VARIABLE = "FLAME_KEEP_PARCELS"


def ended(value: Settled) -> bool:
    """Whether this says that the task has ended, not only that nothing more will be heard of it."""
    return not isinstance(value, FlameError) or isinstance(value, TaskFailedError | CancelledTaskError)


def free_after(future: TaskFuture, parcel: bytes) -> None:
    """Let the input of a task go when that has ended."""

    def look(_: object) -> None:
        if ended(future._value):  # pyright: ignore[reportPrivateUsage]
            free(parcel)

    future.add_done_callback(look)


def free(parcel: bytes) -> None:
    """Delete what a parcel stands for, soon and in another thread. What fails is no harm: it goes after the session."""
    if os.environ.get(VARIABLE, "") in ("", "0"):
        _freeing.add(parcel)


def free_outputs(values: Iterable[Settled]) -> None:
    """Let outputs go that nobody will take."""
    for value in values:
        if type(value) is bytes and value[: parcels.SIZE] == parcels.MARK:
            free(value)


class _Freeing:
    """A thread that deletes what has come meanwhile, in one request."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # futures come here when they happen to go, this very thread's as well
        self._parcels: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._process = 0

    def add(self, parcel: bytes) -> None:
        """One more."""
        with self._lock:
            if self._process != os.getpid():
                self._process, self._parcels = os.getpid(), queue.SimpleQueue()
                threading.Thread(target=self._run, args=(self._parcels,), name="flame-freeing", daemon=True).start()
        self._parcels.put(parcel)

    def _run(self, waiting: queue.SimpleQueue[bytes]) -> None:
        while True:
            found = [waiting.get()]
            found += [waiting.get() for _ in range(waiting.qsize())]
            try:
                parcels.free(found)
            except FlameError:
                pass


_freeing = _Freeing()

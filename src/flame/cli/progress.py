"""A progress bar on a terminal; nothing at all elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self, TextIO

from flame.cli.times import span

_WIDTH = 30
_INTERVAL = 0.1
# A run that is over before a bar could be read shows none.
_DELAY = 0.5


class Progress:
    """Draws `done() of total` on a terminal's standard error until the block is left."""

    def __init__(self, total: int, done: Callable[[], int], stream: TextIO | None = None) -> None:
        self._total = total
        self._done = done
        self._stream = sys.stderr if stream is None else stream
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        if self._total > 0 and self._stream.isatty():
            self._thread = threading.Thread(target=self._draw, name="progress", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def _draw(self) -> None:
        start = time.monotonic()
        if self._over.wait(_DELAY):
            return
        while not self._over.wait(_INTERVAL):
            line = bar(self._done(), self._total, time.monotonic() - start)
            self._stream.write(f"\r{line}\x1b[K")
            self._stream.flush()
        self._stream.write("\r\x1b[K")
        self._stream.flush()


def bar(done: int, total: int, seconds: float) -> str:
    """One line: how much is done, how fast, and how long the rest will take at that pace."""
    filled = _WIDTH * done // total
    rate = done / seconds if seconds > 0 else 0.0
    rest = f", {span((total - done) / rate)} left" if rate > 0 and done < total else ""
    return f"[{'#' * filled}{'.' * (_WIDTH - filled)}] {done:,}/{total:,} {rate:,.0f} tasks/s{rest}"


class StatusLine:
    """One line on a terminal's standard error that is written over again and again; nothing elsewhere."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._shown = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown:
            self._write("")

    def show(self, text: str) -> None:
        """Put this text in place of the last one."""
        if self._stream.isatty():
            self._shown = True
            self._write(text)

    def _write(self, text: str) -> None:
        self._stream.write(f"\r{text}\x1b[K")
        self._stream.flush()

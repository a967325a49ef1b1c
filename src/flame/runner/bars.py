"""A progress bar over futures: that of tqdm, in a notebook too, or a plain one where tqdm is not installed."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, TextIO, TypeVar

from flame.client.synchronous_session import as_completed

if TYPE_CHECKING:
    from flame.client.futures import TaskFuture

F = TypeVar("F", bound="TaskFuture")
_WIDTH = 30
_PAUSE = 0.1  # seconds between two drawings


class Bar(Protocol):
    """What is told about progress."""

    def update(self, n: int = 1) -> Any: ...
    def close(self) -> Any: ...


def progress(futures: Iterable[F], description: str = "", *, bar: Bar | None = None) -> Iterator[F]:
    """The futures as they end, with a bar that shows how many have.

    for future in flame.progress(futures, "simulating"):
        ...
    """
    waiting = list(dict.fromkeys(futures))
    shown = bar or new_bar(len(waiting), description)
    ended: Iterator[Any] = as_completed(waiting)
    try:
        for future in ended:
            shown.update(1)
            yield future
    finally:
        shown.close()


def new_bar(total: int, description: str = "") -> Bar:
    """tqdm's bar for where this runs (a notebook, a terminal), or a plain one."""
    try:
        tqdm: Any = import_module("tqdm.auto").tqdm
    except ImportError:
        return PlainBar(total, description)
    return tqdm(total=total, desc=description or None)


class PlainBar:
    """One line that is drawn again and again; where `stream` is no terminal, only its end is written."""

    def __init__(self, total: int, description: str = "", stream: TextIO | None = None) -> None:
        self._total = total
        self._description = f"{description}: " if description else ""
        self._stream = stream or sys.stderr
        self._done = 0
        self._drawn = 0.0
        self._terminal = self._stream.isatty()

    def update(self, n: int = 1) -> None:
        """So many more are done."""
        self._done += n
        if self._terminal and time.monotonic() - self._drawn > _PAUSE:
            self._drawn = time.monotonic()
            self._stream.write("\r" + self._line())
            self._stream.flush()

    def close(self) -> None:
        """Nothing more comes."""
        self._stream.write(("\r" if self._terminal else "") + self._line() + "\n")
        self._stream.flush()

    def _line(self) -> str:
        share = self._done / self._total if self._total else 1.0
        filled = round(share * _WIDTH)
        return f"{self._description}{'#' * filled}{'.' * (_WIDTH - filled)} {self._done}/{self._total}"

"""A progress bar over futures or results: that of tqdm, in a notebook a widget, or a plain one without tqdm."""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Iterable, Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol, TextIO, TypeVar, cast, overload

from flame.client.futures import TaskFuture
from flame.client.synchronous_session import as_completed
from flame.model.errors import InvalidArgumentError

F = TypeVar("F", bound=TaskFuture)
T = TypeVar("T")
_WIDTH = 30
_PAUSE = 0.1  # seconds between two drawings


class Bar(Protocol):
    """What is told about progress."""

    def update(self, n: int = 1) -> Any: ...
    def close(self) -> Any: ...


@overload
def progress(futures: Iterable[F], description: str = "", *, bar: Bar | None = None) -> Iterator[F]: ...
@overload
def progress(futures: Iterable[T], description: str = "", *, total: int, bar: Bar | None = None) -> Iterator[T]: ...
def progress(
    futures: Iterable[Any], description: str = "", *, total: int | None = None, bar: Bar | None = None
) -> Iterator[Any]:
    """The futures as they end, with a bar that shows how many have.

        for future in flame.progress(futures, "simulating"):
            ...

    With `total` it takes results, such as those of `map`, and gives them as they come:

        for result in flame.progress(simulate.map(seeds), "simulating", total=len(seeds)):
            ...

    Raises InvalidArgumentError for something else than futures without a total.
    """
    items = futures if isinstance(futures, Collection) or total is not None else list(futures)
    if isinstance(items, Collection) and all(isinstance(item, TaskFuture) for item in items):
        waiting = list(dict.fromkeys(items))
        return _advancing(as_completed(waiting), bar or new_bar(len(waiting), description))
    if total is None:
        raise InvalidArgumentError(
            "progress takes futures, or results and their number",
            remedy="flame.progress(function.map(items), total=len(items))",
        )
    return _advancing(iter(items), bar or new_bar(total, description))


def _advancing(items: Iterator[T], bar: Bar) -> Iterator[T]:
    try:
        for item in items:
            bar.update(1)
            yield item
    finally:
        bar.close()


def new_bar(total: int, description: str = "") -> Bar:
    """tqdm's bar for where this runs (a notebook, a terminal), or a plain one."""
    # In a notebook without widgets, the one that tqdm chooses by itself would only complain.
    module = "tqdm.std" if in_notebook() and find_spec("ipywidgets") is None else "tqdm.auto"
    try:
        tqdm: Any = import_module(module).tqdm
    except ImportError:
        return PlainBar(total, description)
    return tqdm(total=total, desc=description or None)


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    shell = cast(Any, sys.modules.get("IPython"))
    return shell is not None and hasattr(shell.get_ipython(), "kernel")


class PlainBar:
    """One line that is drawn again and again; where `stream` is neither a terminal nor a notebook's, only its end is
    written."""

    def __init__(self, total: int, description: str = "", stream: TextIO | None = None) -> None:
        self._total = total
        self._description = f"{description}: " if description else ""
        self._stream = stream or sys.stderr
        self._done = 0
        self._drawn = 0.0
        self._live = self._stream.isatty() or (stream is None and in_notebook())

    def update(self, n: int = 1) -> None:
        """So many more are done."""
        self._done += n
        if self._live and time.monotonic() - self._drawn > _PAUSE:
            self._drawn = time.monotonic()
            self._stream.write("\r" + self._line())
            self._stream.flush()

    def close(self) -> None:
        """Nothing more comes."""
        self._stream.write(("\r" if self._live else "") + self._line() + "\n")
        self._stream.flush()

    def _line(self) -> str:
        share = self._done / self._total if self._total else 1.0
        filled = round(share * _WIDTH)
        return f"{self._description}{'#' * filled}{'.' * (_WIDTH - filled)} {self._done}/{self._total}"

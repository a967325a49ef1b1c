"""The thread that runs the event loop of all synchronous connections of this process."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import CancelledError
from typing import Any, Generic, TypeVar

from flame.link.loops import event_loop_factory

T = TypeVar("T")


class LoopThread:
    """An event loop in a daemon thread."""

    def __init__(self) -> None:
        self.loop = event_loop_factory()()
        self.process = os.getpid()
        self._started = threading.Event()
        self.thread = threading.Thread(target=self._run, name="flame-client", daemon=True)
        self.thread.start()
        self._started.wait()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.call_soon(self._started.set)
        self.loop.run_forever()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do this in the loop and wait for it. An interrupt of the waiting thread cancels the work."""
        if threading.current_thread() is self.thread:
            work.close()
            raise RuntimeError("this would wait for itself: it is the thread that the answer comes in")
        future = asyncio.run_coroutine_threadsafe(work, self.loop)
        try:
            return future.result()
        except BaseException:
            if not future.done():
                future.cancel()
                try:
                    future.result(1.0)
                except (Exception, CancelledError):
                    pass
            raise


_lock = threading.Lock()
_thread: LoopThread | None = None


def loop_thread() -> LoopThread:
    """The thread of this process, started at the first call; a forked child gets its own."""
    global _thread
    with _lock:
        if _thread is None or _thread.process != os.getpid():
            _thread = LoopThread()
        return _thread


def _after_fork() -> None:
    global _lock, _thread
    _lock = threading.Lock()
    _thread = None


os.register_at_fork(after_in_child=_after_fork)


class Pull(Generic[T]):
    """An asynchronous iterator, read by a thread; `ahead` items are fetched at once."""

    def __init__(self, thread: LoopThread, source: AsyncIterator[T], ahead: int = 1) -> None:
        self._thread = thread
        self._source = source
        self._ahead = ahead
        self._ready: list[T] = []  # in reverse order
        self._ended = False

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if not self._ready and not self._ended:
            self._ready = self._thread.run(self._fetch())
        if not self._ready:
            raise StopIteration
        return self._ready.pop()

    async def _fetch(self) -> list[T]:
        items: list[T] = []
        async for item in self._source:
            items.append(item)
            if len(items) >= self._ahead:
                break
        else:
            self._ended = True
        items.reverse()
        return items

    def close(self) -> None:
        """Read no more; the cluster stops sending."""
        self._ended = True
        self._ready.clear()
        close = getattr(self._source, "aclose", None)
        if close is not None and not self._thread.loop.is_closed():
            self._thread.run(close())

    def __enter__(self) -> Pull[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not self._ended and self._thread.process == os.getpid() and not self._thread.loop.is_closed():
            close = getattr(self._source, "aclose", None)
            if close is not None:
                asyncio.run_coroutine_threadsafe(close(), self._thread.loop)

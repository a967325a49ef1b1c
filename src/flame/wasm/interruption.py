"""Ends the call of a component whose task was told to stop.

The run loop of services interrupts the main thread by a signal. Python would handle it after the call, which may be
never; so a thread hears of the signal at once, through the descriptor that Python's own handler writes to, and lets the
engine's epoch pass, at which the call traps.
"""

from __future__ import annotations

import os
import select
import signal
import threading

import wasmtime


class Interruption:
    """`begin` is called by the main thread before each call of a component."""

    def __init__(self, engine: wasmtime.Engine) -> None:
        """To be made in the main thread, once."""
        self._engine = engine
        self._lock = threading.Lock()
        self._heard, told = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(told, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, name="interruption", daemon=True).start()

    def begin(self) -> None:
        """Signals up to now were for what ran before: the main thread itself got them."""
        with self._lock:
            self._drain()

    def _drain(self) -> bool:
        try:
            return bool(os.read(self._heard, 512))
        except BlockingIOError:
            return False

    def _watch(self) -> None:
        while True:
            select.select([self._heard], [], [])
            with self._lock:
                if self._drain():
                    self._engine.increment_epoch()

"""The thread that looks after an instance while one of its tasks runs for long.

It must cost nothing where tasks are short: while the main thread works it looks up every few milliseconds, after a
while without work it sleeps until it is woken, and nobody wakes it per task.
"""

from __future__ import annotations

import os
import select
import signal
import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from flame.service.sequential import Sequential

_TICK_MS = 5
_REST_AFTER = 10  # ticks without work


class Attendant:
    """Watches one run loop. `resting` says that it sleeps until `wake`."""

    def __init__(self, instance: Sequential, sock: int) -> None:
        self._instance = instance
        self._woken = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._bell = select.poll()
        self._bell.register(self._woken, select.POLLIN)
        self._bell_or_frames = select.poll()
        self._bell_or_frames.register(self._woken, select.POLLIN)
        self._bell_or_frames.register(sock, select.POLLIN)
        self.resting = False
        self._ended = False

    def begin(self) -> None:
        """Start watching."""
        threading.Thread(target=self._run, name="flame-attendant", daemon=True).start()

    def wake(self) -> None:
        """Stop resting or attending, and watch."""
        self.resting = False
        os.eventfd_write(self._woken, 1)

    def end(self) -> None:
        """Stop for good."""
        self._ended = True
        self.wake()

    def _run(self) -> None:
        # Signals are for the main thread: Python handles them there, and one that a kernel gives to another thread, as
        # gVisor's does, would not even interrupt what that waits for.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        instance = self._instance
        bursts, quiet = 0, _REST_AFTER
        while not self._ended:
            if quiet >= _REST_AFTER:
                self.resting = True
                # The main thread sets `busy` before it reads `resting`; here it is the other way round, so that one
                # of the two sees the other.
                if not instance.busy:
                    self._wait(None)
                self.resting = False
                quiet = 0
            self._wait(_TICK_MS)
            if instance.overdue():
                self._attend()
            if instance.busy or instance.bursts != bursts:
                bursts, quiet = instance.bursts, 0
            else:
                quiet += 1

    def _attend(self) -> None:
        """Stand in for the main thread until it wants to read itself."""
        while self._instance.attend():
            ready = self._bell_or_frames.poll()
            if any(descriptor == self._woken for descriptor, _ in ready):
                self._silence()
                return

    def _wait(self, milliseconds: int | None) -> None:
        if self._bell.poll(milliseconds):
            self._silence()

    def _silence(self) -> None:
        try:
            os.eventfd_read(self._woken)
        except BlockingIOError:
            pass

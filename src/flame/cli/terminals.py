"""Our standard input, passed on to a command in a sandbox while it runs."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import threading
import tty
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Self

from flame.model.errors import FlameError

if TYPE_CHECKING:
    from flame.sandbox import RunningCommand

LEAVE = b"\x1d"  # Ctrl-]
_STDIN = 0
_PIECE = 64 * 1024


class Feed:
    """Passes our standard input on to a command, in a thread of its own, until either of them ends.

    As a context manager it stops at the end of the block. What was read by then and not written is lost.
    """

    def __init__(self, command: RunningCommand) -> None:
        self._command = command
        self._wakeful, self._wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name="stdin", daemon=True)
        self._over = False

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over = True
        self.wake()

    def wake(self) -> None:
        """Look at what has changed. May be called by the handler of a signal."""
        try:
            os.write(self._wake, b"\0")
        except BlockingIOError:
            pass  # it has enough to read already

    def _run(self) -> None:
        try:
            while self._step():
                pass
        except (FlameError, OSError, RuntimeError):
            pass  # the command, or the connection to it, has ended: whoever follows it tells

    def _step(self) -> bool:
        """Wait for something and pass it on. False at the end."""
        ready, _, _ = select.select([_STDIN, self._wakeful], [], [])
        if self._over:
            return False
        if self._wakeful in ready:
            os.read(self._wakeful, _PIECE)
            self._woken()
        if _STDIN not in ready:
            return True
        data = os.read(_STDIN, _PIECE)
        if not data:
            self._command.close_stdin()
            return False
        return self._pass_on(data)

    def _woken(self) -> None:
        pass

    def _pass_on(self, data: bytes) -> bool:
        self._command.write(data)
        return True


class TerminalFeed(Feed):
    """As Feed, from a terminal in raw mode to one in the sandbox, whose size follows ours.

    Ctrl-] interrupts the main thread, as Ctrl-C does elsewhere.
    """

    def __enter__(self) -> Self:
        self._before = termios.tcgetattr(_STDIN)
        self._handler = signal.signal(signal.SIGWINCH, self._resized)
        tty.setraw(_STDIN, termios.TCSADRAIN)  # what was typed ahead is kept
        return super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        termios.tcsetattr(_STDIN, termios.TCSADRAIN, self._before)
        signal.signal(signal.SIGWINCH, self._handler)

    def _resized(self, number: int, frame: FrameType | None) -> None:
        self.wake()

    def _woken(self) -> None:
        self._command.resize(*size())

    def _pass_on(self, data: bytes) -> bool:
        leave = LEAVE in data
        if leave:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        else:
            self._command.write(data)
        return not leave


def size() -> tuple[int, int]:
    """Rows and columns of our terminal."""
    found = os.get_terminal_size(sys.stdout.fileno() if sys.stdout.isatty() else _STDIN)
    return found.lines, found.columns

"""Runs of code: one after another in the kernel, what each gives kept for those who follow it."""

from __future__ import annotations

import asyncio
import codecs
import os
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from flame.model.errors import InvalidStateError, NotFoundError
from flame.sandbox.arguments import check_env
from flame.sandbox.inside.kernel_process import Kernel
from flame.sandbox.inside.kernel_start import Started, interpreter
from flame.sandbox.inside.kernel_words import Message
from flame.sandbox.inside.waiting import Bell, Clock
from flame.sandbox.wire import Ended, FollowCode, Piece, Progress, Raised, RunCode, Shown

MAX_OUTPUT = 4 * 1024**2  # characters that one run may print; what comes behind is dropped, and counted
MAX_SHOWN = 32 * 1024**2  # of all that one run shows
_ANSWER = 2 * 1024**2  # of pieces in one answer
_KEPT = 32  # runs that have ended
_OBEY_S = 3.0  # for code that was interrupted to end
_PIECE = 64 * 1024


class Run:
    """One run and what came of it so far."""

    def __init__(self, request: RunCode) -> None:
        self.request = request
        self.pieces: list[Piece] = []
        self.ended: Ended | None = None
        self.heard = Bell()  # rings when something came of it
        self.over = Bell()
        self.verdict = ""  # why it shall end
        self.cut = 0
        self._printed = 0
        self._shown = 0
        self._told = 0  # pieces that a client has, which do not change any more
        decoder = codecs.getincrementaldecoder("utf-8")
        self._decoders = {False: decoder("replace"), True: decoder("replace")}

    def print(self, stderr: bool, data: bytes) -> None:
        """It printed this; what was not seen by anybody yet grows."""
        text = self._decoders[stderr].decode(data)
        room = MAX_OUTPUT - self._printed
        self.cut += max(0, len(text) - room)
        text = text[: max(0, room)]
        if not text:
            return
        self._printed += len(text)
        last = self.pieces[-1] if len(self.pieces) > self._told else Piece()
        if _grows(last, stderr):
            self.pieces[-1] = Piece(stderr=last.stderr + text) if stderr else Piece(stdout=last.stdout + text)
        else:
            self.pieces.append(Piece(stderr=text) if stderr else Piece(stdout=text))
        self.heard.ring()

    def told(self, shown: Shown) -> None:
        """It shows a value."""
        if self._shown + _size(shown) > MAX_SHOWN:
            self.cut += _size(shown)
            return
        self._shown += _size(shown)
        self.pieces.append(Piece(shown=shown))
        self.heard.ring()

    def end(self, error: Raised | None, *, restarted: bool = False) -> None:
        """It is over."""
        self.ended = Ended(error, self.cut, restarted)
        self.heard.ring()
        self.over.ring()

    def progress(self, seen: int) -> Progress:
        """What came behind so many pieces, as much as fits into one answer."""
        taken: list[Piece] = []
        size = 0
        for piece in self.pieces[seen:]:
            size += len(piece.stdout) + len(piece.stderr)
            size += _size(piece.shown) if piece.shown is not None else 0
            if taken and size > _ANSWER:
                break
            taken.append(piece)
        self._told = max(self._told, seen + len(taken))
        return Progress(taken, self.ended if seen + len(taken) == len(self.pieces) else None)


def _size(shown: Shown) -> int:
    return len(shown.text) + sum(map(len, shown.texts.values())) + sum(map(len, shown.data.values()))


def _grows(piece: Piece, stderr: bool) -> bool:
    text = piece.stderr if stderr else piece.stdout
    return bool(text) and len(text) < _PIECE


class Runs:
    """The kernel and the runs that wait for it. `env` and `cwd` are those of the kernels."""

    def __init__(self, clock: Clock) -> None:
        self.env: Mapping[str, str] = os.environ
        self.cwd = ""
        self._clock = clock
        self._kernel: Kernel | None = None
        self._waiting: deque[Started] = deque()  # to be used when it has ended
        self._queue: deque[Run] = deque()
        self._runs: dict[str, Run] = {}
        self._current: Run | None = None
        self._asked = False  # of the kernel, something besides a run
        self._free = Bell()  # rings when the kernel has nothing to do

    # --- calls -------------------------------------------------------------------------------------------------------

    async def run(self, request: RunCode) -> Progress:
        run = self._runs.get(request.id)
        if run is None:
            check_env(request.env)
            run = self._runs[request.id] = Run(request)
            self._queue.append(run)
            self._next()
        return await self._follow(run, 0, request.eager)

    async def follow(self, request: FollowCode) -> Progress:
        run = self._runs.get(request.id)
        if run is None:
            raise NotFoundError(f"there is no run {request.id} of code", remedy="old ones are forgotten")
        return await self._follow(run, request.seen, request.eager)

    def interrupt(self, name: str = "") -> None:
        """End what runs, as Ctrl-C does; what waits goes on. With a name: that run, also while it waits."""
        for run in [run for run in self._queue if name and run.request.id == name]:
            self._queue.remove(run)
            run.end(Raised("KeyboardInterrupt", "interrupted before it began", ""))
        if self._current is not None and name in ("", self._current.request.id):
            self._stop(self._current, "KeyboardInterrupt: interrupted")

    async def restart(self) -> None:
        """End the kernel and all that waits for it."""
        for run in self._queue:
            run.end(Raised("KernelRestarted", "the kernel was restarted before this code ran", ""), restarted=True)
        self._queue.clear()
        if self._current is not None:
            self._current.verdict = "KernelRestarted: the kernel was restarted while this code ran"
        kernel = self._kernel
        if kernel is not None:
            kernel.kill()
            await asyncio.wait({kernel.ended})
            if self._kernel is kernel:
                self._kernel = None
        self.prepare()

    def prepare(self) -> Kernel:
        """The kernel; it is started, if there is none. Raises OSError."""
        if self._kernel is None or self._kernel.ended.done():
            os.makedirs(self.cwd, exist_ok=True)  # code may have removed it
            self._kernel = self._ready() or Kernel(interpreter(self.env, self.cwd))
        return self._kernel

    def adopt(self, started: Sequence[Started]) -> None:
        """Take these kernels, which were started ahead and know nothing of the sandbox: one to use now, others when it
        has ended."""
        self._waiting += started
        self._kernel = self._ready()

    def _ready(self) -> Kernel | None:
        """One of those that wait, as if it had been started now; None when there is none that could be told its
        variables."""
        while self._waiting:
            started = self._waiting.popleft()
            if started.waits:
                kernel = Kernel(started)
                if kernel.take(self.env):
                    return kernel
                kernel.release()
            started.end()
        return None

    def release(self) -> None:
        """Let go of the kernel, which goes on."""
        if self._kernel is not None:
            self._kernel.release()
            self._kernel = None

    async def renew(self) -> None:
        """Let the kernel have the variables that have changed; no code has run in it."""
        if self._kernel is None or self._kernel.ended.done() or not self._kernel.take(self.env):
            await self.restart()

    @property
    def pid(self) -> int | None:
        """Of the kernel, None when there is none."""
        return None if self._kernel is None or self._kernel.ended.done() else self._kernel.pid

    def pids(self) -> set[int]:
        """Of this kernel and those that wait."""
        return {each.pid for each in self._waiting} | (set() if self.pid is None else {self.pid})

    @property
    def busy(self) -> bool:
        """Whether code runs or waits."""
        return self._current is not None or bool(self._queue)

    def close(self) -> None:
        if self._kernel is not None:
            self._kernel.kill()
        for each in self._waiting:
            each.end()

    async def ask(self, request: dict[str, Any]) -> Message:
        """Ask the kernel something between two runs. Raises InvalidStateError when it ends instead."""
        while self._occupied:
            await self._free.wait_until(lambda: not self._occupied)
        answer: asyncio.Future[Message | None] = asyncio.get_running_loop().create_future()

        def over(found: Message | None) -> None:
            self._asked = False
            if not answer.done():
                answer.set_result(found)
            self._next()

        kernel = self.prepare()
        self._asked = True
        kernel.ask(request, over)
        found = await answer
        if found is None:
            raise InvalidStateError(f"the kernel {kernel.ended.result()}")
        return found

    # --- running -----------------------------------------------------------------------------------------------------

    async def _follow(self, run: Run, seen: int, eager: bool) -> Progress:
        if eager:
            await run.heard.wait_until(lambda: run.ended or len(run.pieces) > seen)
        else:
            await run.over.wait_until(lambda: run.ended)
        return run.progress(seen)

    @property
    def _occupied(self) -> bool:
        """Whether the kernel was asked something that it has not answered yet."""
        return self._current is not None or self._asked

    def _next(self) -> None:
        """Begin with what waits, if the kernel has nothing to do."""
        while self._queue and not self._occupied:
            self._begin(self._queue.popleft())
        if not self._occupied:
            self._free.ring()

    def _begin(self, run: Run) -> None:
        try:
            kernel = self.prepare()
        except OSError as error:
            run.end(Raised("KernelDied", f"no kernel can be started: {error}", ""))
            return
        self._current = run
        kernel.printed, kernel.told = run.print, run.told
        request = run.request
        allowed = request.timeout
        timer = self._clock.after(
            allowed, lambda: self._stop(run, f"TimeoutError: the code ran for more than {allowed:g} s")
        )

        def over(answer: Message | None) -> None:
            if timer is not None:
                timer.cancel()
            kernel.printed, kernel.told = _ignored, _nothing
            self._current = None
            if answer is None:
                run.end(_killed(run.verdict, kernel.ended.result()), restarted=True)
            else:
                run.end(_raised(run.verdict, answer.error))
            self._forget()
            self._next()

        kernel.ask({"do": "run", "code": request.code, "env": request.env}, over)

    def _forget(self) -> None:
        for name in list(self._runs)[:-_KEPT]:
            if self._runs[name].ended:
                del self._runs[name]

    def _stop(self, run: Run, verdict: str) -> None:
        """Interrupt the run; a kernel that does not obey is ended."""
        kernel = self._kernel
        if run is not self._current or kernel is None:
            return
        run.verdict = run.verdict or verdict
        kernel.interrupt()

        def insist() -> None:
            if run is self._current and kernel is self._kernel:
                kernel.kill()

        self._clock.after(_OBEY_S, insist)


def _raised(verdict: str, error: Raised | None) -> Raised | None:
    """How a run ended whose kernel goes on."""
    if error is None or not verdict or error.name != "KeyboardInterrupt":
        return error
    name, _, message = verdict.partition(": ")
    return Raised(name, message + (" and was interrupted" if name == "TimeoutError" else ""), error.traceback)


def _killed(verdict: str, how: str) -> Raised:
    """How a run ended that took its kernel with it."""
    if not verdict:
        return Raised("KernelDied", f"the kernel {how}; its variables are lost", "")
    name, _, message = verdict.partition(": ")
    if name != "KernelRestarted":
        message += "; it did not stop when interrupted, so the kernel was ended, and its variables are lost"
    return Raised(name, message, "")


def _ignored(stderr: bool, data: bytes) -> None:
    """It prints while nothing runs."""


def _nothing(shown: Shown) -> None:
    """It shows something while nothing runs."""

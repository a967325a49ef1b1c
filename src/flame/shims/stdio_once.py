"""A process per task: the input is its stdin, what it writes to stdout is the output, exit status 0 is success."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
from collections.abc import Callable

import msgspec

from flame.proto import link_pb2, shim_pb2, types_pb2
from flame.shims.backlog import FAILED, Answers, Backlog, Waiting, names, too_large
from flame.shims.shim import BindError, Owner, Usage
from flame.shims.workplace import Running, Workplace

_PIPE = 1 << 20
_KILL_AFTER_S = 1.0  # a cancelled program's time between SIGTERM and SIGKILL


class OnceInstance:
    """An executor's turn at one command; instance and dialect in one, since between tasks nothing of it runs.

    `pid` is that of the first program, 0 before. It ends when it is told to.
    """

    ends_by_itself = False
    concurrency = 1

    def __init__(self, place: Workplace, owner: Owner) -> None:
        self.pid = 0
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.owner = owner
        self._place = place
        self._backlog = Backlog()
        self._news = asyncio.Event()  # a task waits, or it shall end, or it may go on
        self._over = False
        self._leaving = False
        self._paused = False
        self._process: Running | None = None
        self._current: Waiting | None = None
        self._sentence: link_pb2.Cancel | None = None  # of the current task
        self._alarm: asyncio.TimerHandle | None = None
        self._idle = asyncio.Event()
        place.watch_output(self._flooded)
        self._life = asyncio.get_running_loop().create_task(self._live())

    # --- Instance --------------------------------------------------------------------------------------------------

    async def ready(self) -> OnceInstance:
        return self

    def entered(self) -> None:
        pass

    def last_words(self) -> str:
        return self._place.last_words()

    def usage(self) -> Usage | None:
        return self._place.usage()

    def lap(self) -> Usage | None:
        return self._place.lap()

    def terminate(self) -> None:
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    async def dispose(self) -> None:
        """Close its log, remove its folder."""
        self._end(signal.SIGKILL)
        await self._life
        await self._place.close()

    # --- Dialect ---------------------------------------------------------------------------------------------------

    async def enter(self, context: shim_pb2.SessionContext) -> types_pb2.Result:
        return types_pb2.Result()

    async def leave(self) -> None:
        """Begin no further task; returns when the current one has ended."""
        self._leaving = True
        self._backlog.clear()
        await self._idle.wait()

    @property
    def unread(self) -> int:
        return self._backlog.size

    def tasks(self, body: bytes) -> None:
        self._backlog.add(body)
        self._news.set()

    def cancel(self, body: bytes) -> None:
        """Of the task that runs, the process is told to end, and killed a second later."""
        cancel = link_pb2.Cancel.FromString(body)
        answers = self._backlog.cancelled(cancel)
        if answers:
            self.owner.results(answers.wire())
        current = self._current
        if current is not None and self._sentence is None and names(cancel, current.task_id):
            self._sentence = cancel
            self._stop_current()

    def retract(self, body: bytes) -> None:
        self.owner.retracted(self._backlog.retracted(body, int(self._current is not None)))

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        self._news.set()

    def close(self) -> None:
        pass

    # --- its life --------------------------------------------------------------------------------------------------

    def _end(self, number: signal.Signals) -> None:
        self._over = True
        self._news.set()
        if self._process is not None:
            self._process.signal(number)

    async def _live(self) -> None:
        """One task after another, until it is told to end."""
        how = "was stopped"
        try:
            while not self._over:
                if not self._backlog or self._paused:
                    self._idle.set()
                    self._news.clear()
                    await self._news.wait()
                    continue
                self._idle.clear()
                self._current = task = self._backlog.take()
                began = asyncio.get_running_loop().time()
                answers, running = await self._run(task)
                self._current = self._sentence = None
                busy = asyncio.get_running_loop().time() - began
                self.owner.results(answers.wire(round(busy * 1e6)))
                await self._place.over(running)
        except (OSError, BindError) as error:
            why = error.message if isinstance(error, BindError) else error.strerror or str(error)
            how = f"could not run its command: {why}"
        finally:
            self._over = True
            self._idle.set()
            self.ended.set_result(how)

    async def _run(self, task: Waiting) -> tuple[Answers, Running]:
        """Run one program to its end. Raises OSError and BindError when it can't be started, which is no fault of the
        task."""
        place, answers = self._place, Answers()
        heard = place.stderr_end()
        output = _Output(place.max_payload, self._too_much)
        try:
            running = self._process = await self._spawn(task, output)
            output.begin()
            self.pid = self.pid or running.pid
            if self._sentence is not None:
                self._stop_current()
            if self._over:
                running.signal(signal.SIGKILL)
            await running.ended
            produced = output.rest()
        finally:
            self._process = None
            if self._alarm is not None:
                self._alarm.cancel()
                self._alarm = None
            output.close()
        code = running.code()
        if self._sentence is not None:
            answers.stopped(task.task_id, task.attempt, self._sentence)
        elif produced is None:
            message = too_large(place.max_payload, place.max_payload, at_least=True)
            answers.failed(task.task_id, task.attempt, FAILED, message)
        elif code:
            message = f"the program {running.how()}{place.last_words(heard)}"
            # A further attempt would need as much memory.
            retryable = running.killed and not running.out_of_memory
            answers.failed(task.task_id, task.attempt, code, message, retryable=retryable)
        else:
            answers.succeeded(task.task_id, task.attempt, produced, place.max_payload)
        return answers, running

    async def _spawn(self, task: Waiting, output: _Output) -> Running:
        """The program, with the task's input as its stdin."""
        place = self._place
        # Its own name, so that what it leaves behind is found by it.
        identity = f"{place.launch.executor_id}.{task.task_id}.{task.attempt}"
        env = place.variables(
            FLAME_INSTANCE_ID=identity,
            FLAME_TASK_ID=str(task.task_id),
            FLAME_TASK_ATTEMPT=str(task.attempt),
            # Its stdout is no log. A pipe at level gvisor takes a part of what is written at once, and an unbuffered
            # Python does not write the rest.
            PYTHONUNBUFFERED="",
        )
        file = place.folder / f"stdin-{task.task_id}"
        try:
            await asyncio.to_thread(file.write_bytes, task.data or b"")
            stdin = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        finally:
            file.unlink(missing_ok=True)
        try:
            return await place.spawn(msgspec.structs.replace(place.program, env=env), output.writing, stdin, identity)
        finally:
            os.close(stdin)

    def _stop_current(self) -> None:
        if self._process is not None:
            self._process.signal(signal.SIGTERM)
            loop = asyncio.get_running_loop()
            self._alarm = loop.call_later(_KILL_AFTER_S, self._process.signal, signal.SIGKILL)

    def _flooded(self, why: str) -> None:
        self.owner.broken(why)

    def _too_much(self) -> None:
        if self._process is not None:
            self._process.signal(signal.SIGKILL)


class _Output:
    """What a program writes to stdout, up to `limit` bytes; `too_much` is called when there is more."""

    def __init__(self, limit: int, too_much: Callable[[], None]) -> None:
        self._limit = limit
        self._too_much = too_much
        self._pieces: list[bytes] = []
        self._size = 0
        self._reading, self.writing = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._reading, False)
        try:
            fcntl.fcntl(self._reading, fcntl.F_SETPIPE_SZ, _PIPE)
        except OSError:
            pass  # the user has many pipes: a smaller one does as well

    def begin(self) -> None:
        """The program runs, and has the end that it writes to."""
        self._close_writing()
        asyncio.get_running_loop().add_reader(self._reading, self._read)

    def rest(self) -> bytes | None:
        """Everything, after the program's end; None when it was too much."""
        while self._read():
            pass
        return b"".join(self._pieces) if self._size <= self._limit else None

    def close(self) -> None:
        self._close_writing()
        if self._reading >= 0:
            asyncio.get_running_loop().remove_reader(self._reading)
            os.close(self._reading)
            self._reading = -1

    def _close_writing(self) -> None:
        if self.writing >= 0:
            os.close(self.writing)
            self.writing = -1

    def _read(self) -> bool:
        """Take a piece; true when there may be more."""
        try:
            piece = os.read(self._reading, _PIPE)
        except BlockingIOError:
            return False
        if not piece:
            asyncio.get_running_loop().remove_reader(self._reading)
            return False
        if self._size <= self._limit:
            self._size += len(piece)
            self._pieces.append(piece)
            if self._size > self._limit:
                self._pieces.clear()
                self._too_much()
        return True

"""The service of a sandbox: what each call does."""

from __future__ import annotations

import asyncio
import os
import platform
from collections.abc import Awaitable, Callable
from typing import Any

from flame.model.errors import FlameError, FlameErrorCode, InvalidStateError
from flame.sandbox import wire
from flame.sandbox.inside.commands import Commands
from flame.sandbox.inside.files import Folder
from flame.sandbox.inside.kernel_process import Started
from flame.sandbox.inside.places import environment, working_folder
from flame.sandbox.inside.runs import Runs
from flame.sandbox.inside.spools import Spools
from flame.sandbox.inside.waiting import Clock
from flame.service.api import FlameService, TaskContext

_DONE = wire.Done()


class SandboxService(FlameService):
    """Serves one sandbox. `started`: a kernel that was started ahead."""

    def __init__(self, started: Started | None = None) -> None:
        self._started = started
        self._begun = False
        self._clock = Clock()
        self._spools = Spools()
        folder = working_folder()
        env = environment(os.environ, folder)
        self.files = Folder(folder)
        self.runs = Runs(self._clock)
        self.commands = Commands(self._clock, self._spools)
        self.runs.cwd = self.commands.folder = folder
        self.runs.env = self.commands.env = env
        self.paused = False

    async def on_task_invoke(self, context: TaskContext) -> bytes:
        try:
            call = wire.decode_call(context.input or b"")
            if not self._begun and not isinstance(call, wire.Begin):
                return wire.encode_answer(wire.Fault(wire.LOST, "the sandbox has ended"))
            kind = type(call)
            if self.paused and kind not in _WHILE_PAUSED:
                raise InvalidStateError("the sandbox is paused", remedy="resume it first")
            return wire.encode_answer(await _HANDLERS[kind](self, call))
        except FlameError as error:
            return wire.encode_answer(wire.Fault(int(error.code), error.message, error.remedy))
        except OSError as error:
            return wire.encode_answer(wire.Fault(int(FlameErrorCode.INTERNAL), f"{type(error).__name__}: {error}"))

    async def on_session_leave(self) -> None:
        self.commands.close()
        self.runs.close()
        self.files.close()

    # --- calls -------------------------------------------------------------------------------------------------------

    async def _begin(self, call: wire.Begin) -> wire.Begun:
        self._begun = True
        if call.env:
            self.commands.env = self.runs.env = {**self.commands.env, **call.env}
        started, self._started = self._started, None
        if started is not None and call.env:
            started.kill()  # it does not know them
            started.process.wait()
            started = None
        if started is not None:
            self.runs.prepare(started)
        return wire.Begun(self.files.folder, platform.python_version())

    async def _restart(self, call: wire.RestartKernel) -> wire.Done:
        await self.runs.restart()
        return _DONE

    async def _write(self, call: wire.Write) -> wire.Taken:
        return wire.Taken(await self.commands.named(call.id).write(call))

    async def _stat(self, call: wire.Stat) -> wire.Files:
        found = self.files.stat(call.path)
        return wire.Files([] if found is None else [found])

    async def _remove(self, call: wire.Remove) -> wire.Done:
        await asyncio.to_thread(self.files.remove, call.path, recursive=call.recursive)
        return _DONE


def _at_once(act: Callable[[SandboxService, Any], Any]) -> Callable[[SandboxService, Any], Awaitable[wire.Answer]]:
    """A handler that waits for nothing; what it answers besides nothing is the answer."""

    async def handle(service: SandboxService, call: Any) -> wire.Answer:
        return act(service, call) or _DONE

    return handle


_HANDLERS: dict[type[Any], Callable[[SandboxService, Any], Awaitable[wire.Answer]]] = {
    wire.Begin: SandboxService._begin,  # pyright: ignore[reportPrivateUsage]
    wire.RunCode: lambda service, call: service.runs.run(call),
    wire.FollowCode: lambda service, call: service.runs.follow(call),
    wire.Interrupt: _at_once(lambda service, call: service.runs.interrupt(call.id)),
    wire.RestartKernel: SandboxService._restart,  # pyright: ignore[reportPrivateUsage]
    wire.StartCommand: lambda service, call: service.commands.start(call),
    wire.FollowCommand: lambda service, call: service.commands.follow(call),
    wire.Write: SandboxService._write,  # pyright: ignore[reportPrivateUsage]
    wire.Spool: _at_once(lambda service, call: service._spools.add(call.id, call.data)),  # pyright: ignore[reportPrivateUsage]
    wire.Kill: _at_once(lambda service, call: service.commands.kill(call.id, call.signal)),
    wire.Resize: _at_once(lambda service, call: service.commands.named(call.id).resize(call.rows, call.columns)),
    wire.ListCommands: _at_once(lambda service, call: wire.Commands(service.commands.list())),
    wire.Stat: SandboxService._stat,  # pyright: ignore[reportPrivateUsage]
    wire.ListFolder: _at_once(lambda service, call: service.files.list(call.path, call.start)),
    wire.ReadFile: _at_once(lambda service, call: service.files.read(call)),
    wire.WriteFile: _at_once(lambda service, call: service.files.write(call)),
    wire.MakeDir: _at_once(lambda service, call: service.files.make_dir(call.path)),
    wire.Remove: SandboxService._remove,  # pyright: ignore[reportPrivateUsage]
    wire.Rename: _at_once(lambda service, call: service.files.rename(call.path, call.new)),
}

_WHILE_PAUSED = frozenset(
    {
        wire.Begin, wire.FollowCode, wire.FollowCommand, wire.ListCommands, wire.Spool, wire.Pause, wire.Resume,
        wire.Stat, wire.ListFolder, wire.ReadFile, wire.WriteFile, wire.MakeDir, wire.Remove, wire.Rename,
        wire.Watch, wire.FollowWatch, wire.EndWatch,
    }
)  # fmt: skip

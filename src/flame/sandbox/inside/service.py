"""The service of a sandbox: what each call does."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from flame.model.errors import FlameError, FlameErrorCode, InvalidArgumentError, InvalidStateError, NotFoundError
from flame.sandbox import wire
from flame.sandbox.arguments import check_env
from flame.sandbox.inside import processes
from flame.sandbox.inside.commands import Commands
from flame.sandbox.inside.kernel_start import Started
from flame.sandbox.inside.places import environment, working_folder
from flame.sandbox.inside.runs import Runs
from flame.sandbox.inside.spools import Spools
from flame.sandbox.inside.stopping import Stopping
from flame.sandbox.inside.waiting import Bell, Clock
from flame.service.api import FlameService, TaskContext

if TYPE_CHECKING:
    from pathlib import Path

    from flame.sandbox.inside.files import Folder
    from flame.sandbox.inside.snapshots import Taking
    from flame.sandbox.inside.tunnels import Tunnels
    from flame.sandbox.inside.watches import Watches

_PATIENCE_S = wire.POLL_S + 40  # after which a client that fetches a snapshot and does not come back has gone
_REAP_S = 0.2  # many may have ended by then
_DONE = wire.Done()
_PYTHON = ".".join(map(str, sys.version_info[:3]))


class SandboxService(FlameService):
    """Serves one sandbox. `started`: kernels that were started ahead, for the first one and those after it."""

    def __init__(self, started: Sequence[Started] = ()) -> None:
        # Whoever started this may have ignored it; what has a handler is not ignored by those that are started here.
        signal.signal(signal.SIGINT, _ignore)
        self._started = started
        self._begun = False
        self._clock = Clock()
        self._spools = Spools()
        folder = working_folder()
        env = environment(os.environ, folder)
        self._folder = folder
        self.runs = Runs(self._clock)
        self.commands = Commands(self._clock, self._spools)
        self.runs.cwd = self.commands.folder = folder
        self.runs.env = self.commands.env = env
        self._env: Mapping[str, str] = {}  # what its user wants all programs to know
        self._stopping = Stopping(self._clock, lambda: self.commands.pids() | self.runs.pids())
        self._paused = False
        self._taking: dict[str, Taking] = {}
        self._reaping: asyncio.TimerHandle | None = None
        self._free = Bell()  # rings when a snapshot is over
        self._patience: asyncio.TimerHandle | None = None

    # Loaded when they are used: a new sandbox shall be there quickly.

    @cached_property
    def files(self) -> Folder:
        from flame.sandbox.inside.files import Folder

        return Folder(self._folder)

    @cached_property
    def watches(self) -> Watches:
        from flame.sandbox.inside.watches import Watches

        return Watches()

    @cached_property
    def tunnels(self) -> Tunnels:
        from flame.sandbox.inside.tunnels import Tunnels

        return Tunnels()

    async def on_task_invoke(self, context: TaskContext) -> bytes:
        try:
            call = wire.decode_call(context.input or b"")
            if not self._begun and not isinstance(call, wire.Begin):
                return wire.encode_answer(wire.Fault(wire.LOST, "the sandbox has ended"))
            kind = type(call)
            if kind not in _WHILE_PAUSED:
                while self._taking:
                    await self._free.wait_until(lambda: not self._taking)
                if self._paused:
                    raise InvalidStateError("the sandbox is paused", remedy="resume it first")
            return wire.encode_answer(await _HANDLERS[kind](self, call))
        except FlameError as error:
            return wire.encode_answer(wire.Fault(int(error.code), error.message, error.remedy))
        except OSError as error:
            return wire.encode_answer(wire.Fault(int(FlameErrorCode.INTERNAL), f"{type(error).__name__}: {error}"))

    async def on_session_leave(self) -> None:
        self.commands.close()
        self.runs.close()
        for used in {"files", "watches", "tunnels"} & vars(self).keys():
            getattr(self, used).close()
        for name in list(self._taking):
            self._end_snapshot(name)

    # --- calls -------------------------------------------------------------------------------------------------------

    async def _begin(self, call: wire.Begin) -> wire.Begun:
        env = check_env(call.env)
        self._begun = True
        if os.getpid() == 1:  # what loses its parent becomes a child of this process
            asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self._reap_soon)
        self._stopping.alone = call.alone
        self._set_environment(env)
        self.runs.adopt(self._started)
        return wire.Begun(self._folder, _PYTHON)

    def _reap_soon(self) -> None:
        if self._reaping is None:
            self._reaping = asyncio.get_running_loop().call_later(_REAP_S, self._reap)

    def _reap(self) -> None:
        self._reaping = None
        processes.reap(self.commands.pids() | self.runs.pids())

    def _set_environment(self, env: Mapping[str, str]) -> None:
        self._env = env
        self.commands.env = self.runs.env = {**self.commands.env, **env}

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

    async def _connect(self, call: wire.Connect) -> wire.Done:
        await self.tunnels.connect(call.id, call.port)
        return _DONE

    async def _send(self, call: wire.Send) -> wire.Taken:
        return wire.Taken(await self.tunnels.send(call.id, call.data, end=call.end))

    # --- standing still ----------------------------------------------------------------------------------------------

    def _pause(self) -> None:
        if not self._paused:
            self._stopping.stop()
            self._paused = True

    def _resume(self) -> None:
        if self._paused:
            self._paused = False
            self._stopping.go()

    async def _take_snapshot(self, call: wire.TakeSnapshot) -> wire.Done:
        from flame.sandbox.inside.snapshots import Taking

        variables, skipped = await self._saved()
        self._stopping.stop()
        about = {"python": _PYTHON, "env": dict(self._env)}
        self._taking[call.id] = Taking(self._folder, variables, about, skipped)
        self._expect(call.id)
        return _DONE

    async def _saved(self) -> tuple[Path | None, dict[str, str]]:
        """The file with the kernel's variables, if it has any, and those that can't be saved."""
        if self.runs.pid is None:
            return None, {}
        if self.runs.busy:
            raise InvalidStateError("code runs in the sandbox", remedy="wait for it, or interrupt it, and try again")
        variables = _temporary()
        try:
            answer = await self.runs.ask({"do": "save", "path": str(variables)})
            if answer.error is not None:
                raise InvalidStateError(f"the variables can't be saved: {answer.error.name}: {answer.error.message}")
        except BaseException:
            variables.unlink()
            raise
        return variables, answer.skipped

    async def _read_snapshot(self, call: wire.ReadSnapshot) -> wire.Part:
        taking = self._taking.get(call.id)
        if taking is None:
            raise NotFoundError(f"snapshot {call.id} was fetched, or given up")
        self._expect(call.id)
        try:
            part = await taking.fetch()
        except OSError as error:
            self._end_snapshot(call.id)
            raise InvalidStateError(f"no snapshot can be taken: {error}") from None
        if part.end:
            self._end_snapshot(call.id)
        return part

    def _expect(self, name: str) -> None:
        """Somebody fetches it, and is going to come back."""
        if self._patience is not None:
            self._patience.cancel()
        self._patience = asyncio.get_running_loop().call_later(_PATIENCE_S, self._end_snapshot, name)

    def _end_snapshot(self, name: str) -> None:
        taking = self._taking.pop(name, None)
        if taking is not None:
            taking.give_up()
            self._stopping.go()
            self._free.ring()

    async def _restore(self, call: wire.Restore) -> wire.Done:
        from flame.sandbox.inside.snapshots import unpack

        variables = _temporary()
        file = self._spools.take(call.id)
        about = await asyncio.to_thread(unpack, file, self._folder, variables)
        try:
            env = check_env(about.get("env"))
            if env.items() - self._env.items():
                self._set_environment({**env, **self._env})
                await self.runs.renew()
            if variables.stat().st_size:
                await self._load(variables, str(about.get("python", "")))
        finally:
            variables.unlink(missing_ok=True)
        return _DONE

    async def _load(self, variables: Path, python: str) -> None:
        if python.split(".")[:2] != _PYTHON.split(".")[:2]:
            raise InvalidArgumentError(f"the snapshot's variables are of Python {python}, this sandbox has {_PYTHON}")
        answer = await self.runs.ask({"do": "load", "path": str(variables)})
        if answer.error is not None:
            why = f"{answer.error.name}: {answer.error.message}"
            raise InvalidStateError(f"the variables can't be restored: {why}")


def _ignore(number: int, frame: object) -> None:
    """Interrupts are for what runs in the sandbox."""


def _temporary() -> Path:
    """A new file, empty."""
    import tempfile
    from pathlib import Path

    file, path = tempfile.mkstemp(prefix="flame-")
    os.close(file)
    return Path(path)


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
    wire.Watch: _at_once(
        lambda service, call: service.watches.begin(
            call.id, service.files.resolve(call.path), call.path, recursive=call.recursive
        )
    ),
    wire.FollowWatch: lambda service, call: service.watches.follow(call.id, call.patience),
    wire.EndWatch: _at_once(lambda service, call: service.watches.end(call.id)),
    wire.Connect: SandboxService._connect,  # pyright: ignore[reportPrivateUsage]
    wire.Send: SandboxService._send,  # pyright: ignore[reportPrivateUsage]
    wire.Receive: lambda service, call: service.tunnels.receive(call.id),
    wire.Disconnect: _at_once(lambda service, call: service.tunnels.disconnect(call.id)),
    wire.Pause: _at_once(lambda service, call: service._pause()),  # pyright: ignore[reportPrivateUsage]
    wire.Resume: _at_once(lambda service, call: service._resume()),  # pyright: ignore[reportPrivateUsage]
    wire.TakeSnapshot: SandboxService._take_snapshot,  # pyright: ignore[reportPrivateUsage]
    wire.ReadSnapshot: SandboxService._read_snapshot,  # pyright: ignore[reportPrivateUsage]
    wire.EndSnapshot: _at_once(lambda service, call: service._end_snapshot(call.id)),  # pyright: ignore[reportPrivateUsage]
    wire.Restore: SandboxService._restore,  # pyright: ignore[reportPrivateUsage]
}

_WHILE_PAUSED = frozenset(
    {
        wire.Begin, wire.FollowCode, wire.FollowCommand, wire.ListCommands, wire.Spool, wire.Pause, wire.Resume,
        wire.Stat, wire.ListFolder, wire.ReadFile, wire.WriteFile, wire.MakeDir, wire.Remove, wire.Rename,
        wire.Watch, wire.FollowWatch, wire.EndWatch, wire.Receive, wire.Disconnect, wire.ReadSnapshot,
        wire.EndSnapshot,
    }
)  # fmt: skip

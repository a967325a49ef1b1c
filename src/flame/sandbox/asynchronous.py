"""`AsyncSandbox`: sandboxes for asyncio."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

from flame.client.async_connection import AsyncConnection, connect
from flame.client.values import ResourceRequirement, SessionAttributes
from flame.model.errors import FlameError, InvalidStateError, NotFoundError
from flame.model.isolation import Limits
from flame.model.states import SessionState
from flame.sandbox import code as code_steps
from flame.sandbox import commands as command_steps
from flame.sandbox import files as file_steps
from flame.sandbox import opening, transfer, wire
from flame.sandbox import snapshot as snapshots
from flame.sandbox.arguments import as_bytes
from flame.sandbox.calling import AsyncCaller, closed_error
from flame.sandbox.ports import AsyncExposedPort
from flame.sandbox.snapshot import Snapshot
from flame.sandbox.steps import do
from flame.sandbox.transfer import MAX_SIZE
from flame.sandbox.values import CommandInfo, CommandResult, Execution, FileEvent, FileInfo, Output


class AsyncSandbox:
    """A sandbox; see `flame.Sandbox`, whose methods it has as coroutines. Callbacks may be coroutines as well."""

    def __init__(self, caller: AsyncCaller, *, created: bool, connection: AsyncConnection | None = None) -> None:
        """Made by `create` and `open`. `connection`: one of its own, that ends with it."""
        self._caller = caller
        self._call = caller.run
        self._created = created
        self.skipped: dict[str, str] = {}
        self._connection = connection
        self.files = AsyncFiles(caller)

    # --- its life ----------------------------------------------------------------------------------------------------

    @classmethod
    async def create(
        cls,
        *,
        isolation: str = "process",
        network: str | Sequence[str] = "none",
        limits: Limits | None = None,
        resreq: ResourceRequirement | str | None = None,
        env: Mapping[str, str] | None = None,
        idle_timeout: float | timedelta | None = 600.0,
        labels: Mapping[str, str] | None = None,
        tenant: str = "",
        readable_objects: Sequence[str] = (),
        snapshot: Snapshot | None = None,
        timeout: float = 60.0,
        connection: AsyncConnection | None = None,
    ) -> Self:
        """See `flame.Sandbox.create`. Without a `connection` it has one of its own."""
        attrs = opening.attributes(
            isolation=isolation,
            network=network,
            limits=limits,
            resreq=resreq,
            idle_timeout=idle_timeout,
            labels=labels,
            tenant=tenant,
            readable_objects=readable_objects,
        )
        own = None if connection is not None else await connect()
        try:
            return await cls._create(connection or own or await connect(), own, attrs, env, snapshot, timeout)
        except BaseException:
            if own is not None:
                await own.close()
            raise

    @classmethod
    async def _create(
        cls,
        connection: AsyncConnection,
        own: AsyncConnection | None,
        attrs: SessionAttributes,
        env: Mapping[str, str] | None,
        snapshot: Snapshot | None,
        timeout: float,
    ) -> Self:
        """`own`: the connection, if it shall end with the sandbox."""
        begin = opening.beginning(attrs, env)
        opening.check_begin(snapshot, timeout)
        session = await connection.create_session(attrs)
        made = cls(AsyncCaller(session), created=True, connection=own)
        try:
            try:
                begun = await session.invoke(begin, timeout)
            except FlameError as error:
                await session.refresh()
                raise opening.not_started(session, error, timeout) from None
            opening.check_begun(begun)
            if snapshot is not None:
                await made._call(snapshots.restore(snapshot))
                made.skipped.update(snapshot.skipped)
        except BaseException:
            await session.close(force=True)
            raise
        return made

    @classmethod
    async def open(cls, sandbox_id: str, *, connection: AsyncConnection | None = None) -> Self:
        """See `flame.Sandbox.open`."""
        own = None if connection is not None else await connect()
        try:
            try:
                session = await (connection or own or await connect()).get_session(sandbox_id)
            except NotFoundError:
                raise opening.unknown(sandbox_id) from None
            opening.check_session(session)
            if session.state is not SessionState.OPEN:
                raise closed_error(session)
        except BaseException:
            if own is not None:
                await own.close()
            raise
        return cls(AsyncCaller(session), created=False, connection=own)

    @property
    def id(self) -> str:
        """Its id, good for `open`."""
        return self._caller.session.id

    async def close(self) -> None:
        """End it for everybody, with all that runs in it. Closing a closed one does nothing."""
        if not self._caller.closed:
            self._caller.closed = True
            await end(self._caller)
        await self._let_go()

    async def _let_go(self) -> None:
        self._caller.closed = True
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await (self.close() if self._created else self._let_go())

    def __repr__(self) -> str:
        return f"<AsyncSandbox {self.id}>"

    async def pause(self) -> None:
        """See `flame.Sandbox.pause`."""
        await self._call(do(wire.Pause()))

    async def resume(self) -> None:
        """See `flame.Sandbox.resume`."""
        await self._call(do(wire.Resume()))

    async def snapshot(self) -> Snapshot:
        """See `flame.Sandbox.snapshot`."""
        return await self._call(snapshots.take())

    async def fork(self, *, timeout: float = 60.0) -> Self:
        """See `flame.Sandbox.fork`. It shares the connection, which has to live as long."""
        session = self._caller.session
        taken = await self.snapshot()
        attrs = opening.attributes_like(session)
        return await self._create(session.connection, None, attrs, None, taken, timeout)

    async def expose(self, port: int) -> AsyncExposedPort:
        """See `flame.Sandbox.expose`."""
        return await AsyncExposedPort(self._caller, port).listen()

    # --- code --------------------------------------------------------------------------------------------------------

    async def run_code(
        self,
        code: str,
        *,
        timeout: float | None = None,
        on_stdout: code_steps.OnText | None = None,
        on_stderr: code_steps.OnText | None = None,
        on_result: code_steps.OnResult | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Execution:
        """See `flame.Sandbox.run_code`."""
        return await self._call(code_steps.run(code, timeout, on_stdout, on_stderr, on_result, env))

    async def interrupt(self) -> None:
        """See `flame.Sandbox.interrupt`."""
        await self._call(do(wire.Interrupt()))

    async def restart_kernel(self) -> None:
        """See `flame.Sandbox.restart_kernel`."""
        await self._call(do(wire.RestartKernel()))

    # --- commands ----------------------------------------------------------------------------------------------------

    async def run_command(
        self,
        command: str | Sequence[str],
        *,
        stdin: bytes | str | None = None,
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        on_stdout: command_steps.OnBytes | None = None,
        on_stderr: command_steps.OnBytes | None = None,
    ) -> CommandResult:
        """See `flame.Sandbox.run_command`."""
        return await self._call(command_steps.run(command, stdin, timeout, env, cwd, on_stdout, on_stderr))

    async def start_command(
        self,
        command: str | Sequence[str],
        *,
        stdin: bytes | str | None = None,
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        pty: tuple[int, int] | None = None,
        followed: bool = False,
    ) -> AsyncRunningCommand:
        """See `flame.Sandbox.start_command`."""
        steps = command_steps.start(command, stdin, timeout, env, cwd, pty, followed=followed)
        return AsyncRunningCommand(self._caller, await self._call(steps))

    async def commands(self) -> list[CommandInfo]:
        """The commands that run, whoever started them."""
        return await self._call(command_steps.running())

    def command(self, command_id: str) -> AsyncRunningCommand:
        """A command by its id, read from its first byte that is still there."""
        return AsyncRunningCommand(self._caller, command_id)


class AsyncRunningCommand:
    """A command that was started; see `flame.sandbox.RunningCommand`."""

    def __init__(self, caller: AsyncCaller, command_id: str) -> None:
        self._call = caller.run
        self._follower = command_steps.Follower(command_id)

    @property
    def id(self) -> str:
        return self._follower.id

    async def read(self) -> Output | None:
        return await self._call(self._follower.read())

    async def __aiter__(self) -> AsyncIterator[Output]:
        while (output := await self.read()) is not None:
            yield output

    async def wait(self, timeout: float | None = None) -> CommandResult:
        return await self._call(command_steps.wait_for(self._follower, timeout))

    async def write(self, data: bytes | str) -> None:
        await self._call(command_steps.write(self.id, as_bytes(data)))

    async def close_stdin(self) -> None:
        await self._call(command_steps.write(self.id, b"", end=True))

    async def kill(self, signal: int = 9) -> None:
        await self._call(do(wire.Kill(self.id, signal)))

    async def resize(self, rows: int, columns: int) -> None:
        await self._call(do(wire.Resize(self.id, rows, columns)))

    def __repr__(self) -> str:
        return f"<AsyncRunningCommand {self.id}>"


class AsyncFiles:
    """The files of a sandbox; see `flame.sandbox.Files`."""

    def __init__(self, caller: AsyncCaller) -> None:
        self._call = caller.run

    async def read(self, path: str, *, max_size: int = MAX_SIZE) -> bytes:
        return await self._call(file_steps.read(path, max_size))

    async def read_text(self, path: str, encoding: str = "utf-8", *, max_size: int = MAX_SIZE) -> str:
        return (await self.read(path, max_size=max_size)).decode(encoding)

    async def write(self, path: str, data: bytes | str, *, mode: int | None = None) -> None:
        await self._call(file_steps.write(path, as_bytes(data), mode))

    async def list(self, path: str = ".") -> list[FileInfo]:
        return await self._call(file_steps.listed(path))

    async def stat(self, path: str) -> FileInfo:
        return await self._call(file_steps.stat(path))

    async def exists(self, path: str) -> bool:
        return await self._call(file_steps.exists(path))

    async def make_dir(self, path: str) -> None:
        await self._call(do(wire.MakeDir(path)))

    async def remove(self, path: str, *, recursive: bool = False) -> None:
        await self._call(do(wire.Remove(path, recursive)))

    async def rename(self, path: str, new: str) -> None:
        await self._call(do(wire.Rename(path, new)))

    async def watch(self, path: str = ".", *, recursive: bool = False) -> AsyncFileWatch:
        watcher = file_steps.Watcher(path, recursive=recursive)
        await self._call(watcher.begin())
        return AsyncFileWatch(self._call, watcher)

    async def upload(self, local: str | os.PathLike[str], path: str, *, max_size: int = MAX_SIZE) -> None:
        await self._call(transfer.upload(local, path, max_size))

    async def download(self, path: str, local: str | os.PathLike[str], *, max_size: int = MAX_SIZE) -> None:
        await self._call(transfer.download(path, local, max_size))


class AsyncFileWatch:
    """Events of files as they come, without end; as an async context manager it is closed at the end."""

    def __init__(self, call: Any, watcher: file_steps.Watcher) -> None:
        self._call = call
        self._watcher = watcher

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> FileEvent:
        return await self._call(self._watcher.next())

    async def close(self) -> None:
        await self._call(self._watcher.end())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


async def end(caller: AsyncCaller) -> None:
    """Close the session of a sandbox, whatever became of it."""
    try:
        await caller.session.close(force=True)
    except (NotFoundError, InvalidStateError):
        pass  # it is forgotten already

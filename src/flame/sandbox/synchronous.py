"""`Sandbox`: a place of its own to run code, commands and files in."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

from flame.client.default import ConnectionInstance
from flame.client.synchronous import Connection
from flame.client.values import ResourceRequirement, SessionAttributes
from flame.model.errors import FlameError, NotFoundError
from flame.model.isolation import Limits
from flame.model.states import SessionState
from flame.sandbox import code as code_steps
from flame.sandbox import commands as command_steps
from flame.sandbox import files as file_steps
from flame.sandbox import opening, transfer, wire
from flame.sandbox import snapshot as snapshots
from flame.sandbox.arguments import as_bytes
from flame.sandbox.asynchronous import end
from flame.sandbox.calling import AsyncCaller, Caller, closed_error
from flame.sandbox.ports import AsyncExposedPort, ExposedPort
from flame.sandbox.snapshot import Snapshot
from flame.sandbox.steps import do
from flame.sandbox.transfer import MAX_SIZE
from flame.sandbox.values import CommandInfo, CommandResult, Execution, FileEvent, FileInfo, Output


class Sandbox:
    """A place of its own to run code, commands and files in.

    Made by `create`, or `open` by its id, also from other processes; several may use it at once. As a context manager
    what was created is closed at the end, what was opened is only let go. `files` are its files. `skipped`, of one made
    with a snapshot or by `fork`: the variables that it lacks, with the reason. All times are seconds.

    Every method raises SandboxLostError when the sandbox has ended by itself, InvalidStateError when it was closed or
    is paused, and the errors of the connection.
    """

    def __init__(self, caller: Caller, *, created: bool) -> None:
        """Made by `create` and `open`."""
        self._caller = caller
        self._call = caller.run
        self._created = created
        self.skipped: dict[str, str] = {}
        self.files = Files(caller)

    # --- its life ----------------------------------------------------------------------------------------------------

    @classmethod
    def create(
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
        connection: Connection | None = None,
    ) -> Self:
        """A new sandbox.

        `isolation` is how far it is kept from its node. `network` is "none", "host", or a list of what it may reach,
        such as ["pypi.org", "*.example.com:443", "10.1.2.0/24"]. `limits` is what it may use, `resreq` what it gets of
        a node, such as "cpu=1,mem=2g". `env` is for all that runs in it. It is closed when nothing was asked of it for
        `idle_timeout` seconds (None = never), also while it is paused. `labels` are those of its session, `tenant`
        whose share of the cluster it uses; of the object cache it may read `readable_objects` beside its own, such as
        ["datasets/shared"]. It begins with the files, variables and environment of `snapshot`. Waits up
        to `timeout` seconds for it to start.

        Raises TimedOutError and UnavailableError, with the reason, when it does not start; InvalidArgumentError.
        """
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
        return cls._create(connection or ConnectionInstance.instance(), attrs, env, snapshot, timeout)

    @classmethod
    def _create(
        cls,
        connection: Connection,
        attrs: SessionAttributes,
        env: Mapping[str, str] | None,
        snapshot: Snapshot | None,
        timeout: float,
    ) -> Self:
        begin = opening.beginning(attrs, env)
        opening.check_begin(snapshot, timeout)
        session = connection.create_session(attrs)
        made = cls(Caller(session, AsyncCaller(session.asynchronous)), created=True)
        try:
            try:
                begun = session.invoke(begin, timeout)
            except FlameError as error:
                session.refresh()
                raise opening.not_started(session, error, timeout) from None
            opening.check_begun(begun)
            if snapshot is not None:
                made._call(snapshots.restore(snapshot))
                made.skipped.update(snapshot.skipped)
        except BaseException:
            session.close(force=True)
            raise
        return made

    @classmethod
    def open(cls, sandbox_id: str, *, connection: Connection | None = None) -> Self:
        """The sandbox of that id.

        Raises NotFoundError, InvalidStateError (it was closed), SandboxLostError (it ended by itself),
        InvalidArgumentError (a session of that id is no sandbox).
        """
        try:
            session = (connection or ConnectionInstance.instance()).get_session(sandbox_id)
        except NotFoundError:
            raise opening.unknown(sandbox_id) from None
        opening.check_session(session)
        if session.state is not SessionState.OPEN:
            raise closed_error(session)
        return cls(Caller(session, AsyncCaller(session.asynchronous)), created=False)

    @property
    def id(self) -> str:
        """Its id, good for `open`."""
        return self._caller.session.id

    def close(self) -> None:
        """End it for everybody, with all that runs in it. Closing a closed one does nothing."""
        caller = self._caller.asynchronous
        if not caller.closed:
            caller.closed = True
            self._caller.session.connection.thread.run(end(caller))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._created:
            self.close()
        else:
            self._caller.asynchronous.closed = True

    def __repr__(self) -> str:
        return f"<Sandbox {self.id}>"

    def pause(self) -> None:
        """Stop all that it started; it uses no processor, but keeps its memory, and time-outs stand still.

        Files can be used meanwhile; other calls raise InvalidStateError until `resume`.
        """
        self._call(do(wire.Pause()))

    def resume(self) -> None:
        """Let all go on that `pause` stopped. One that is not paused is no error."""
        self._call(do(wire.Resume()))

    def snapshot(self) -> Snapshot:
        """The files of the working folder, the variables and the environment, to begin others with; no processes and
        no memory. `skipped` of it names the variables that can't be taken.

        All that it started stands still meanwhile, and other calls wait. Raises InvalidStateError while code runs.
        """
        return self._call(snapshots.take())

    def fork(self, *, timeout: float = 60.0) -> Self:
        """Another sandbox like this one, which begins with its snapshot: `skipped` tells what it lacks of it."""
        session = self._caller.session
        taken = self.snapshot()
        return self._create(session.connection, opening.attributes_like(session), None, taken, timeout)

    def expose(self, port: int) -> ExposedPort:
        """Listen on this machine's loopback, and connect whoever comes to this port of the sandbox's own network.

        Raises InvalidArgumentError for what is no port.
        """
        thread = self._caller.session.connection.thread
        return ExposedPort(thread.run(AsyncExposedPort(self._caller.asynchronous, port).listen()), thread)

    # --- code --------------------------------------------------------------------------------------------------------

    def run_code(
        self,
        code: str,
        *,
        timeout: float | None = None,
        on_stdout: code_steps.OnText | None = None,
        on_stderr: code_steps.OnText | None = None,
        on_result: code_steps.OnResult | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Execution:
        """Run Python code in the sandbox's kernel, whose variables last from one run to the next.

        After `timeout` seconds it is interrupted; the variables stay if it obeys. What it prints and shows is given to
        the functions `on_...` meanwhile. `env` is for this run. Runs of several clients take turns. Code that fails is
        no error here: see `Execution.error`. Who is interrupted while it waits (Ctrl-C) interrupts the code.
        """
        return self._call(code_steps.run(code, timeout, on_stdout, on_stderr, on_result, env))

    def interrupt(self) -> None:
        """Interrupt the code that runs, as Ctrl-C does; if it does not stop, its kernel is ended."""
        self._call(do(wire.Interrupt()))

    def restart_kernel(self) -> None:
        """End the kernel and the code that runs and waits for it; the next run finds no variables."""
        self._call(do(wire.RestartKernel()))

    # --- commands ----------------------------------------------------------------------------------------------------

    def run_command(
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
        """Run a command, given as words or as one text for the shell, and wait for its end.

        It starts in the working folder, or in `cwd`; its stdin is what is given, else empty. After `timeout` seconds it
        and all that it started are ended (SIGTERM, after 2 s SIGKILL). What it prints is given to the functions
        `on_...` meanwhile. Programs that it leaves in the background go on. A status other than 0 is no error here.

        Raises InvalidArgumentError when it can't be started.
        """
        return self._call(command_steps.run(command, stdin, timeout, env, cwd, on_stdout, on_stderr))

    def start_command(
        self,
        command: str | Sequence[str],
        *,
        stdin: bytes | str | None = None,
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        pty: tuple[int, int] | None = None,
        followed: bool = False,
    ) -> RunningCommand:
        """Start a command and don't wait. `stdin` is all that it reads; without it, what is written to it later.

        `pty`: rows and columns of a terminal that it runs in. Of what it prints the last 2 MiB of each stream are kept
        for who comes later, who is told how many bytes before them are gone; while somebody reads, it waits for him
        instead, as with a pipe. `followed`: somebody is going to read, so it waits from its first byte on. A reader who
        has not asked for 30 seconds has gone. Raises InvalidArgumentError when it can't be started.
        """
        steps = command_steps.start(command, stdin, timeout, env, cwd, pty, followed=followed)
        return RunningCommand(self._caller, self._call(steps))

    def commands(self) -> list[CommandInfo]:
        """The commands that run, whoever started them."""
        return self._call(command_steps.running())

    def command(self, command_id: str) -> RunningCommand:
        """A command by its id, read from its first byte that is still there; that it is unknown is found out later."""
        return RunningCommand(self._caller, command_id)


class RunningCommand:
    """A command that was started. Iterating gives its output as it comes, to its end.

    Its methods raise NotFoundError when there is no such command, or when it ended long ago.
    """

    def __init__(self, caller: Caller, command_id: str) -> None:
        self._call = caller.run
        self._follower = command_steps.Follower(command_id)

    @property
    def id(self) -> str:
        """Its id, good for `Sandbox.command`."""
        return self._follower.id

    def read(self) -> Output | None:
        """What it printed since the last time; waits for something, None at its end."""
        return self._call(self._follower.read())

    def __iter__(self) -> Iterator[Output]:
        while (output := self.read()) is not None:
            yield output

    def wait(self, timeout: float | None = None) -> CommandResult:
        """Wait for its end. The result has what was not read before. Raises TimedOutError; it goes on then."""
        return self._call(command_steps.wait_for(self._follower, timeout))

    def write(self, data: bytes | str) -> None:
        """Write to its stdin or terminal; waits while it does not read. Raises InvalidStateError when it reads no
        more."""
        self._call(command_steps.write(self.id, as_bytes(data)))

    def close_stdin(self) -> None:
        """Nothing more will be written. In a terminal this is what Ctrl-D sends."""
        self._call(command_steps.write(self.id, b"", end=True))

    def kill(self, signal: int = 9) -> None:
        """Send a signal to its processes. One that has ended is no error."""
        self._call(do(wire.Kill(self.id, signal)))

    def resize(self, rows: int, columns: int) -> None:
        """Change the size of its terminal."""
        self._call(do(wire.Resize(self.id, rows, columns)))

    def __repr__(self) -> str:
        return f"<RunningCommand {self.id}>"


class Files:
    """The files of a sandbox. Paths that are not absolute start at its working folder.

    Reading, writing and listing go through links, removing and renaming take the link itself. Raises NotFoundError,
    InvalidArgumentError (a folder where a file is wanted, or the reverse), PermissionDeniedError, ExhaustedError (the
    disk is full).
    """

    def __init__(self, caller: Caller) -> None:
        self._call = caller.run

    def read(self, path: str, *, max_size: int = MAX_SIZE) -> bytes:
        """All of a file. Raises TooLargeError when it has more than `max_size` bytes."""
        return self._call(file_steps.read(path, max_size))

    def read_text(self, path: str, encoding: str = "utf-8", *, max_size: int = MAX_SIZE) -> str:
        """All of a file as text."""
        return self.read(path, max_size=max_size).decode(encoding)

    def write(self, path: str, data: bytes | str, *, mode: int | None = None) -> None:
        """Write a file, which takes the place of one of this name when it is complete; folders above it are made.

        `mode` are its permissions, else those of the file before, else 0o644.
        """
        self._call(file_steps.write(path, as_bytes(data), mode))

    def list(self, path: str = ".") -> list[FileInfo]:
        """The entries of a folder, by name."""
        return self._call(file_steps.listed(path))

    def stat(self, path: str) -> FileInfo:
        """What has this name; a link is told as the link."""
        return self._call(file_steps.stat(path))

    def exists(self, path: str) -> bool:
        """Whether something has this name."""
        return self._call(file_steps.exists(path))

    def make_dir(self, path: str) -> None:
        """Make a folder, and those above it; one that exists is no error."""
        self._call(do(wire.MakeDir(path)))

    def remove(self, path: str, *, recursive: bool = False) -> None:
        """Remove a file, a link or an empty folder; with `recursive` a folder and all in it."""
        self._call(do(wire.Remove(path, recursive)))

    def rename(self, path: str, new: str) -> None:
        """Give it another name; a file of that name is replaced."""
        self._call(do(wire.Rename(path, new)))

    def watch(self, path: str = ".", *, recursive: bool = False) -> FileWatch:
        """What happens to a file, or to those in a folder, from now on; with `recursive` also in folders below it."""
        watcher = file_steps.Watcher(path, recursive=recursive)
        self._call(watcher.begin())
        return FileWatch(self._call, watcher)

    def upload(self, local: str | os.PathLike[str], path: str, *, max_size: int = MAX_SIZE) -> None:
        """Copy a file or a folder of this machine into the sandbox, under this name.

        Links, pipes, sockets and devices in a folder are left out. Raises OSError, TooLargeError for more than
        `max_size` bytes.
        """
        self._call(transfer.upload(local, path, max_size))

    def download(self, path: str, local: str | os.PathLike[str], *, max_size: int = MAX_SIZE) -> None:
        """Copy a file or a folder of the sandbox to this machine, under this name.

        Links in a folder are left out; files take the place of those that are there, and nothing is written through
        links that are. Raises OSError, TooLargeError for more than `max_size` bytes.
        """
        self._call(transfer.download(path, local, max_size))


class FileWatch:
    """Events of files as they come, without end; as a context manager it is closed at the end."""

    def __init__(self, call: Any, watcher: file_steps.Watcher) -> None:
        self._call = call
        self._watcher = watcher

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> FileEvent:
        return self._call(self._watcher.next())

    def close(self) -> None:
        """Watch no more."""
        self._call(self._watcher.end())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

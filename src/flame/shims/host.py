"""The host shim: an instance is a process of this machine, in its own group and its own folder.

A new process is started for an executor, or one that was started ahead (pool.py) is bound to it. Until then such a
process has an id and a token that mean something only between the two of them.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec

from flame.model.errors import FlameError, UnavailableError
from flame.model.states import BindCode
from flame.shims import grpc_dialect
from flame.shims.environment import Surroundings, environment, program, working_directory
from flame.shims.isolation import Confined, Confinement
from flame.shims.link_dialect import LinkDialect
from flame.shims.logs import ExecutorLog, LogStore
from flame.shims.pool import Pool
from flame.shims.processes import Keeper, Process, describe_status, signal_of
from flame.shims.reception import Reception
from flame.shims.shim import BindError, Dialect, Launch, Owner, Packages, Usage
from flame.shims.warm import WarmLimits

_LAST_LINES = 20
_LAST_BYTES = 2000


class HostShim:
    """Starts processes. `folder` is where each executor gets a folder of its own as long as it lives."""

    def __init__(
        self,
        keeper: Keeper,
        reception: Reception,
        logs: LogStore,
        folder: Path,
        surroundings: Surroundings,
        warm: WarmLimits,
        packages: Packages,
        confinement: Confinement,
    ) -> None:
        self._keeper = keeper
        self._reception = reception
        self._logs = logs
        self._folder = folder
        self._surroundings = surroundings
        self._packages = packages
        self._confinement = confinement
        self._number = 0
        self._pool: Pool[HostInstance] = Pool(self._spawn, warm)

    async def prepare(self, launch: Launch) -> Launch:
        """Install the application's package if it is not there yet. Raises BindError with code 10."""
        try:
            package = await self._packages.provide(launch.context.application.name, launch.application)
        except FlameError as error:
            raise BindError(BindCode.INSTALL, _text(error)) from error
        return msgspec.structs.replace(launch, package=package)

    async def start(self, launch: Launch, owner: Owner) -> HostInstance:
        """Start the application's command, or take a process of it that waits. Raises BindError with code 11."""
        instance = self._pool.starting(launch)
        try:
            if instance is None:
                instance = await self._spawn(launch, owner)
            else:
                await self._bind(instance, launch, owner)
        except BaseException:
            self._pool.over(launch.executor_id)
            raise
        instance.entered = partial(self._pool.entered, launch)
        instance.disposed = partial(self._pool.over, launch.executor_id)
        return instance

    async def close(self) -> None:
        """End the processes that wait for an executor, and start no more of them; returns when they are gone."""
        await self._pool.close()

    async def _bind(self, instance: HostInstance, launch: Launch, owner: Owner) -> None:
        try:
            instance.bind(owner)
            self._logs.claim(instance.log, launch.executor_id, launch.context.session_id)
        except OSError as error:
            instance.kill()
            await instance.ended
            await instance.dispose()
            raise BindError(BindCode.START, f"can't make the executor's folder: {error}") from error

    async def _spawn(self, launch: Launch, owner: Owner) -> HostInstance:
        """Start a process. One without a session keeps its log to itself until it is bound."""
        application = launch.application
        own = self._folder / launch.executor_id
        tmp = own / "tmp"
        self._number += 1
        socket = self._reception.folder / f"{self._number:x}.sock"
        try:
            tmp.mkdir(parents=True, mode=0o700)
            session_id = launch.context.session_id
            log = self._logs.create(launch.executor_id, session_id) if session_id else self._logs.unclaimed(own / "log")
        except OSError as error:
            raise BindError(BindCode.START, f"can't make the executor's folder: {error}") from error
        instance = HostInstance(launch, owner, own, socket, log, self._reception, self._surroundings.max_payload)
        try:
            instance.hold_package()
            limits = self._confinement.held(launch)
            around = self._confinement.surroundings(launch, self._surroundings)
            env = environment(launch, around, socket, self._confinement.temporary(launch, tmp))
            wanted = program(application, env, around.environ, working_directory(application, own))
            confined = self._confinement.confine(launch, wanted, limits, [Path(around.link)])
            instance.confined = confined
            if limits.output:
                log.watch(limits.output, partial(instance.flooded, limits.output))
            stdout, stderr = log.open_pipes()
            try:
                process = await self._keeper.spawn(launch.executor_id, confined.program, stdout, stderr)
            except OSError as error:
                text = error.strerror or str(error)
                raise BindError(BindCode.START, f"can't start command {wanted.path!r}: {text}") from error
            finally:
                os.close(stdout)
                os.close(stderr)
        except BaseException:
            await instance.dispose()
            raise
        instance.run(process)
        return instance


class HostInstance:
    """One process and what it started."""

    def __init__(
        self,
        launch: Launch,
        owner: Owner,
        folder: Path,
        socket: Path,
        log: ExecutorLog,
        reception: Reception,
        max_payload: int,
    ) -> None:
        self.pid = 0
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._launch = launch
        self._owner = owner
        self._folder = folder
        self._socket = socket
        self.log = log
        self.confined: Confined | None = None
        self.entered: Callable[[], None] = _nothing
        self.disposed: Callable[[], None] = _nothing
        self._let_go: Callable[[], None] = _nothing
        self._reception = reception
        self._max_payload = max_payload
        self._process: Process | None = None
        self._dialect: Dialect | None = None
        # Its first sign of life, waited for before it is started.
        self._link, self._file = reception.expect(launch.executor_id, launch.token, socket)

    def hold_package(self) -> None:
        """The node keeps its package until it is disposed of. Raises BindError."""
        package = self._launch.package
        if package is not None:
            try:
                package.hold()
            except FlameError as error:
                raise BindError(BindCode.INSTALL, _text(error)) from error
            self._let_go = package.release

    def run(self, process: Process) -> None:
        """It was started."""
        self._process = process
        self.pid = process.pid
        process.ended.add_done_callback(self._on_exit)

    def bind(self, owner: Owner) -> None:
        """It waited, and belongs to this owner from now on."""
        self._owner = owner
        if self._dialect is not None:
            self._dialect.owner = owner

    async def ready(self) -> Dialect:
        """Wait for its link or its gRPC socket, whichever comes first. Raises BindError (11) when it ends before."""
        if self._dialect is not None:
            return self._dialect
        await asyncio.wait({self._link, self._file, self.ended}, return_when=asyncio.FIRST_COMPLETED)
        if self._link.done():
            self._dialect = LinkDialect(self._link.result(), self._owner)
            return self._dialect
        if not self.ended.done():
            connecting = asyncio.ensure_future(grpc_dialect.connect(self._socket, self._owner, self._max_payload))
            try:
                await asyncio.wait({connecting, self.ended}, return_when=asyncio.FIRST_COMPLETED)
                if connecting.done():
                    self._dialect = connecting.result()
                    return self._dialect
            finally:
                connecting.cancel()
        raise BindError(BindCode.START, f"the instance {self.ended.result()} before it was ready{self.last_words()}")

    def last_words(self) -> str:
        """The end of its stderr, as a clause to append to a message."""
        self.log.catch_up()
        text = self.log.streams["stderr"].tail(_LAST_BYTES).decode(errors="replace").strip()
        if not text:
            return ""
        return "; the end of its stderr:\n" + "\n".join(text.splitlines()[-_LAST_LINES:])

    def flooded(self, allowed: int) -> None:
        """It wrote more than it may."""
        self._owner.broken(f"it wrote more than its limit of {allowed} bytes to stdout and stderr")

    def usage(self) -> Usage | None:
        """What its control group counted."""
        confined = self.confined
        return confined.group.usage() if confined is not None and confined.group is not None else None

    def terminate(self) -> None:
        if self._process is not None:
            self._process.signal(signal.SIGTERM)

    def kill(self) -> None:
        if self._process is not None:
            self._process.signal(signal.SIGKILL)

    async def dispose(self) -> None:
        """Close its log and connection, remove its socket and folder."""
        self._reception.forget(self._launch.executor_id, self._socket)
        if self._dialect is not None:
            self._dialect.close()
        elif self._link.done():
            self._link.result().close(UnavailableError("the executor has ended"))
        self.log.end()
        await asyncio.to_thread(self._remove)
        self._let_go()
        self.disposed()

    def _remove(self) -> None:
        self._socket.unlink(missing_ok=True)
        shutil.rmtree(self._folder, ignore_errors=True)
        if self.confined is not None and self.confined.group is not None:
            self.confined.group.remove()

    def _on_exit(self, status: asyncio.Future[int]) -> None:
        if self.ended.done():
            return
        number = status.result()
        confined = self.confined
        if confined is None:
            self.ended.set_result(describe_status(number))
            return
        boxed = confined.program.boxed
        words = describe_status(number, boxed=boxed)
        self.ended.set_result(confined.why(words, killed=signal_of(number, boxed=boxed) == signal.SIGKILL))


def _text(error: FlameError) -> str:
    return f"{error.message}; {error.remedy}" if error.remedy else error.message


def _nothing() -> None:
    """Nobody wants to know."""

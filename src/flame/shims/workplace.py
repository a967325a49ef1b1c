"""What an instance has on its node while it lives: a folder, a log, a hold on its package, an environment."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

from flame.model.errors import FlameError
from flame.model.states import BindCode
from flame.shims.environment import Surroundings, environment, program, working_directory
from flame.shims.logs import LogStore
from flame.shims.processes import Keeper, Process, Program
from flame.shims.shim import BindError, Launch

_LAST_LINES = 20
_LAST_BYTES = 2000
# The doors of the host shim; a program behind another one must not knock there.
_NOT_OURS = ("FLAME_INSTANCE_LINK", "FLAME_INSTANCE_ENDPOINT")


class Workshop:
    """What a node gives to the shims that run programs. `folder` is where each executor gets a folder of its own,
    `prepare` installs the package that a launch needs."""

    def __init__(
        self,
        keeper: Keeper,
        logs: LogStore,
        folder: Path,
        surroundings: Surroundings,
        prepare: Callable[[Launch], Awaitable[Launch]],
    ) -> None:
        self.keeper = keeper
        self.logs = logs
        self.folder = folder
        self.surroundings = surroundings
        self.prepare = prepare

    async def open(self, launch: Launch) -> Workplace:
        """A place for one instance; the caller closes it. Raises BindError."""
        own = self.folder / launch.executor_id
        try:
            (own / "tmp").mkdir(parents=True, mode=0o700)
            place = Workplace(self, launch, own)
        except OSError as error:
            raise BindError(BindCode.START, f"can't make the executor's folder: {error}") from error
        try:
            place.furnish()
        except BaseException:
            await place.close()
            raise
        return place


class Workplace:
    """The place of one instance. `env` and `program` are those of the application's command."""

    env: dict[str, str]
    program: Program

    def __init__(self, workshop: Workshop, launch: Launch, folder: Path) -> None:
        """Raises OSError."""
        self.launch = launch
        self.folder = folder
        self.max_payload = workshop.surroundings.max_payload
        self.log = workshop.logs.create(launch.executor_id, launch.context.session_id)
        self._workshop = workshop
        self._held = False
        # The log's own stdout is for those whose stdout means nothing else.
        self._stdout, self._stderr = self.log.open_pipes()

    def furnish(self) -> None:
        """Hold the package, find the command, lay out the session's common data. Raises BindError."""
        launch, around = self.launch, self._workshop.surroundings
        if launch.package is not None:
            try:
                launch.package.hold()
            except FlameError as error:
                raise BindError(BindCode.INSTALL, in_words(error)) from error
            self._held = True
        self.env = environment(launch, around, self.folder, self.folder / "tmp")
        for name in _NOT_OURS:
            del self.env[name]
        if launch.context.HasField("common_data"):
            file = self.folder / "common_data"
            try:
                file.write_bytes(launch.context.common_data)
            except OSError as error:
                raise BindError(BindCode.START, f"can't write the session's common data: {error}") from error
            self.env["FLAME_COMMON_DATA_FILE"] = str(file)
        cwd = working_directory(launch.application, self.folder)
        self.program = program(launch.application, self.env, around.environ, cwd)

    def variables(self, **more: str) -> dict[str, str]:
        """The environment with these besides."""
        return {**self.env, **more}

    async def spawn(self, wanted: Program, stdout: int | None = None, identity: str = "") -> Process:
        """Start a program whose stderr, and stdout unless it is given, go to the log. Raises OSError.

        `identity`: see Keeper.spawn; the executor's id if empty.
        """
        out = self._stdout if stdout is None else stdout
        return await self._workshop.keeper.spawn(identity or self.launch.executor_id, wanted, out, self._stderr)

    async def start(self, wanted: Program, stdout: int | None = None) -> Process:
        """Start the one program of an instance. Raises BindError."""
        try:
            return await self.spawn(wanted, stdout)
        except OSError as error:
            text = error.strerror or str(error)
            raise BindError(BindCode.START, f"can't start command {self.program.path!r}: {text}") from error
        finally:
            self.release_output()

    def release_output(self) -> None:
        """Nothing more is started here: the log ends when those that run do."""
        for descriptor in (self._stdout, self._stderr):
            if descriptor >= 0:
                os.close(descriptor)
        self._stdout = self._stderr = -1

    def stderr_end(self) -> int:
        """How much was written to stderr so far, in bytes."""
        self.log.catch_up()
        return self.log.streams["stderr"].end

    def last_words(self, since: int = 0) -> str:
        """The end of its stderr, of what came behind the first `since` bytes, as a clause to append to a message."""
        written = self.stderr_end() - since
        text = self.log.streams["stderr"].tail(min(written, _LAST_BYTES)).decode(errors="replace").strip()
        if not text or written <= 0:
            return ""
        return "; the end of its stderr:\n" + "\n".join(text.splitlines()[-_LAST_LINES:])

    async def close(self) -> None:
        """Remove the folder and let go of everything."""
        self.release_output()
        self.log.end()
        await asyncio.to_thread(shutil.rmtree, self.folder, ignore_errors=True)
        if self._held and self.launch.package is not None:
            self.launch.package.release()


def in_words(error: FlameError) -> str:
    """An error with what to do about it, for the message of a BindError."""
    return f"{error.message}; {error.remedy}" if error.remedy else error.message

"""What an instance has on its node while it lives: a folder, a log, a hold on its package, an environment, limits."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import msgspec

from flame.model.errors import FlameError
from flame.model.isolation import isolated
from flame.model.network import is_list
from flame.model.states import BindCode
from flame.shims.egress import Egress
from flame.shims.environment import Surroundings, environment, program, program_of_image, working_directory
from flame.shims.isolation import Confined, Confinement
from flame.shims.limits import Groups
from flame.shims.logs import LogStore
from flame.shims.processes import Keeper, Process, Program
from flame.shims.removal import remove_tree
from flame.shims.shim import BindError, Launch, ObjectDoor, Objects, Packages, Usage

# What an instance that no socket reaches is told in place of one: its link carries that, too.
INSIDE_LINK = "link"
_LAST_LINES = 20
_LAST_BYTES = 2000


class Workshop:
    """What a node gives to the shims that run programs. `folder` is where each executor gets a folder of its own, and
    `sockets` one with a short path for sockets."""

    def __init__(
        self,
        keeper: Keeper,
        logs: LogStore,
        folder: Path,
        sockets: Path,
        surroundings: Surroundings,
        packages: Packages,
        confinement: Confinement,
        objects: Objects | None = None,
    ) -> None:
        self.keeper = keeper
        self.logs = logs
        self.folder = folder
        self.sockets = sockets
        self.surroundings = surroundings
        self.confinement = confinement
        self.objects = objects
        self._packages = packages

    async def prepare(self, launch: Launch) -> Launch:
        """Install the application's package if it is not there yet. Raises BindError with code 10."""
        try:
            package = await self._packages.provide(launch.context.application.name, launch.application)
        except FlameError as error:
            raise BindError(BindCode.INSTALL, in_words(error)) from error
        return msgspec.structs.replace(launch, package=package)

    async def open(
        self, launch: Launch, variables: Mapping[str, str] | None = None, sockets: Sequence[Path] = ()
    ) -> Workplace:
        """A place for one instance; the caller closes it. Raises BindError.

        `variables` are for its environment, which its arguments may name. `sockets` are what it may connect to, and
        folders where it may make some.
        """
        own = self.folder / launch.executor_id
        try:
            (own / "tmp").mkdir(parents=True, mode=0o700)
            place = Workplace(self, launch, own, sockets)
        except OSError as error:
            raise BindError(BindCode.START, f"can't make the executor's folder: {error}") from error
        try:
            place.open_objects()
            place.furnish(variables or {})
            place.open_network()
        except BaseException:
            await place.close()
            raise
        return place


class Workplace:
    """The place of one instance. `env` and `program` are those of the application's command."""

    env: dict[str, str]
    program: Program

    def __init__(self, workshop: Workshop, launch: Launch, folder: Path, sockets: Sequence[Path]) -> None:
        """Raises OSError."""
        self.launch = launch
        self.folder = folder
        self.objects: ObjectDoor | None = None
        self.max_payload = workshop.surroundings.max_payload
        session_id = launch.context.session_id
        # One without a session keeps its log to itself until it is bound.
        logs = workshop.logs
        self.log = logs.create(launch.executor_id, session_id) if session_id else logs.unclaimed(folder / "log")
        self._workshop = workshop
        self._sockets = sockets
        self._shown: list[Path] = []
        self._held = False
        self._running: list[Running] = []
        self._spent: Usage | None = None  # by programs that ended
        self._egress: Egress | None = None
        self._groups: Groups | None = None  # where those of its programs are, None = among the node's
        self._lapped = Usage()
        # The log's own stdout is for those whose stdout means nothing else.
        self._stdout, self._stderr = self.log.open_pipes()

    def open_objects(self) -> None:
        """What an instance behind an isolation level reaches the object cache by. Raises BindError."""
        launch, objects = self.launch, self._workshop.objects
        if objects is None or not isolated(launch.application.isolation):
            return
        try:
            self.objects = objects.open(launch.context.application.name)
        except OSError as error:
            raise BindError(BindCode.START, f"can't make the socket of the instance's objects: {error}") from error
        if launch.context.session_id:
            self.objects.belongs_to(launch.context.session_id, launch.application.readable_objects)

    def furnish(self, variables: Mapping[str, str]) -> None:
        """Hold the package, find the command, lay out the session's common data. Raises BindError."""
        launch, confinement = self.launch, self._workshop.confinement
        if launch.package is not None:
            try:
                launch.package.hold()
            except FlameError as error:
                raise BindError(BindCode.INSTALL, in_words(error)) from error
            self._held = True
        self.limits = confinement.held(launch)
        around = confinement.surroundings(launch, self._workshop.surroundings)
        if self.objects is not None:
            way = INSIDE_LINK if confinement.streams(launch) else str(self.objects.path)
            around = msgspec.structs.replace(around, cache_endpoint=f"relay:{way}")
        seen = msgspec.structs.replace(launch, devices=confinement.devices(launch))
        self.env = {**environment(seen, around, confinement.temporary(launch, self.folder / "tmp")), **variables}
        if launch.context.HasField("common_data"):
            file = self.folder / "common_data"
            try:
                file.write_bytes(launch.context.common_data)
            except OSError as error:
                raise BindError(BindCode.START, f"can't write the session's common data: {error}") from error
            self.env["FLAME_COMMON_DATA_FILE"] = str(file)
            self._shown.append(file)
        if launch.root is not None:
            own = launch.as_written.arguments
            self.program = program_of_image(launch.application, self.env, self.folder, own)
            return
        cwd = working_directory(launch.application, self.folder)
        self.program = program(launch.application, self.env, around.environ, cwd)

    def open_network(self) -> None:
        """What an instance whose network is a list reaches it by. Raises BindError."""
        launch, workshop = self.launch, self._workshop
        network = launch.application.network
        if not is_list(network):
            return
        try:
            self._groups = workshop.confinement.shared_groups(self.limits, f"{launch.executor_id}-shared")
            group = partial(workshop.confinement.group_of_proxy, self._groups, self.limits)
            self._egress = Egress(
                workshop.keeper, workshop.folder, workshop.sockets, launch.executor_id, network, self._stderr, group
            )
        except OSError as error:
            raise BindError(BindCode.START, f"can't make what the instance's network needs: {error}") from error

    def claim(self, launch: Launch) -> None:
        """What was started ahead belongs to the executor of this launch from now on. Raises OSError."""
        session_id = launch.context.session_id
        self._workshop.logs.claim(self.log, launch.executor_id, session_id)
        if self.objects is not None:
            self.objects.belongs_to(session_id, launch.application.readable_objects)

    def watch_output(self, broken: Callable[[str], None]) -> None:
        """Call `broken` with the reason, once, when more is written to the log than the limits allow."""
        allowed = self.limits.output
        if allowed:
            why = f"it wrote more than its limit of {allowed} bytes to stdout and stderr"
            self.log.watch(allowed, partial(broken, why))

    def variables(self, **more: str) -> dict[str, str]:
        """The environment with these besides."""
        return {**self.env, **more}

    async def spawn(
        self, wanted: Program, stdout: int | None = None, stdin: int | None = None, identity: str = ""
    ) -> Running:
        """Start a program in its confinement. Its stderr, and stdout unless it is given, go to the log; without a
        stdin it has an empty one. Raises OSError and BindError.

        `identity`: see Keeper.spawn; the executor's id if empty.
        """
        name = identity or self.launch.executor_id
        out = self._stdout if stdout is None else stdout
        workshop = self._workshop
        proxy = self._egress.socket if self._egress is not None else None
        sockets = self._sockets
        if self.objects is not None and not workshop.confinement.streams(self.launch):
            sockets = [*sockets, self.objects.path]
        confined = workshop.confinement.confine(
            self.launch, name, wanted, self.limits, sockets, self._shown, proxy, self._groups
        )
        try:
            process = await workshop.keeper.spawn(name, confined.program, out, self._stderr, stdin)
        except BaseException:
            await asyncio.to_thread(confined.release)
            raise
        running = Running(process, confined)
        self._running.append(running)
        return running

    async def start(self, wanted: Program, stdout: int | None = None, stdin: int | None = None) -> Running:
        """Start the one program of an instance. Raises BindError."""
        try:
            return await self.spawn(wanted, stdout, stdin)
        except OSError as error:
            text = error.strerror or str(error)
            raise BindError(BindCode.START, f"can't start command {self.program.path!r}: {text}") from error
        finally:
            self.release_output()

    async def over(self, running: Running) -> None:
        """This one has ended, and nobody asks for it any more."""
        self._running.remove(running)
        used = running.usage()
        if used is not None:
            self._spent = used if self._spent is None else self._spent.and_then(used)
        await asyncio.to_thread(running.confined.release)

    def usage(self) -> Usage | None:
        """What its programs used so far; None when nobody counts."""
        total = self._spent
        for running in self._running:
            used = running.usage()
            if used is not None:
                total = used if total is None else total.and_then(used)
        if self._egress is not None:
            carried = self._egress.usage()
            total = carried if total is None else total.and_then(carried)
        if total is None:
            return None
        self.log.catch_up()
        written = sum(stream.end for stream in self.log.streams.values())
        return msgspec.structs.replace(total, written=written)

    def lap(self) -> Usage | None:
        """What its programs used since this was asked before; the peak is that of those which run."""
        found = [used for running in self._running if (used := running.usage()) is not None]
        if not found and self._egress is None:
            return None
        carried = self._egress.usage() if self._egress is not None else Usage()
        total = sum(used.cpu for used in found) + carried.cpu + (self._spent.cpu if self._spent is not None else 0.0)
        before = self._lapped
        self._lapped = msgspec.structs.replace(carried, cpu=total)
        return Usage(
            total - before.cpu,
            max((used.peak_memory for used in found), default=0),
            sent=carried.sent - before.sent,
            received=carried.received - before.received,
        )

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
        if self._egress is not None:
            await self._egress.close()
        if self.objects is not None:
            self.objects.close()
        self.log.end()
        for running in self._running:
            await asyncio.to_thread(running.confined.release)
        if self._groups is not None:
            await asyncio.to_thread(self._groups.remove)
        await asyncio.to_thread(remove_tree, self.folder)
        if self._held and self.launch.package is not None:
            self.launch.package.release()


class Running:
    """A program that was started in its confinement. `ended` gets the wait status."""

    def __init__(self, process: Process, confined: Confined) -> None:
        self.pid = process.pid
        self.ended = process.ended
        self.confined = confined
        self.signal = process.signal

    def how(self) -> str:
        """How it ended, such as "was killed by SIGSEGV" or "ran out of memory: ..."."""
        return self.confined.how(self.ended.result())

    def code(self) -> int:
        """Its exit status, as a shell tells it: 128 and the number of the signal that killed it."""
        status = self.ended.result()
        return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status)

    @property
    def killed(self) -> bool:
        """Whether it was ended by SIGKILL, which comes from outside: for want of memory, or with all of its node."""
        return self.code() == 128 + signal.SIGKILL

    @property
    def out_of_memory(self) -> bool:
        """Whether it was ended because it needed more memory than its limit."""
        return self.confined.ran_out(self.ended.result())

    def usage(self) -> Usage | None:
        """What it used so far; None when nobody counts."""
        return self.confined.group.usage() if self.confined.group is not None else None


def in_words(error: FlameError) -> str:
    """An error with what to do about it, for the message of a BindError."""
    return f"{error.message}; {error.remedy}" if error.remedy else error.message

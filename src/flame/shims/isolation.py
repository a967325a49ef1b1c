"""What a node holds its instances to: the level of isolation and the limits that their application asks for.

What can't be held is refused with the reason: nothing is started with less than was asked for.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from flame.model.isolation import (
    ISOLATION_LABEL,
    LIMITS_LABEL,
    LIST_LABEL,
    NO,
    NO_LIMITS,
    YES,
    Limits,
    isolated,
    stricter,
)
from flame.model.network import is_list
from flame.model.states import BindCode
from flame.proto import types_pb2
from flame.proto.values import limits_of
from flame.shims import image_python
from flame.shims.egress import bridged, bridged_in_image
from flame.shims.environment import Surroundings
from flame.shims.isolation_devices import device_files, names_inside
from flame.shims.isolation_sandbox import DEFAULT_DISK, TMP, USER, Room, folders_of_interpreter, forbidden, readable
from flame.shims.levels import Carrier, Labelled, Level, find_levels, holds_lists
from flame.shims.limits import Group, Groups
from flame.shims.processes import Program, describe_status, signal_of
from flame.shims.shim import BindError, Launch

DEFAULT_PIDS = 1024  # of isolated instances
PROXY_LIMITS = Limits(memory=128 * 1024**2, pids=64, cpu_millis=1000)  # what the one of an instance gets at most
_LEAST_CPU_MILLIS = 100  # with which it still starts
RAN_OUT = "ran out of memory"
_OF_IMAGES = "process"  # what runs images that are not isolated: they need a root of their own
_WITH_GPUS = ("process",)
_PASSED = ("PATH", "RUST_LOG", "FLAME_LOG")  # what a sandboxed instance may know of the manager's environment
_PATHS = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "FLAME_APP_DIR", "VIRTUAL_ENV")


class Confinement:
    """What a node can do. `hidden` are folders that no sandbox shows, whatever is above them."""

    def __init__(self, levels: Sequence[Level], groups: Groups, hidden: Sequence[Path]) -> None:
        self.levels = {level.name: level for level in levels}
        self.groups = groups
        self._hidden = hidden

    @classmethod
    def find(cls, folder: Path, hidden: Sequence[Path], environ: Mapping[str, str] = os.environ) -> Confinement:
        """Look at this machine. `folder` is for what the levels need. Blocks a moment; raises OSError."""
        return cls(find_levels(folder, environ), Groups.find(), hidden)

    def labels(self) -> dict[str, str]:
        """What the node tells the scheduler."""
        found = {ISOLATION_LABEL + level.name: NO if level.missing else YES for level in self.levels.values()}
        for level in self.levels.values():
            found[LIST_LABEL + level.name] = NO if level.missing or not holds_lists(level) else YES
            found.update(level.labels if isinstance(level, Labelled) else {})
        return {**found, LIMITS_LABEL: NO if self.groups.missing else YES}

    def missing(self) -> list[str]:
        """Why this node can't do what it can't do."""
        levels = [f"no isolation {level.name}: {level.missing}" for level in self.levels.values() if level.missing]
        return [*levels, *([self.groups.missing] if self.groups.missing else [])]

    @staticmethod
    def boxed(launch: Launch) -> bool:
        """Whether its instance sees another tree of files than the node's."""
        return isolated(launch.application.isolation) or launch.root is not None

    def streams(self, launch: Launch) -> bool:
        """Whether the instance can be reached over its stdin and stdout only. Raises BindError."""
        level = self._level(launch)
        return level is not None and level.streams

    def door(self, launch: Launch) -> Path | None:
        """Where an instance that is reached over its streams may make a socket, so that it is in its folder for us too;
        None = nowhere. Raises BindError."""
        level = self._level(launch)
        return Path(level.door) if isinstance(level, Carrier) and level.carries else None

    def shares_network(self, launch: Launch) -> bool:
        """Whether a port that the instance listens at is one of the node's."""
        return not isolated(launch.application.isolation) or launch.application.network == "host"

    def surroundings(self, launch: Launch, around: Surroundings) -> Surroundings:
        """What the instance may know of the node."""
        if not self.boxed(launch):
            return around
        environ = {name: around.environ[name] for name in _PASSED if name in around.environ}
        return msgspec.structs.replace(around, environ={**environ, "HOME": TMP})

    def temporary(self, launch: Launch, own: Path) -> Path:
        """Its folder for temporary files; `own` is the one of a plain process."""
        return Path(TMP) if self.boxed(launch) else own

    def devices(self, launch: Launch) -> str | None:
        """The GPUs that it may see, by the names that they have there; None = don't say."""
        return names_inside(launch.devices) if launch.devices and self.boxed(launch) else launch.devices

    def held(self, launch: Launch) -> Limits:
        """The limits of its instance. Raises BindError when this node can't hold what was asked for."""
        asked = limits_of(launch.application.limits)
        level = self._level(launch)
        if self.groups.missing and asked.grouped:
            raise BindError(BindCode.START, f"this node can't hold limits: {self.groups.missing}")
        if is_list(launch.application.network) and (level is None or not holds_lists(level)):
            name = level.name if level is not None else "none"
            raise BindError(
                BindCode.START,
                f"isolation {name} can't hold a network of listed hosts: no socket of its proxy gets inside",
            )
        if level is None:
            return asked
        if launch.devices and level.name not in _WITH_GPUS:
            raise BindError(
                BindCode.START, f"isolation {level.name} can't give GPUs to an instance: leave one of them out"
            )
        unlimited = self.groups.missing or not isolated(launch.application.isolation)
        return asked if unlimited else with_defaults(asked, launch.resreq)

    def confine(
        self,
        launch: Launch,
        name: str,
        program: Program,
        limits: Limits,
        sockets: Sequence[Path] = (),
        shown: Sequence[Path] = (),
        proxy: Path | None = None,
        groups: Groups | None = None,
    ) -> Confined:
        """The program as it is started here; `name` is that of its control group, which is made among `groups`, or
        those of the node. `sockets` are those, and folders for them, that it may use, `shown` are files that it shall
        see, `proxy` is the socket of the proxy by which alone it reaches a network. Raises BindError."""
        level = self._level(launch)
        if level is not None:
            if proxy is None or level.streams:
                room = msgspec.structs.replace(self._room(launch, program, limits, sockets, shown), proxy=proxy)
            else:
                room = self._room(launch, program, limits, [*sockets, proxy], shown)
                if launch.root is None:
                    program = bridged(program, proxy)
                else:
                    program, added = bridged_in_image(program, proxy, image_python.find())
                    room = msgspec.structs.replace(room, added=added)
            program = level.wrap(program, room, limits, launch)
        outside = limits if level is None else level.around(limits)
        group = self._group(groups or self.groups, name, outside)  # last, since it has to be removed again
        if group is not None:
            program = msgspec.structs.replace(program, groups=[str(folder) for folder in group.folders])
        return Confined(program, group, limits)

    def shared_groups(self, limits: Limits, name: str) -> Groups | None:
        """Where the control groups of an instance with these limits and of its proxy are made: one of this name, which
        holds both together to the processor time of the instance. None where there are none. Raises OSError."""
        if self.groups.missing:
            return None
        return self.groups.within(
            name, Limits(cpu_millis=limits.cpu_millis and max(limits.cpu_millis, _LEAST_CPU_MILLIS))
        )

    @staticmethod
    def group_of_proxy(groups: Groups | None, limits: Limits, name: str) -> Group | None:
        """A control group of this name, among those, for the proxy of an instance with these limits. Raises OSError."""
        if groups is None:
            return None
        most = PROXY_LIMITS.cpu_millis
        share = min(max(limits.cpu_millis // 2, _LEAST_CPU_MILLIS), most) if limits.cpu_millis else most
        return groups.make(name, msgspec.structs.replace(PROXY_LIMITS, cpu_millis=share))

    def release(self) -> None:
        """Nothing of the node runs any more."""
        self.groups.remove()

    def _level(self, launch: Launch) -> Level | None:
        """The level of its instance, None = a plain process. Raises BindError when this node does not have it."""
        name = launch.application.isolation
        if not isolated(name):
            if launch.root is None:
                return None
            name = _OF_IMAGES
        level = self.levels.get(name)
        if level is None:
            raise BindError(BindCode.START, f"this node does not know isolation {name!r}")
        if level.missing:
            raise BindError(BindCode.START, f"this node can't isolate at level {name}: {level.missing}")
        return level

    @staticmethod
    def _group(groups: Groups, name: str, limits: Limits) -> Group | None:
        if not limits.grouped:
            return None
        try:
            return groups.make(name, limits)
        except OSError as error:
            raise BindError(BindCode.START, f"this node can't hold limits: {error}") from error

    def _room(
        self, launch: Launch, program: Program, limits: Limits, sockets: Sequence[Path], shown: Sequence[Path]
    ) -> Room:
        application = launch.application
        cwd = application.working_directory
        if launch.root is not None:
            return self._room_of_image(launch, launch.root, limits, sockets, shown)
        if cwd and cwd != TMP and forbidden(Path(cwd)):
            raise BindError(BindCode.START, f"working_directory {cwd!r} can't be shown to a sandbox: name another one")
        named = [Path(word) for word in program.argv[1:] if word.startswith("/") and Path(word).is_file()]
        listed = [program.env.get(name, "") for name in ("PYTHONPATH", "LD_LIBRARY_PATH")]
        if launch.package is not None:
            listed += [launch.package.variables.get(name, "") for name in _PATHS]
        folders = [Path(part) for text in listed for part in text.split(":") if part.startswith("/")]
        own = [Path(cwd)] if cwd and cwd != TMP else []
        return Room(
            readable=readable([*own, *folders, *folders_of_interpreter(Path(program.path)), *named, *shown]),
            sockets=sockets,
            hidden=self._hidden,
            devices=device_files(launch.devices) if launch.devices else (),
            disk=limits.disk or min(DEFAULT_DISK, limits.memory // 2 or DEFAULT_DISK),
            network=self.shares_network(launch),
            cwd=cwd or TMP,
        )

    def _room_of_image(
        self, launch: Launch, root: Path, limits: Limits, sockets: Sequence[Path], shown: Sequence[Path]
    ) -> Room:
        listed = launch.package.variables.get("FLAME_APP_DIR", "") if launch.package is not None else ""
        return Room(
            readable=[*([Path(listed)] if listed else []), *shown],
            sockets=sockets,
            devices=device_files(launch.devices) if launch.devices else (),
            disk=limits.disk or min(DEFAULT_DISK, limits.memory // 2 or DEFAULT_DISK),
            network=self.shares_network(launch),
            cwd=launch.application.working_directory or "/",
            root=root,
            user=launch.user or USER,
        )


class Confined(msgspec.Struct, frozen=True):
    """A program as it is started, the control group that it is in, and its limits."""

    program: Program
    group: Group | None
    limits: Limits

    def how(self, status: int) -> str:
        """How it ended, from its wait status, what its group knows, and what is in front of it left word of."""
        verdict = self._verdict()
        if verdict:
            return verdict
        if self.ran_out(status):
            return f"{RAN_OUT}: it needed more than its limit of {self.limits.memory} bytes"
        words = describe_status(status, boxed=self.program.boxed)
        kills = self._kills() if status else 0
        if not kills:
            return words
        processes = "a process of it was" if kills == 1 else f"{kills} processes of it were"
        return f"{words}, and {processes} killed for want of memory: its limit is {self.limits.memory} bytes"

    def ran_out(self, status: int) -> bool:
        """Whether it was killed because it needed more memory than its limit."""
        killed = signal_of(status, boxed=self.program.boxed) == signal.SIGKILL
        if killed and self._verdict().startswith(RAN_OUT):
            return True
        return killed and self._kills() > 0

    def release(self) -> None:
        """Nothing of it runs any more, and nobody asks for it. Blocks for a moment."""
        if self.group is not None:
            self.group.remove()
        if self.program.verdict:
            Path(self.program.verdict).unlink(missing_ok=True)

    def _kills(self) -> int:
        """How many of its processes were killed because they needed more memory than its limit."""
        return self.group.usage().kills if self.group is not None and self.limits.memory else 0

    def _verdict(self) -> str:
        try:
            return Path(self.program.verdict).read_text(errors="replace") if self.program.verdict else ""
        except OSError:
            return ""


def with_defaults(asked: Limits, resreq: types_pb2.ResourceRequirement | None) -> Limits:
    """An isolated instance gets no more than what its executor was given."""
    given = NO_LIMITS
    if resreq is not None:
        given = Limits(memory=resreq.memory, cpu_millis=resreq.cpu * 1000)
    given = stricter(asked, given)
    return msgspec.structs.replace(given, pids=asked.pids or DEFAULT_PIDS)

"""What a node holds its instances to: the level of isolation and the limits that their application asks for.

What can't be held is refused with the reason: nothing is started with less than was asked for.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from flame.model.isolation import LIMITS_LABEL, NO, NO_LIMITS, PROCESS, PROCESS_LABEL, YES, Limits, stricter
from flame.model.states import BindCode
from flame.proto import types_pb2
from flame.shims.environment import Surroundings
from flame.shims.isolation_sandbox import (
    DEFAULT_DISK,
    TMP,
    Room,
    Sandboxes,
    folders_of_interpreter,
    forbidden,
    readable,
)
from flame.shims.limits import Group, Groups
from flame.shims.processes import Program
from flame.shims.shim import BindError, Launch

DEFAULT_PIDS = 1024  # at level process
_PASSED = ("PATH", "RUST_LOG", "FLAME_LOG")  # what a sandboxed instance may know of the manager's environment
_OUTSIDE = "FLAME_INSTANCE_ENDPOINT"  # a socket that is made in a sandbox can't be reached from outside
_PATHS = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "FLAME_APP_DIR", "VIRTUAL_ENV")


class Confinement:
    """What a node can do. `hidden` are folders that no sandbox shows, whatever is above them."""

    def __init__(self, sandboxes: Sandboxes, groups: Groups, hidden: Sequence[Path]) -> None:
        self.sandboxes = sandboxes
        self.groups = groups
        self._hidden = hidden

    @classmethod
    def find(cls, folder: Path, hidden: Sequence[Path], environ: Mapping[str, str] = os.environ) -> Confinement:
        """Look at this machine. `folder` is for what sandboxes share. Blocks a moment; raises OSError."""
        return cls(Sandboxes.find(folder, environ), Groups.find(), hidden)

    def labels(self) -> dict[str, str]:
        """What the node tells the scheduler."""
        return {
            PROCESS_LABEL: NO if self.sandboxes.missing else YES,
            LIMITS_LABEL: NO if self.groups.missing else YES,
        }

    def surroundings(self, launch: Launch, around: Surroundings) -> Surroundings:
        """What the instance may know of the node."""
        if launch.application.isolation != PROCESS:
            return around
        environ = {name: around.environ[name] for name in _PASSED if name in around.environ}
        return msgspec.structs.replace(around, environ={**environ, "HOME": TMP})

    def temporary(self, launch: Launch, own: Path) -> Path:
        """Its folder for temporary files; `own` is the one of a plain process."""
        return Path(TMP) if launch.application.isolation == PROCESS else own

    def held(self, launch: Launch) -> Limits:
        """The limits of its instance. Raises BindError when this node can't hold what was asked for."""
        application = launch.application
        asked = limits_of(application.limits)
        if application.isolation not in ("", "none", PROCESS):
            raise BindError(BindCode.START, f"this node does not know isolation {application.isolation!r}")
        if self.groups.missing and asked.grouped:
            raise BindError(BindCode.START, f"this node can't hold limits: {self.groups.missing}")
        if application.isolation != PROCESS:
            return asked
        if self.sandboxes.missing:
            raise BindError(BindCode.START, f"this node can't isolate at level process: {self.sandboxes.missing}")
        if launch.devices:
            raise BindError(BindCode.START, "isolation process can't give GPUs to an instance: leave one of them out")
        return asked if self.groups.missing else with_defaults(asked, launch.resreq)

    def confine(self, launch: Launch, program: Program, limits: Limits, sockets: Sequence[Path]) -> Confined:
        """The program as it is started here. Raises BindError."""
        if launch.application.isolation == PROCESS:
            env = {name: value for name, value in program.env.items() if name != _OUTSIDE}
            room = self._room(launch, program, limits, sockets)
            program = self.sandboxes.wrap(msgspec.structs.replace(program, env=env), room)
        group = self._group(launch, limits)  # last, since it has to be removed again
        if group is not None:
            program = msgspec.structs.replace(program, groups=[str(folder) for folder in group.folders])
        return Confined(program, group, limits)

    def release(self) -> None:
        """Nothing of the node runs any more."""
        self.groups.remove()

    def _group(self, launch: Launch, limits: Limits) -> Group | None:
        if not limits.grouped:
            return None
        try:
            return self.groups.make(launch.executor_id, limits)
        except OSError as error:
            raise BindError(BindCode.START, f"this node can't hold limits: {error}") from error

    def _room(self, launch: Launch, program: Program, limits: Limits, sockets: Sequence[Path]) -> Room:
        application = launch.application
        cwd = application.working_directory
        if cwd and cwd != TMP and forbidden(Path(cwd)):
            raise BindError(BindCode.START, f"working_directory {cwd!r} can't be shown to a sandbox: name another one")
        named = [Path(word) for word in program.argv[1:] if word.startswith("/") and Path(word).is_file()]
        listed = [program.env.get(name, "") for name in ("PYTHONPATH", "LD_LIBRARY_PATH")]
        if launch.package is not None:
            listed += [launch.package.variables.get(name, "") for name in _PATHS]
        folders = [Path(part) for text in listed for part in text.split(":") if part.startswith("/")]
        own = [Path(cwd)] if cwd and cwd != TMP else []
        return Room(
            readable=readable([*own, *folders, *folders_of_interpreter(Path(program.path)), *named]),
            sockets=sockets,
            hidden=self._hidden,
            disk=limits.disk or min(DEFAULT_DISK, limits.memory // 2 or DEFAULT_DISK),
            network=application.network == "host",
            cwd=cwd or TMP,
        )


class Confined(msgspec.Struct, frozen=True):
    """A program as it is started, the control group that it is in, and its limits."""

    program: Program
    group: Group | None
    limits: Limits

    def why(self, ended: str, *, killed: bool) -> str:
        """Why it ended, where its group knows more than `ended` says. `killed`: by SIGKILL."""
        if killed and self.group is not None and self.limits.memory and self.group.usage().kills:
            return f"ran out of memory: it needed more than its limit of {self.limits.memory} bytes"
        return ended


def limits_of(message: types_pb2.Limits) -> Limits:
    return Limits(**{name: getattr(message, name) for name in Limits.__struct_fields__})


def with_defaults(asked: Limits, resreq: types_pb2.ResourceRequirement | None) -> Limits:
    """At level process an instance gets no more than what its executor was given."""
    given = NO_LIMITS
    if resreq is not None:
        given = Limits(memory=resreq.memory, cpu_millis=resreq.cpu * 1000)
    given = stricter(asked, given)
    return msgspec.structs.replace(given, pids=asked.pids or DEFAULT_PIDS)

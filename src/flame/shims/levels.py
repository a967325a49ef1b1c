"""The levels of isolation of a node: each is a program in front of an instance's own program."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast, runtime_checkable

from flame.model.isolation import Limits
from flame.shims.processes import Program
from flame.shims.shim import Launch

if TYPE_CHECKING:
    from flame.shims.isolation_sandbox import Room

# By name, the module and the class whose `find` looks what this machine can do. Imported by nodes only.
_MAKERS = {
    "process": ("flame.shims.isolation_sandbox", "Sandboxes"),
    "gvisor": ("flame.shims.gvisor", "Gvisor"),
    "microvm": ("flame.shims.microvm", "Microvm"),
}


def shared_folder(name: str, environ: Mapping[str, str]) -> Path | None:
    """Where a level keeps what all nodes of this user on this machine share; None when nobody says where."""
    home = environ.get("HOME")
    cache = environ.get("XDG_CACHE_HOME") or (f"{home}/.cache" if home else "")
    return Path(cache, "flame", name) if cache else None


class Level(Protocol):
    """One level. `missing` says why this node can't offer it, empty = it can. `streams`: no unix socket reaches inside,
    so the instance's link goes over stdin and stdout (FLAME_INSTANCE_STDIO=framed)."""

    name: str
    missing: str
    streams: bool

    def wrap(self, program: Program, room: Room, limits: Limits, launch: Launch) -> Program:
        """The program that is started instead. Raises BindError.

        It passes stdin, stdout and stderr through, exits as the given program does (with 128 and the number when that
        was killed by a signal; `boxed` is true), and takes everything down when it is killed or its parent dies. Other
        signals go to the processes below its first child, or, with `relays`, to itself, which passes them on.
        """
        ...

    def around(self, limits: Limits) -> Limits:
        """What a control group is held to that holds the wrapped program, so that the instance is held to `limits`."""
        ...


@runtime_checkable
class Labelled(Protocol):
    """A level that has more to tell the scheduler about this node."""

    labels: Mapping[str, str]


@runtime_checkable
class Carrier(Protocol):
    """A level where no unix socket reaches inside, and which carries connections to `Room.proxy` by itself, and such to
    the socket of `Room.sockets`, which it makes when the instance has made one at `door`."""

    carries: bool
    door: str


def holds_lists(level: Level) -> bool:
    """Whether an instance of this level can have a network of listed hosts."""
    return not level.streams or (isinstance(level, Carrier) and level.carries)


class _Maker(Protocol):
    def find(self, folder: Path, environ: Mapping[str, str]) -> Level: ...


def find_levels(
    folder: Path, environ: Mapping[str, str] = os.environ, names: Iterable[str] = tuple(_MAKERS)
) -> list[Level]:
    """Look which of these levels this machine can offer. Each has a folder of its own in `folder`, made when it needs
    one. Blocks for as long as the slowest look takes; raises OSError."""
    with ThreadPoolExecutor() as pool:
        looks = [pool.submit(_find, name, folder / name, environ) for name in names]
        return [look.result() for look in looks]


def _find(name: str, folder: Path, environ: Mapping[str, str]) -> Level:
    module, maker = _MAKERS[name]
    return cast(_Maker, getattr(importlib.import_module(module), maker)).find(folder, environ)

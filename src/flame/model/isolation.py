"""How far an instance is kept from its node and from others, and what it may use. A session may ask for more than its
application does, never for less."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

from flame.model import network as networks
from flame.model.errors import InvalidArgumentError, PermissionDeniedError
from flame.model.object_keys import check_readable
from flame.model.resources import parse_size
from flame.model.states import Shim

if TYPE_CHECKING:
    from flame.model.specs import ApplicationSpec, SessionSpec

NONE = "none"
LEVELS = (NONE, "process", "gvisor", "microvm")  # each is stricter than those before it; "" is none unless more is said
MIN_MEMORY = 16 * 1024**2  # below, no interpreter starts
MIN_PIDS = 4  # the sandbox itself has two

# Labels that nodes give themselves. Sessions that need what they tell are placed by them.
ISOLATION_LABEL = "flame.isolation."  # and a level
LIST_LABEL = "flame.network."  # and a level at which the network can be a list
SHIM_LABEL = "flame.shim."  # and a shim
LIMITS_LABEL = "flame.limits"
_EVERYWHERE = (Shim.HOST, Shim.STDIO, Shim.REST)  # shims that need nothing installed
YES, NO = "yes", "no"
_ABILITIES = (ISOLATION_LABEL, LIST_LABEL, SHIM_LABEL, LIMITS_LABEL)


class Limits(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one instance with all its processes may use; 0 = not said.

    `memory`, `disk` (of its private /tmp) and `output` (what it writes to stdout and stderr) are in bytes, `pids`
    counts processes and threads, `cpu_millis` thousandths of a core, `wall_ms` is how long an executor may have its
    session.
    """

    memory: int = 0
    pids: int = 0
    cpu_millis: int = 0
    disk: int = 0
    wall_ms: int = 0
    output: int = 0

    @property
    def grouped(self) -> bool:
        """Whether a control group is needed to hold them."""
        return bool(self.memory or self.pids or self.cpu_millis)


NO_LIMITS = Limits()
# How limits are written: the field, and how many of it one unit is; 0 = a size in bytes.
_UNITS = {
    "memory": ("memory", 0),
    "pids": ("pids", 1),
    "cpu": ("cpu_millis", 1000),
    "disk": ("disk", 0),
    "wall": ("wall_ms", 1000),
    "output": ("output", 0),
}


def parse_limits(texts: Iterable[str]) -> Limits:
    """Limits from texts such as `memory=256Mi`, `pids=64`, `cpu=0.5` (cores) and `wall=600` (seconds); several may
    stand in one, with commas. Raises InvalidArgumentError."""
    found: dict[str, int] = {}
    for part in (part.strip() for text in texts for part in text.split(",")):
        name, separator, value = (piece.strip() for piece in part.partition("="))
        if not separator or not value:
            raise InvalidArgumentError(f"invalid limit {part!r}", remedy="write NAME=VALUE, such as memory=256Mi")
        if name not in _UNITS:
            raise InvalidArgumentError(f"unknown limit {name!r}", remedy=f"the known ones are {', '.join(_UNITS)}")
        field, scale = _UNITS[name]
        if field in found:
            raise InvalidArgumentError(f"limit {name} stands twice")
        found[field] = parse_size(value) if not scale else _number(name, value, scale)
        if not found[field]:
            raise InvalidArgumentError(f"limit {name} is {value}: nothing would start", remedy="leave it out")
    return Limits(**found)


def is_ability(label: str) -> bool:
    """Whether a node gives itself this label for what is installed there and works."""
    return label.startswith(_ABILITIES)


def isolated(level: str) -> bool:
    """Whether an instance of this level is more than a plain process."""
    return level not in ("", NONE)


def check(isolation: str, limits: Limits, network: str, readable_objects: Iterable[str] = ()) -> None:
    """Raises InvalidArgumentError for what no application and no session may ask for."""
    if isolation not in ("", *LEVELS):
        raise InvalidArgumentError(
            f"unknown isolation {isolation!r}", remedy=f"write one of {', '.join(LEVELS)}, or leave it out"
        )
    if networks.is_list(network):
        networks.parse(network)
    check_readable(readable_objects)
    if 0 < limits.memory < MIN_MEMORY:
        raise InvalidArgumentError(f"limits.memory {limits.memory} is below {MIN_MEMORY} bytes: nothing would start")
    if 0 < limits.pids < MIN_PIDS:
        raise InvalidArgumentError(f"limits.pids {limits.pids} is below {MIN_PIDS}: nothing would start")


def check_together(application: ApplicationSpec, session: SessionSpec) -> None:
    """Raises InvalidArgumentError when the session asks for less than its application, or for what can't be held."""
    check(session.isolation, session.limits, session.network, session.readable_objects)
    if session.isolation and _strictness(session.isolation) < _strictness(application.isolation):
        raise InvalidArgumentError(
            f"application {session.application} has isolation {application.isolation}; a session of it can't have less",
            remedy="leave isolation out",
        )
    more = networks.within(application.network, session.network)
    if more:
        raise InvalidArgumentError(
            f"application {session.application} has {more}; a session of it can't have more",
            remedy="leave network out",
        )
    together = strictest(application, session)
    if not isolated(together.isolation):
        if together.network not in ("", "host"):
            raise InvalidArgumentError(
                f"network {together.network} needs isolation", remedy="set isolation to process or more"
            )
        if together.limits.disk:
            raise InvalidArgumentError("limits.disk needs isolation", remedy="set isolation to process or more")


def check_doors(application: ApplicationSpec, session: SessionSpec, doors: Iterable[tuple[str, int]]) -> None:
    """Raises PermissionDeniedError when isolated instances of the session would reach one of these listeners (host and
    port), where whoever comes from this machine is an administrator."""
    together = strictest(application, session)
    if not isolated(together.isolation):
        return  # it is no worse off than any program of the node
    for host, port in doors:
        way = networks.way_to(together.network, host, port)
        if way:
            raise PermissionDeniedError(
                f"network {way} would undo isolation {together.isolation}: it leads to the cluster, which takes whoever"
                f" comes to {host}:{port} for its administrator",
                remedy="list what it shall reach, give the cluster certificates (cluster.tls), let it listen at a unix"
                " socket only, or accept it with cluster.insecure",
            )


def stricter(one: Limits, other: Limits) -> Limits:
    """Of each limit the smaller one that is said."""
    pairs: list[tuple[int, int]] = [(getattr(one, name), getattr(other, name)) for name in Limits.__struct_fields__]
    return Limits(*(min(pair) or max(pair) for pair in pairs))


def strictest(application: ApplicationSpec, session: SessionSpec) -> ApplicationSpec:
    """The application as its instances for this session are started."""
    isolation = max(session.isolation or application.isolation, application.isolation, key=_strictness)
    limits = stricter(application.limits, session.limits)
    network = session.network or application.network
    # Who opens a session may read all objects, and so may let its instances read them.
    readable = tuple(dict.fromkeys((*application.readable_objects, *session.readable_objects)))
    return msgspec.structs.replace(
        application, isolation=isolation, limits=limits, network=network, readable_objects=readable
    )


def placed(application: ApplicationSpec, session: SessionSpec) -> SessionSpec:
    """The session, with the labels in its selector that a node must have to start its instances as they shall be."""
    together = strictest(application, session)
    labels: dict[str, str] = {}
    if isolated(together.isolation):
        labels[ISOLATION_LABEL + together.isolation] = YES
        if networks.is_list(together.network):
            labels[LIST_LABEL + together.isolation] = YES
    if application.shim not in _EVERYWHERE:
        labels[SHIM_LABEL + application.shim.name.lower()] = YES
    if together.limits.grouped:
        labels[LIMITS_LABEL] = YES
    return msgspec.structs.replace(session, selector={**session.selector, **labels}) if labels else session


def _strictness(level: str) -> int:
    return LEVELS.index(level or NONE)


def _number(name: str, text: str, scale: int) -> int:
    """So many units as a whole number of the field's. Raises InvalidArgumentError."""
    whole, _, rest = text.partition(".")
    digits = (whole + rest).isdecimal() and text.isascii()
    if not digits or (scale == 1 and "." in text) or float(text) * scale >= 2**32:
        kind = "a number" if scale > 1 else "a whole number"
        raise InvalidArgumentError(f"invalid limit {name}={text}", remedy=f"write {kind}, such as {name}=2")
    return round(float(text) * scale)

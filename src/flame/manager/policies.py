"""The scheduler's policies by name: those that come with Flame, and those that other packages bring as entry points of
the group `flame.policies`."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING

from flame.model.errors import InvalidConfigError
from flame.scheduler.policies import BUILT_IN
from flame.scheduler.policy import Policy

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "flame.policies"
# What configurations of other versions of Flame may name, and what to write instead.
_FOREIGN = {
    "shim": "leave it out: an executor always runs with the shim of its session's application",
    "fairshare": "write drf",
}


def load_policies(names: Sequence[str]) -> list[Policy]:
    """One object for each name, in their order.

    Raises InvalidConfigError for a name that is unknown or stands twice, and for a policy that can't be used.
    """
    found: list[Policy] = []
    for name in names:
        if any(policy.name == name for policy in found):
            raise InvalidConfigError(f"policy {name!r} stands twice in cluster.policies", remedy="name it once")
        built_in = BUILT_IN.get(name)
        found.append(built_in() if built_in is not None else _installed(name))
    return found


def _installed(name: str) -> Policy:
    if name in _FOREIGN:
        raise InvalidConfigError(f"there is no policy {name!r} in cluster.policies", remedy=_FOREIGN[name])
    from importlib.metadata import entry_points

    installed = entry_points(group=GROUP)
    named = [entry for entry in installed if entry.name == name]
    if not named:
        known = [*BUILT_IN, *sorted(entry.name for entry in installed)]
        near = get_close_matches(name, known, 1)
        remedy = f"did you mean {near[0]}? " if near else ""
        raise InvalidConfigError(
            f"unknown policy {name!r} in cluster.policies", remedy=f"{remedy}the known ones are {', '.join(known)}"
        )
    if len(named) > 1:
        packages = " and ".join(sorted(_package(entry) for entry in named))
        raise InvalidConfigError(f"policy {name!r} comes with {packages}", remedy="uninstall all but one of them")
    return _load(named[0])


def _load(entry: EntryPoint) -> Policy:
    what = f"policy {entry.name!r} of {_package(entry)}"
    remedy = f"mend {_package(entry)}, or take the policy out of cluster.policies"
    try:
        kind = entry.load()
        policy = kind() if isinstance(kind, type) and issubclass(kind, Policy) else None
    except Exception as error:  # whatever a third party's code raises
        raise InvalidConfigError(f"{what} can't be loaded: {type(error).__name__}: {error}", remedy=remedy) from error
    if policy is None:
        raise InvalidConfigError(f"{what} is {kind!r}, no subclass of flame.scheduler.policy.Policy", remedy=remedy)
    if policy.name != entry.name:
        raise InvalidConfigError(f"{what} calls itself {policy.name!r}", remedy=f"its name has to be {entry.name!r}")
    return policy


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else entry.value

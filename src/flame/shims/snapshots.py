"""What snapshots of instances have in common, at each level that has them: which instances are alike until they enter
a session, and what is each one's own. Only the standard library: what stands in front of an instance uses it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping

TYPE_CHECKING = False  # like typing's, without its import
if TYPE_CHECKING:
    from flame.shims.build_cache import Cache

NO_SNAPSHOT = "snapshot=off"  # a label of applications
SNAPSHOT, REFUSED, SEEN = "snapshot", "refused", "seen"  # kinds of things in a Cache
# What is one launch's own: nothing of it is in what is saved.
COMMON_DATA = "FLAME_COMMON_DATA_FILE"
_OWN_VALUES = ("FLAME_INSTANCE_TOKEN", "FLAME_INSTANCE_ID", "FLAME_EXECUTOR_ID", "FLAME_SESSION_ID", COMMON_DATA)
_OWN = (*_OWN_VALUES, "FLAME_INSTANCE_LINK", "FLAME_INSTANCE_ENDPOINT")
RESUME_S = 20.0  # a copy that does not go on until then, on however busy a node, never will
_ENTROPY = 64  # bytes


def alike(labels: Iterable[str], arguments: Iterable[str], *, gang: bool) -> bool:
    """Whether the instances of an application are the same until they enter a session, and may be saved. `arguments`
    are those of its registration: what they name may be one launch's own."""
    named = any(name in argument for name in _OWN for argument in arguments)
    return not gang and not named and NO_SNAPSHOT not in labels


def saved(
    cache: Cache,
    key: str,
    names: list[str],
    save: Callable[[], None],
    *,
    writable: bool = False,
    wanted: Callable[[], bool] = lambda: True,
) -> list[int] | None:
    """The open files of what is saved for launches alike; None when nothing shall be, or it is not `wanted` now. Of
    several launches that want the same one calls `save`, which saves it, or marks it as REFUSED, or raises; the others
    wait. Raises OSError."""
    while True:
        found = cache.open(SNAPSHOT, key, names, writable=writable)
        if found is not None:
            return found
        if cache.open(REFUSED, key, []) is not None or not wanted():
            return None
        with cache.locked(f"{SNAPSHOT}-{key}"):
            if not cache.has(SNAPSHOT, key, names) and not cache.has(REFUSED, key):
                save()


def mark(cache: Cache, kind: str, key: str) -> None:
    """Keep in mind that this key was REFUSED, or SEEN. The caller holds its lock. Raises OSError."""
    if not cache.has(kind, key):
        with cache.making(kind, key):
            pass


def common(env: Mapping[str, str]) -> dict[str, str]:
    """The environment without what is one launch's own."""
    return {name: value for name, value in env.items() if name not in _OWN_VALUES}


def fresh() -> dict[str, object]:
    """What each copy is told anew: the time, and random bytes."""
    return {"now": time.time(), "entropy": os.urandom(_ENTROPY).hex()}


def boot_id() -> str:
    """Changes when this machine starts again: files of a crash may be torn."""
    with open("/proc/sys/kernel/random/boot_id") as file:  # noqa: PTH123 - the rest of pathlib costs too much
        return file.read()

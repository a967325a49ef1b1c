"""Where local clusters keep their sockets and their state.

Sockets live in a private folder with a short path (a socket's path ends at 107 bytes). State that is to last lives in
the user's state folder, state that is not in a folder of its own below the system's one for temporary files.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from flame.model.errors import InvalidConfigError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}")
# Room for the name of a cluster and of the sockets below it.
_MAX_ROOT = 50


def check_name(name: str) -> str:
    """A name that is safe as a folder. Raises InvalidConfigError."""
    if not _NAME.fullmatch(name):
        raise InvalidConfigError(
            f"invalid cluster name {name!r}", remedy="use up to 32 letters, digits, dots, dashes and underscores"
        )
    return name


def runtime_root() -> Path:
    """The folder of all local clusters of this user, made when it is missing. Raises InvalidConfigError."""
    candidates: list[str] = []
    if os.environ.get("XDG_RUNTIME_DIR"):
        candidates.append(f"{os.environ['XDG_RUNTIME_DIR']}/flame")
    candidates += [f"{os.environ.get('TMPDIR') or '/tmp'}/flame-{os.getuid()}", f"/tmp/flame-{os.getuid()}"]
    problem = ""
    for path in candidates:
        if len(path) > _MAX_ROOT:
            problem = f"{path} is too long for a socket"
            continue
        try:
            return private_folder(Path(path))
        except OSError as error:
            problem = f"{path}: {error.strerror or error}"
    raise InvalidConfigError(f"no folder for the sockets of a local cluster: {problem}")


def state_root() -> Path:
    """$XDG_STATE_HOME/flame or ~/.local/state/flame, not made."""
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "flame"


def private_folder(path: Path) -> Path:
    """A folder that belongs to this user alone, made when it is missing. Raises OSError when it is somebody else's."""
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        # Somebody else may have made it first, in a folder that all can write: a link or a folder of theirs won't do.
        status = path.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
            raise PermissionError(1, f"{path} is not a folder of this user") from None
        if status.st_mode & 0o077:
            path.chmod(0o700)
    return path


def temporary_folder(name: str) -> Path:
    """A new private folder for the data of one cluster."""
    base = Path(os.environ.get("TMPDIR") or "/tmp")
    path = base / f"flame-{name}-{os.urandom(4).hex()}"
    path.mkdir(mode=0o700)
    return path

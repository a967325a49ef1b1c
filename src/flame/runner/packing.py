"""Sending a project to the nodes, as a package that is named by a digest of its content.

What is there already is not sent again, whichever Runner sent it. In the object cache a package goes away when no
Runner has used it for a week; elsewhere it stays.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flame.model.errors import FlameError, InvalidArgumentError, InvalidConfigError
from flame.packages.building import Built, pack_files, pack_folder
from flame.packages.installers import is_project
from flame.packages.storage import open_storage, store

if TYPE_CHECKING:
    from flame.config.context import ClientContext

OWNER = "flmrun"  # whose packages they are in the storage: of all Runners
KEPT_S = 7 * 24 * 3600.0
REQUIREMENTS = "requirements.txt"


def project_folder(package: str | os.PathLike[str] | None) -> Path | None:
    """The folder to pack: the one that is named, or the working directory if it is a project.

    Raises InvalidArgumentError when the named one is no folder.
    """
    if package is None:
        return Path.cwd() if is_project(Path.cwd()) else None
    folder = Path(package).absolute()
    if not folder.is_dir():
        raise InvalidArgumentError(f"package {str(package)!r} is no folder", remedy="name the folder of a project")
    return folder


def send(folder: Path | None, dependencies: Sequence[str], context: ClientContext, *, local: bool) -> str:
    """Pack a folder, or only a list of dependencies, and put it where nodes fetch it: the address for `url`.

    `local`: the cluster runs on this machine. Raises InvalidArgumentError, InvalidConfigError (there is no place for
    packages), UnavailableError.
    """
    base = context.package.storage if context.package is not None else None
    if base is None and context.cache is not None:
        base = context.cache.endpoint
    if base is None and local:
        kept = _own_folder()
        kept.mkdir(mode=0o700, parents=True, exist_ok=True)
        base = kept.as_uri()
    if base is None:
        raise InvalidConfigError(
            f"{'this code is a project' if folder is not None else 'the nodes are to install something'}, and there is "
            "no place for packages that they can reach",
            remedy="set package.storage or cache.endpoint in ~/.flame/flame.yaml, or FLAME_CACHE_ENDPOINT",
        )
    excludes = context.package.excludes if context.package is not None else ()
    with tempfile.TemporaryDirectory(prefix="flame-") as work:
        built = _pack(folder, dependencies, Path(work) / "package.tar.gz", excludes)
        name = f"{built.digest}.tar.gz"
        storage = open_storage(base, context.cache.tls if context.cache is not None else context.tls)
        stored = store(storage, OWNER, name, built.file, _quiet)
    if base.startswith("grpc"):
        _keep(base, context, name)
    return f"{stored.url}#sha256={built.digest}"


def _pack(folder: Path | None, dependencies: Sequence[str], into: Path, excludes: Sequence[str]) -> Built:
    listed = "".join(f"{line}\n" for line in sorted(dependencies)).encode()
    more: Mapping[str, bytes] = {REQUIREMENTS: listed} if dependencies else {}
    if folder is None:
        return pack_files(more, into)
    if dependencies and (is_project(folder) or (folder / REQUIREMENTS).exists()):
        where = "its pyproject.toml" if is_project(folder) else REQUIREMENTS
        raise InvalidArgumentError(
            f"{folder} says itself what it depends on", remedy=f"put the dependencies into {where}"
        )
    return pack_folder(folder, into, excludes=excludes, more=more, gitignore=True)


def _keep(base: str, context: ClientContext, name: str) -> None:
    """It is used now: let it stay for a while from now on."""
    from flame.objects.client import ObjectClient

    # The package is there and can be used: that nobody will remove it is no reason to fail.
    with contextlib.suppress(FlameError):
        client = ObjectClient(base, tls=context.cache.tls if context.cache is not None else context.tls)
        with client:
            client.expire(f"{OWNER}/pkg/{name}", KEPT_S)


def _own_folder() -> Path:
    state = os.environ.get("XDG_STATE_HOME")
    return ((Path(state) if state else Path.home() / ".local" / "state") / "flame" / "packages").absolute()


def _quiet(sent: int) -> None:
    """Nobody watches."""

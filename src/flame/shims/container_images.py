"""The images of a node: fetched by podman, unpacked once, kept as long as they are used or were used lately."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import msgspec

from flame.model.errors import NotFoundError
from flame.model.states import BindCode
from flame.shims.removal import remove_tree
from flame.shims.shim import BindError

logger = logging.getLogger("flame.node")

MAX_KEPT = 10
MAX_AGE_S = 7 * 24 * 3600.0
_LAST_CHARACTERS = 1000
_PART = ".part"  # of what is being unpacked
# What is mounted over in a sandbox has to be there.
_MOUNTED_OVER = ("etc/resolv.conf", "etc/hosts")
_NOT_UNPACKED = ("dev/*", "proc/*", "sys/*")
_TAR_OPTIONS = (
    "--no-same-owner",
    "--no-same-permissions",
    "--delay-directory-restore",
    "--anchored",
    *(f"--exclude={pattern}" for pattern in _NOT_UNPACKED),
)


class Image(msgspec.Struct, frozen=True):
    """An unpacked image. `root` is its folder, `command` what it runs, `env` its NAME=VALUE."""

    identity: str
    root: Path
    command: Sequence[str]
    env: Sequence[str]
    cwd: str

    def find(self, command: str, path: str) -> str | None:
        """The command's absolute path inside, None when it has none. `path` are the folders, as in PATH."""
        if "/" in command:
            inside = os.path.normpath(os.path.join(self.cwd, command))  # noqa: PTH118 - not one of the node's
            return inside if os.path.lexists(f"{self.root}{inside}") else None
        places = (f"{folder}/{command}" for folder in path.split(":") if folder.startswith("/"))
        return next((place for place in places if os.path.lexists(f"{self.root}{place}")), None)


class Images:
    """The unpacked images, each in a folder of its own in `folder`, named by its digest."""

    def __init__(self, podman: str, folder: Path, max_kept: int = MAX_KEPT) -> None:
        self._podman = podman
        self._folder = folder
        self._max_kept = max_kept
        self._holds: dict[str, int] = {}
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def open(self) -> None:
        """Make the folder; remove what was not finished. Raises OSError."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in self._folder.glob(f"*{_PART}"):
            remove_tree(left)

    async def provide(self, name: str) -> Image:
        """The image of that name, as podman understands it, fetched and unpacked now if need be. Raises BindError with
        code 10."""
        async with self._turn(name):  # two of the same name would do the same work twice
            found = await self._inspect(name)
        identity = str(found["Id"]).removeprefix("sha256:")
        root = self._folder / identity
        async with self._turn(identity):
            if not root.is_dir():
                await self._unpack(identity, root)
            os.utime(root)
        await asyncio.to_thread(self._tidy, identity)
        config: dict[str, Any] = found.get("Config") or {}
        command = [*(config.get("Entrypoint") or ()), *(config.get("Cmd") or ())]
        return Image(identity, root, command, config.get("Env") or (), config.get("WorkingDir") or "/")

    def hold(self, image: Image) -> None:
        """Keep it until `release`. Raises NotFoundError when it is gone."""
        if not image.root.is_dir():
            raise NotFoundError("the unpacked image was removed meanwhile", remedy="it is unpacked anew next time")
        self._holds[image.identity] = self._holds.get(image.identity, 0) + 1

    def release(self, image: Image) -> None:
        """Undo one `hold`."""
        self._holds[image.identity] -= 1

    def _turn(self, name: str) -> asyncio.Lock:
        return self._turns.setdefault(name, asyncio.Lock())

    async def _inspect(self, name: str) -> dict[str, Any]:
        """What podman knows of an image, which it fetches if it does not have it."""
        wanted = name
        if name.partition(":")[0] in _TRANSPORTS:  # a file, which may have changed
            wanted = (await self._fetch(name)).split()[-1]
        status, text, words = await run([self._podman, "image", "inspect", "--", wanted])
        if status:
            await self._fetch(name)
            status, text, words = await run([self._podman, "image", "inspect", "--", wanted])
        if status:
            raise BindError(BindCode.INSTALL, f"podman does not know image {name!r}: {reason(words)}")
        return json.loads(text)[0]

    async def _fetch(self, name: str) -> str:
        logger.info("podman fetches image %s", name)
        begun = time.monotonic()
        status, text, words = await run([self._podman, "pull", "--", name])
        if status:
            logger.warning("podman can't fetch image %s: %s", name, words)
            raise BindError(BindCode.INSTALL, f"podman can't fetch image {name!r}: {reason(words)}")
        logger.info("image %s was fetched in %.1f s", name, time.monotonic() - begun)
        return text

    async def _unpack(self, identity: str, root: Path) -> None:
        part, archive = root.with_suffix(_PART), root.with_suffix(_PART) / "archive"
        tree = part / "root"
        await asyncio.to_thread(remove_tree, part)
        tree.mkdir(parents=True)
        # Who starts the executor manager owns all of it, and it can be removed again: rights are those of files.
        tar = ["tar", "--extract", f"--directory={tree}", f"--file={archive}", *_TAR_OPTIONS]
        made = ""
        try:
            # The command is never run; podman wants one of images that have none.
            name = f"--name=flame-{zlib.crc32(bytes(self._folder)):x}-{identity[:16]}"
            made = (await self._do([self._podman, "create", "--replace", name, identity, "/bin/true"])).split()[-1]
            await self._do([self._podman, "export", f"--output={archive}", made])
            await self._do(tar)
            await asyncio.to_thread(_prepare, tree)
            tree.rename(root)
        except OSError as error:
            raise BindError(BindCode.INSTALL, f"can't unpack the image: {error}") from error
        finally:
            if made:
                await run([self._podman, "rm", "--force", made])
            await asyncio.to_thread(remove_tree, part)

    async def _do(self, command: Sequence[str]) -> str:
        status, text, words = await run(command)
        if status:
            what = Path(command[0]).name
            raise BindError(BindCode.INSTALL, f"can't unpack the image: {what}: {reason(words) or status}")
        return text

    def _tidy(self, current: str) -> None:
        """Remove those that nobody used lately, and the oldest when there are too many."""
        there = [path for path in self._folder.iterdir() if path.suffix != _PART]
        free = [path for path in there if path.name != current and not self._holds.get(path.name)]
        used = len(there) - len(free)
        for path in too_many({path: path.stat().st_mtime for path in free}, self._max_kept - used, time.time()):
            remove_tree(path)


def too_many(ages: Mapping[Path, float], room: int, now: float) -> list[Path]:
    """Which of these, with the time when each was used last, are to go: all that are old, and the oldest above
    `room`."""
    lately = sorted(ages, key=lambda path: ages[path], reverse=True)
    kept = {path for path in lately[: max(room, 0)] if now - ages[path] < MAX_AGE_S}
    return [path for path in ages if path not in kept]


_TRANSPORTS = ("docker-archive", "oci-archive", "oci", "dir", "docker-daemon")


def reason(words: str) -> str:
    """Why podman failed, of all that it wrote: its last error, else the end."""
    _, found, last = words.rpartition("Error: ")
    return last.strip()[:_LAST_CHARACTERS] if found else words[-_LAST_CHARACTERS:]


async def run(command: Sequence[str]) -> tuple[int, str, str]:
    """Its exit status, stdout and stderr. It ends when this is cancelled."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        return 127, "", str(error)
    try:
        out, words = await process.communicate()
    except BaseException:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
        raise
    return process.returncode or 0, out.decode(errors="replace"), words.decode(errors="replace").strip()


def _prepare(tree: Path) -> None:
    """What a sandbox needs to be there. Raises OSError."""
    tree.chmod(0o755)
    etc = tree / "etc"
    if not etc.exists() and not etc.is_symlink():
        etc.mkdir()
    for name in _MOUNTED_OVER:
        file = tree / name
        if file.parent.resolve().is_relative_to(tree) and not file.is_symlink() and not file.exists():
            file.touch()

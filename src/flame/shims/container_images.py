"""The images of a node: fetched by podman, unpacked once, kept as long as they are used or were used lately."""

from __future__ import annotations

import asyncio
import logging
import os
import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from weakref import WeakValueDictionary

import msgspec

from flame.model.errors import NotFoundError
from flame.model.states import BindCode
from flame.shims.container_commands import Commands, TooMuchError
from flame.shims.container_disk import disk_of, make_disk
from flame.shims.container_limits import ImageLimits
from flame.shims.container_podman import Podman, size_of, unfit
from flame.shims.container_tree import locate, prepare, user_of
from flame.shims.isolation_sandbox import USER
from flame.shims.removal import remove_tree
from flame.shims.shim import BindError

logger = logging.getLogger("flame.node")

_PART = ".part"  # of what is being unpacked
_NOTE = ".note"  # of what is known of one that is unpacked
_HOPELESS_S = 60.0
_NOT_UNPACKED = ("dev/*", "proc/*", "sys/*")
_TAR_OPTIONS = (
    "--verbose",
    "--no-same-owner",
    "--no-same-permissions",
    "--delay-directory-restore",
    "--anchored",
    *(f"--exclude={pattern}" for pattern in _NOT_UNPACKED),
)


class Image(msgspec.Struct, frozen=True):
    """An unpacked image. `root` is its folder, `command` what it runs, `env` its NAME=VALUE, `user` the numbers of the
    user and the group that it names, None = nobody, or root."""

    identity: str
    root: Path
    command: Sequence[str]
    env: Sequence[str]
    cwd: str
    user: tuple[int, int] | None = None

    def find(self, command: str, path: str) -> str | None:
        """The command's absolute path inside, None when it has none. `path` are the folders, as in PATH."""
        if "/" in command:
            places = [os.path.normpath(os.path.join(self.cwd, command))]  # noqa: PTH118 - not one of the node's
        else:
            places = [f"{folder}/{command}" for folder in path.split(":") if folder.startswith("/")]
        for place in places:
            file = locate(self.root, place)
            if file is not None and file.is_file():
                return place
        return None

    def can_run(self, path: str) -> bool:
        """Whether the file with this absolute path may be started by anybody."""
        file = locate(self.root, path)
        return file is not None and bool(file.stat().st_mode & 0o111)

    def has_folder(self, path: str) -> bool:
        """Whether it has a folder with this absolute path."""
        folder = locate(self.root, path)
        return folder is not None and folder.is_dir()


class Note(msgspec.Struct, frozen=True):
    """What is known of an unpacked image: its size in bytes, and the name by which podman was told to fetch it, empty
    when podman had it already."""

    size: int
    fetched: str


class Kept(msgspec.Struct, frozen=True):
    """An unpacked image: when it was used last, and its size in bytes."""

    used: float
    size: int


class Images:
    """The unpacked images, each in a folder of its own in `folder`, named by its digest."""

    def __init__(self, podman: str, folder: Path, commands: Commands, limits: ImageLimits) -> None:
        self._podman = Podman(podman, commands, limits.max_bytes)
        self._folder = folder
        self._commands = commands
        self._limits = limits
        self._holds: dict[str, int] = {}
        self._hopeless: dict[str, tuple[float, BindError]] = {}  # by name: until when, why
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def open(self) -> None:
        """Make the folder; remove what was not finished. Raises OSError."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        left = list(self._folder.glob(f"*{_PART}"))
        if not left:
            return
        self._podman.remove([self._container(path.stem) for path in left])
        for path in left:
            remove_tree(path)

    async def provide(self, name: str, *, disk: bool = False) -> Image:
        """The image of that name, as podman understands it, fetched and unpacked now if need be; with `disk`, there is
        one of it too. Raises BindError with code 10."""
        until, error = self._hopeless.get(name, (0.0, None))
        if error is not None and until > time.monotonic():
            raise error
        try:
            return await self._provide(name, disk=disk)
        except TooMuchError as much:
            logger.warning("image %s can't be had: %s", name, much)
            refused = BindError(BindCode.INSTALL, f"image {name!r} can't be had: {much}")
            # Who asks again at once would only have the same work done again.
            self._hopeless = {each: known for each, known in self._hopeless.items() if known[0] > time.monotonic()}
            self._hopeless[name] = (time.monotonic() + _HOPELESS_S, refused)
            raise refused from None
        except OSError as error:
            raise BindError(BindCode.INSTALL, f"image {name!r} can't be had: {error}") from error

    async def _provide(self, name: str, *, disk: bool) -> Image:
        async with self._turn(name):  # two of the same name would do the same work twice
            found, fetched = await self._podman.look_up(name)
        identity = str(found["Id"]).removeprefix("sha256:")
        config: dict[str, Any] = found.get("Config") or {}
        cwd = str(PurePosixPath(f"/{(config.get('WorkingDir') or '').strip('/')}"))
        root = self._folder / identity
        async with self._turn(identity):
            if not root.is_dir():
                try:
                    why = unfit(name, found, self._limits.max_bytes)
                    if why:
                        raise BindError(BindCode.INSTALL, why)
                    await self._unpack(identity, root, cwd, fetched)
                except BaseException:
                    await self._podman.forget(fetched)
                    raise
            os.utime(root)
            try:
                user = await asyncio.to_thread(user_of, root, config.get("User") or "")
            except LookupError as error:
                raise BindError(BindCode.INSTALL, f"image {name!r} can't be run: {error}") from None
            if disk and not disk_of(root).exists():
                await self._make_disk(root, user or USER)
        await self._tidy(identity)
        command = [*(config.get("Entrypoint") or ()), *(config.get("Cmd") or ())]
        return Image(identity, root, command, config.get("Env") or (), cwd, user)

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

    def _container(self, identity: str) -> str:
        """The name of the container that an image is unpacked from."""
        return f"flame-{zlib.crc32(bytes(self._folder)):x}-{identity[:16]}"

    async def _unpack(self, identity: str, root: Path, cwd: str, fetched: str) -> None:
        part, archive = root.with_suffix(_PART), root.with_suffix(_PART) / "archive"
        tree = part / "root"
        await asyncio.to_thread(remove_tree, part)
        tree.mkdir(parents=True)
        try:
            await self._podman.export(identity, self._container(identity), archive)
            size = archive.stat().st_size
            # Who starts the executor manager owns all of it, and it can be removed again: rights are those of files.
            tar = ["tar", "--extract", f"--directory={tree}", f"--file={archive}", *_TAR_OPTIONS]
            await self._commands.do(*tar, listing=True)
            archive.unlink()
            await asyncio.to_thread(prepare, tree, cwd)
            root.with_suffix(_NOTE).write_bytes(msgspec.json.encode(Note(size, fetched)))
            tree.rename(root)
        finally:
            await asyncio.to_thread(remove_tree, part)

    async def _make_disk(self, root: Path, user: tuple[int, int]) -> None:
        part = root.with_suffix(_PART)
        await asyncio.to_thread(remove_tree, part)
        part.mkdir()
        try:
            await make_disk(self._commands, root, user, part)
        finally:
            await asyncio.to_thread(remove_tree, part)

    async def _tidy(self, current: str) -> None:
        """Remove those that nobody used lately, and the oldest when there are too many, here and from podman."""
        for path in await asyncio.to_thread(self._surplus, current):
            async with self._turn(path.name):  # who wants it meanwhile has it unpacked anew
                if self._holds.get(path.name) or not path.exists():
                    continue
                note, part = _note_of(path), path.with_suffix(_PART)
                path.rename(part)
                await asyncio.to_thread(remove_tree, part)
                path.with_suffix(_NOTE).unlink(missing_ok=True)
                disk_of(path).unlink(missing_ok=True)
                await self._podman.forget(note.fetched)
            logger.info("removed image %s", path.name)

    def _surplus(self, current: str) -> list[Path]:
        there = {path: path.stat().st_mtime for path in self._folder.iterdir() if not path.suffix}
        kept = {path: Kept(used, _note_of(path).size + size_of(disk_of(path))) for path, used in there.items()}
        used = {path for path in kept if path.name == current or self._holds.get(path.name)}
        return too_many(kept, used, self._limits, time.time())


def too_many(kept: Mapping[Path, Kept], used: set[Path], limits: ImageLimits, now: float) -> list[Path]:
    """Which of these are to go: all that are old, and the oldest above the limits, but none that is in use."""
    count, size = len(used), sum(kept[path].size for path in used)
    gone: list[Path] = []
    for path in sorted(kept.keys() - used, key=lambda path: kept[path].used, reverse=True):
        count, size = count + 1, size + kept[path].size
        old = now - kept[path].used >= limits.keep_age
        if old or count > limits.keep_count or size > limits.keep_bytes:
            gone.append(path)
            count, size = count - 1, size - kept[path].size
    return gone


def _note_of(root: Path) -> Note:
    try:
        return msgspec.json.decode(root.with_suffix(_NOTE).read_bytes(), type=Note)
    except (OSError, msgspec.DecodeError):
        return Note(0, "")

"""What podman does for the images of a node: it says what it knows of them, fetches, exports and forgets them."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from flame.model.states import BindCode
from flame.shims.container_commands import Commands, TooMuchError, larger, reason
from flame.shims.shim import BindError

logger = logging.getLogger("flame.node")

_TRANSPORTS = ("docker-archive", "oci-archive", "oci", "dir", "docker-daemon")
_IDENTITY = re.compile(r"[0-9a-f]{64}")
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}
_END_S = 30.0
_BROKEN = "consider removing the image"  # podman's advice for one that lacks a part
_MOST_BROKEN = 10


class Podman:
    """The podman of a node. `max_bytes` is how large an image may be."""

    def __init__(self, program: str, commands: Commands, max_bytes: int) -> None:
        self._program = program
        self._commands = commands
        self._max_bytes = max_bytes

    async def look_up(self, name: str) -> tuple[dict[str, Any], str]:
        """What podman knows of an image, which it fetches if it does not have it, and then what it is to be asked to
        forget. Raises BindError, TooMuchError, OSError."""
        wanted, is_file = name, name.partition(":")[0] in _TRANSPORTS  # a file may have changed
        done = None if is_file else await self._commands.run(self._program, "image", "inspect", "--", wanted)
        known: set[str] | None = None
        if done is None or done.status:
            known = await self._images()
            try:
                fetched = await self._fetch(name)
            except (TooMuchError, asyncio.CancelledError):  # podman was killed
                await asyncio.shield(self._clean(name, known, is_file=is_file))
                raise
            wanted = fetched if is_file else name
            done = await self._commands.run(self._program, "image", "inspect", "--", wanted)
        if done.status:
            raise BindError(BindCode.INSTALL, f"podman does not know image {name!r}: {reason(done.words)}")
        try:
            found: dict[str, Any] = json.loads(done.text)[0]
            (identity,) = _IDENTITY.findall(str(found["Id"]))
        except (ValueError, LookupError, TypeError):
            raise BindError(
                BindCode.INSTALL, f"what podman says of image {name!r} makes no sense: {done.text[:200]!r}"
            ) from None
        return found, "" if known is None or identity in known else wanted

    async def _images(self) -> set[str]:
        """Those that podman has. One that came when it was killed may lack a part, and podman says nothing of any other
        then: such a one is removed."""
        for _ in range(_MOST_BROKEN):
            done = await self._commands.run(self._program, "images", "--all", "--quiet", "--no-trunc")
            broken = _IDENTITY.search(done.words) if done.status and _BROKEN in done.words else None
            if broken is None:
                return set(_IDENTITY.findall(done.text))
            logger.warning("podman was killed while image %s came: it is removed", broken.group())
            await self._commands.run(self._program, "rmi", "--force", "--", broken.group())
        return set()

    async def _clean(self, name: str, known: set[str], *, is_file: bool) -> None:
        """An image came in part, or just so: it is not kept. What comes of a file is known by its path, if by any
        name; what has another one may be somebody else's that came meanwhile."""
        with suppress(OSError, TooMuchError):
            came = await self._images() - known
            if not is_file:
                await self.forget(name)
                return
            path = name.partition(":")[2].strip("/")
            for identity in came:
                tags = await self._commands.run(
                    self._program, "image", "inspect", "--format={{json .RepoTags}}", "--", identity
                )
                if not tags.status and all(path in tag for tag in json.loads(tags.text) or ()):
                    await self.forget(identity)

    async def _fetch(self, name: str) -> str:
        """The digest of what came."""
        logger.info("podman fetches image %s", name)
        begun = time.monotonic()
        done = await self._commands.run(self._program, "pull", "--", name)
        if "file too large" in done.words:
            raise TooMuchError(larger(self._max_bytes))
        if done.status or not done.text:
            logger.warning("podman can't fetch image %s: %s", name, done.words)
            raise BindError(BindCode.INSTALL, f"podman can't fetch image {name!r}: {reason(done.words)}")
        logger.info("image %s was fetched in %.1f s", name, time.monotonic() - begun)
        return done.text.split()[-1]

    async def forget(self, name: str) -> None:
        """Let podman remove what it was told to fetch, unless it has another name, too, or is in use."""
        if name:
            with suppress(OSError, TooMuchError):
                await self._commands.run(self._program, "rmi", "--", name)

    async def export(self, identity: str, container: str, archive: Path) -> None:
        """Write the files of an image to an archive, by a container of this name that is gone afterwards. Raises
        BindError, TooMuchError, OSError."""
        try:
            # The command is never run; podman wants one of images that have none.
            await self._commands.do(self._program, "create", "--replace", f"--name={container}", identity, "/bin/true")
            try:
                await self._commands.do(self._program, "export", f"--output={archive}", container)
            except BindError:
                if await asyncio.to_thread(size_of, archive) >= self._max_bytes:
                    raise TooMuchError(larger(self._max_bytes)) from None
                raise
        finally:
            with suppress(OSError, TooMuchError):
                await self._commands.run(self._program, "rm", "--force", "--ignore", container)

    def remove(self, containers: Sequence[str]) -> None:
        """Of these what was left by a node that was killed; they are replaced anyway when they are in the way. Blocks
        a moment."""
        with suppress(OSError, subprocess.SubprocessError):
            command = [self._program, "rm", "--force", "--ignore", *containers]
            subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_END_S, check=False)


def size_of(file: Path) -> int:
    """In bytes; 0 = it is not there."""
    try:
        return file.stat().st_size
    except OSError:
        return 0


def unfit(name: str, found: Mapping[str, Any], max_bytes: int) -> str:
    """Why an image that podman has can't be run here, empty = it can. `found` is what podman says of it."""
    system, architecture = found.get("Os") or "linux", found.get("Architecture")
    machine = os.uname().machine
    own = _ARCHITECTURES.get(machine, machine)
    if system != "linux" or (architecture and architecture != own):
        return (
            f"image {name!r} is made for {system}/{architecture or own}, and this node is linux/{own}: name one for it"
        )
    size = found.get("Size")
    return f"image {name!r} can't be had: {larger(max_bytes)}" if isinstance(size, int) and size > max_bytes else ""

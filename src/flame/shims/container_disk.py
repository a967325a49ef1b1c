"""The disk of an unpacked image, the root of virtual machines: ext4, where all files are those of its one user."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

from flame.model.states import BindCode
from flame.shims.container_commands import Commands
from flame.shims.microvm_disks import DiskError, making
from flame.shims.shim import BindError

_SUFFIX = ".disk"


def disk_of(root: Path) -> Path:
    """Where the disk of the image that is unpacked in `root` is, once there is one."""
    return root.with_suffix(_SUFFIX)


async def make_disk(commands: Commands, root: Path, user: tuple[int, int], part: Path) -> None:
    """Make it, for this user and group, in the folder `part` until it is whole. Raises BindError, TooMuchError,
    OSError."""
    disk = part / "disk"
    try:
        command, size = await asyncio.to_thread(making, str(root), str(disk))
    except DiskError as error:
        raise BindError(BindCode.INSTALL, f"can't make a disk of the image: {error}") from None
    await commands.do(*_as(user), *command, most=size)  # which has a limit, since that of the image has
    disk.rename(disk_of(root))


def _as(user: tuple[int, int]) -> list[str]:
    """Runs a command to which our own files are those of this user, all of which it can read."""
    number, group = map(str, user)
    bwrap = shutil.which("bwrap") or "bwrap"
    options = ["--unshare-user", "--uid", number, "--gid", group, "--cap-add", "CAP_DAC_READ_SEARCH"]
    return [bwrap, *options, "--dev-bind", "/", "/", "--"]

"""The container shim: an instance is a program of an OCI image.

podman fetches the image; what runs it is a sandbox whose root the image is (isolation_sandbox.py, gvisor.py), below the
keeper as all instances are. It talks as one of the host shim does, unless a label says that it talks as one of the
stdio shim (`stdio=lines`, `stdio=once`, `stdio=framed`) or of the rest shim (`container=rest`).
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import msgspec

from flame.model.isolation import isolated
from flame.model.network import is_list
from flame.model.states import BindCode
from flame.proto import types_pb2
from flame.shims import image_python
from flame.shims.container_commands import Commands, reason
from flame.shims.container_images import Image, Images
from flame.shims.container_limits import ImageLimits
from flame.shims.environment import expand
from flame.shims.furnished import Furnished
from flame.shims.host import HostShim
from flame.shims.isolation_sandbox import TMP
from flame.shims.levels import shared_folder
from flame.shims.notes import Notes
from flame.shims.reception import Reception
from flame.shims.rest import RestShim
from flame.shims.shim import AsWritten, BindError, Instance, Launch, Owner
from flame.shims.stdio import StdioShim, label_values
from flame.shims.workplace import Workshop

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_IN_MACHINES = "microvm"
_PROBE_S = 20.0


class ContainerShim:
    """Starts programs of images."""

    def __init__(
        self, host: HostShim, workshop: Workshop, reception: Reception, images: Images, missing: str = ""
    ) -> None:
        self.missing = missing
        self._workshop = workshop
        self._images = images
        self._host = host
        self._stdio = StdioShim(workshop)
        self._rest = RestShim(workshop, reception)

    @classmethod
    def find(
        cls,
        host: HostShim,
        workshop: Workshop,
        reception: Reception,
        folder: Path,
        limits: ImageLimits,
        environ: Mapping[str, str] = os.environ,
    ) -> ContainerShim:
        """Look whether this node can fetch and run images. It unpacks them in `folder`. Raises OSError."""
        podman = shutil.which("podman", path=environ.get("PATH"))
        broken = remembered_trouble(podman, folder, environ) if podman is not None and os.geteuid() else ""
        sandboxes = workshop.confinement.levels.get("process")
        images = Images(podman or "", folder, Commands(workshop.keeper, workshop.folder, environ, limits), limits)
        if podman is None:
            return cls(
                host, workshop, reception, images, "podman is not installed: put it into the executor manager's PATH"
            )
        if sandboxes is None or sandboxes.missing:
            why = sandboxes.missing if sandboxes is not None else "this node has no level process"
            return cls(host, workshop, reception, images, f"containers run in sandboxes: {why}")
        if broken:
            return cls(host, workshop, reception, images, f"podman does not work for this user: {broken}")
        images.open()
        return cls(host, workshop, reception, images)

    async def prepare(self, launch: Launch) -> Launch:
        """Install the application's package, fetch and unpack its image, if they are not there yet. Raises
        BindError."""
        application = launch.application
        if not application.image:
            raise BindError(BindCode.START, "the application has no image: shim container needs one")
        kind = label_values(application.labels).get("container")
        if kind not in (None, "rest"):
            raise BindError(BindCode.START, f"unknown label container={kind}: write container=rest, or leave it out")
        in_machine = application.isolation == _IN_MACHINES
        if is_list(application.network) and not isolated(application.isolation):
            raise BindError(BindCode.START, "a network of listed hosts needs isolation: set it to process or more")
        if in_machine or is_list(application.network):
            await asyncio.to_thread(_look_for_python, "machines" if in_machine else "a network of listed hosts")
        launch = await self._workshop.prepare(launch)
        image = await self._images.provide(application.image, disk=in_machine)
        return msgspec.structs.replace(
            launch,
            application=inside(application, image),
            package=Furnished(
                launch.package, image.identity, partial(self._images.hold, image), partial(self._images.release, image)
            ),
            root=image.root,
            as_written=as_written(application, image),
            user=image.user,
        )

    async def start(self, launch: Launch, owner: Owner) -> Instance:
        """Start its program. Raises BindError with code 11."""
        labels = label_values(launch.application.labels)
        if labels.get("container") == "rest":
            return await self._rest.start(launch, owner)
        return await (self._stdio if "stdio" in labels else self._host).start(launch, owner)


def remembered_trouble(podman: str, folder: Path, environ: Mapping[str, str]) -> str:
    """Like `trouble_of`, but what worked is not tried again until the machine starts anew. Notes are in `folder` where
    this user has no better place."""
    try:
        notes = Notes(shared_folder("container", environ) or folder, podman, bool)
    except OSError as error:
        return str(error)
    if notes.read():
        return ""
    trouble = trouble_of(podman, environ)
    if not trouble:
        notes.write(True)
    return trouble


def trouble_of(podman: str, environ: Mapping[str, str] = os.environ) -> str:
    """Why podman does not work, empty = it does. For users other than root it often lacks something. Blocks a
    moment."""
    try:
        done = subprocess.run(
            [podman, "info", "--format", "{{.Store.GraphRoot}}"], env=environ, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, errors="replace", timeout=_PROBE_S, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return (reason(done.stderr.strip()) or f"it exits with status {done.returncode}") if done.returncode else ""


def _look_for_python(what: str) -> None:
    """Raises BindError when this node's own can't be moved into images, which have `what` by it."""
    try:
        image_python.find()
    except OSError as error:
        raise BindError(BindCode.START, f"images can't have {what} here: {error}") from error


def as_written(application: types_pb2.ApplicationSpec, image: Image) -> AsWritten:
    """What `inside` gives the application of its image."""
    variables = {text.partition("=")[0] for text in image.env} - {item.name for item in application.environments}
    return AsWritten(frozenset(variables), 0 if application.command else len(image.command) - 1)


def inside(application: types_pb2.ApplicationSpec, image: Image) -> types_pb2.ApplicationSpec:
    """The application as it runs in its image: the command's path there, with the image's environment and folder
    where the application says nothing else. Raises BindError."""
    found = types_pb2.ApplicationSpec()
    found.CopyFrom(application)
    found.ClearField("environments")
    own = {item.name: item.value for item in application.environments}
    pairs = (text.partition("=") for text in image.env)
    env = {"PATH": _PATH, **{name: value for name, _, value in pairs}, **own}
    for name, value in env.items():
        found.environments.add(name=name, value=value)
    if not found.working_directory:
        found.working_directory = image.cwd
    cwd = found.working_directory
    if not cwd.startswith("/"):
        raise BindError(BindCode.START, f"working_directory {cwd!r} is not an absolute path")
    if cwd != TMP and not image.has_folder(cwd):
        raise BindError(BindCode.START, f"working_directory {cwd!r} is no folder of image {application.image!r}")
    if not application.command:
        if not image.command:
            raise BindError(BindCode.START, f"image {application.image!r} has no command: name one in the application")
        found.command = image.command[0]
        found.arguments[:] = [*image.command[1:], *application.arguments]
    placed = msgspec.structs.replace(image, cwd=cwd)
    command = expand(found.command, env) if application.command else found.command
    path = placed.find(command, env["PATH"])
    if path is None:
        raise BindError(BindCode.START, f"command {command!r} was not found in image {application.image!r}")
    if not placed.can_run(path):
        raise BindError(BindCode.START, f"command {path!r} of image {application.image!r} is not executable")
    found.command = path
    return found

"""A sandbox of gVisor as the process in front of it makes it: its files, its configuration, and `runsc`. Only the
standard library: the runner uses it."""

from __future__ import annotations

import contextlib
import json
import os

from flame.shims.gvisor_mounts import MS_NODEV, MS_NOSUID, add, enter_namespaces, make_tree, mount
from flame.shims.gvisor_processes import start

TYPE_CHECKING = False  # like typing's, without its import
if TYPE_CHECKING:
    from typing import Any

PLACE = "/.flame"  # where copies have what is one launch's own, at the same path in all of them
LINK, DOOR, OBJECTS, DATA = f"{PLACE}/link", f"{PLACE}/door", f"{PLACE}/objects", f"{PLACE}/common_data"
PANIC = "panic"  # the file in its folder where gVisor says why it failed


class Sandbox:
    """What all sandboxes of one launch have in common: one after another, in a mount that nobody else sees. `plan` is a
    Plan of gvisor_root.py."""

    def __init__(self, plan: dict[str, Any]) -> None:
        """Raises OSError."""
        self.folder: str = plan["folder"]
        self.root = f"{self.folder}/root"
        self.configuration = plan["configuration"]
        self.nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        self._command = [*plan["command"], f"--root={self.folder}/state"]
        self._name = ""
        enter_namespaces(network=plan["network"])
        # A sandbox that has users of its own may not change what a mount forbids, as it does to make it read-only.
        flags = 0 if "uidMappings" in self.configuration.get("linux", {}) else MS_NOSUID | MS_NODEV
        mount("tmpfs", self.folder, "tmpfs", flags, "mode=0700")
        make_tree(self.root, plan["tree"])
        self.has_shell = os.path.exists(f"{self.root}/bin/sh")

    def furnish(self, steps: list[list[str]]) -> None:
        """Add to what is seen inside; what is there already stays. Raises OSError."""
        add(self.root, [step for step in steps if not os.path.lexists(self.root + step[1])])

    def configure(self, arguments: list[str], env: dict[str, str], door: str = "", *, name: str = "") -> None:
        """The next one runs this program; the folder `door` is at DOOR, if that is a mount of it. One that is saved has
        the same `name` as its copies, or signals would not reach what runs in these: it must have a network of its own,
        where nobody else is called so. Raises OSError."""
        self._name = name or f"flame-{os.urandom(16).hex()}"
        self.configuration["root"] = {"path": self.root, "readonly": True}
        self.configuration["process"]["args"] = arguments
        self.configuration["process"]["env"] = [f"{name}={value}" for name, value in env.items()]
        for each in self.configuration["mounts"]:
            if each["destination"] == DOOR:
                os.makedirs(self.root + DOOR, exist_ok=True)
                each["source"] = door
        with open(f"{self.folder}/config.json", "w", errors="surrogateescape") as file:
            json.dump(self.configuration, file)

    def run(self, streams: list[int]) -> int:
        """Start it; gives the number of the process that ends as the program does."""
        return start([*self._command, "run", f"--bundle={self.folder}", self._name], streams)

    def restore(self, image: str, streams: list[int]) -> int:
        """Like `run`, but it goes on as what was saved in that folder."""
        command = [*self._command, "restore", f"--bundle={self.folder}", f"--image-path={image}", self._name]
        return start(command, streams)

    def checkpoint(self, image: str, words: int) -> int:
        """Save it in that folder and end it; gives the number of the process that does it, and says why it can't."""
        command = [*self._command, "checkpoint", f"--image-path={image}", self._name]
        return start(command, [self.nothing, self.nothing, words])

    def signalling(self) -> list[str]:
        """What sends a signal to all that runs in it; wants the signal's number."""
        return [*self._command, "kill", "--all", self._name]

    def panic(self) -> str:
        """Why gVisor failed, empty = it did not."""
        return panic(f"{self.folder}/{PANIC}")

    def forget_panic(self) -> None:
        """What failed is not used."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self.folder}/{PANIC}")


def panic(path: str) -> str:
    """Why gVisor failed, as it stands in that file; empty = it did not."""
    try:
        with open(path, errors="replace") as file:
            return file.readline(1000).strip()
    except OSError:
        return ""

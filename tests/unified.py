"""A machine whose kernel has control groups of version 2 and nothing else ("unified"), for tests of what Flame does
there: a virtual one, emulated, with the Python and the Flame of this checkout at their paths.

    with booted("/usr/bin/bwrap") as machine:
        machine.python("print(1)", group="/some.service")  # in this control group, below /sys/fs/cgroup
        machine.start(sys.executable, "-m", "flame.node.daemon", group="/node.service")

What listens at this machine's loopback is reached from there at 10.0.2.2.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from cluster import ROOT
from flame.shims.build_cache import Cache
from flame.shims.microvm_disks import room_disk, system_disk
from flame.shims.microvm_kernel import Archive, unpacked
from flame.shims.microvm_machine import Machine
from flame.shims.microvm_qemu import Qemu
from microvms import CACHE, found

THIS_MACHINE = "10.0.2.2"
SOURCE = ROOT / "src"
_GUEST = SOURCE / "flame/shims/guest"
_INIT = Path(__file__).with_name("unified_init.py")
_MEMORY = 1024 * 1024**2
_WORDS = ("console=ttyS0", "quiet", "loglevel=3", "reboot=t", "panic=-1", "random.trust_cpu=on", "flame.disks=2")
_PATIENCE = 120.0  # seconds; a machine in software takes its time


class Ran(NamedTuple):
    """A program that has ended."""

    status: int
    output: str


class UnifiedMachine:
    """The machine from outside: what it is told to run."""

    def __init__(self, control: socket.socket) -> None:
        control.settimeout(_PATIENCE)
        self._lines = control.makefile("rwb", 0)
        self.env = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": "/tmp", "PYTHONPATH": str(SOURCE)}

    def wait_until_up(self) -> None:
        assert json.loads(self._lines.readline() or b"{}") == {"up": True}, "the machine did not start"

    def run(self, *argv: str, group: str = "/") -> Ran:
        """Run a program to its end."""
        return Ran(**self._ask(argv, group, wait=True))

    def start(self, *argv: str, group: str = "/") -> tuple[int, str]:
        """Start a program; its pid, and the file there that its output goes to."""
        told = self._ask(argv, group, wait=False)
        return told["pid"], told["output"]

    def write(self, path: str, text: str) -> None:
        """A file with this text, in folders that are made."""
        script = 'mkdir -p "$(dirname "$1")" && printf %s "$2" > "$1"'
        done = self.run("/bin/busybox", "sh", "-c", script, "sh", path, text)
        assert done.status == 0, done.output

    def python(self, source: str, group: str = "/") -> str:
        """What a program in Python prints there. Raises AssertionError if it fails."""
        done = self.run(sys.executable, "-c", source, group=group)
        assert done.status == 0, done.output
        return done.output

    def _ask(self, argv: tuple[str, ...], group: str, *, wait: bool) -> dict[str, Any]:
        request = {"argv": argv, "env": self.env, "group": group, "wait": wait}
        self._lines.write(json.dumps(request).encode() + b"\n")
        line = self._lines.readline()
        assert line, "the machine has ended"
        return json.loads(line)


@contextlib.contextmanager
def booted(folder: Path, program: str) -> Iterator[UnifiedMachine]:
    """Such a machine, until the block ends, with this program and its libraries besides."""
    level = found(folder)
    assert level.missing == "", "make test installs what is missing"
    wanted = level._settings
    system, kernel = wanted["system"], wanted["kernel"]
    cache = Cache(str(CACHE), wanted["cache"]["kept"])
    _, first = system_disk(cache, system["prefixes"], system["added"], system["busybox"])
    _, second = room_disk(cache, [str(SOURCE)], [str(CACHE)], program)
    assert second is not None
    start = initrd(folder / "initrd", kernel["modules"], system["busybox"])
    control, control_in = socket.socketpair()
    console, console_in = socket.socketpair()
    ports = {"control": control_in.fileno(), "console": console_in.fileno()}
    words = (*_WORDS, f"flame.python={system['python']}")
    machine = Machine(_MEMORY, 2, kernel["image"], start, words, (first, second), ports, network=True)
    running = Qemu(**wanted["vmm"]["arguments"]).start(machine)
    for descriptor in (first, second, start):
        os.close(descriptor)
    control_in.close()
    console_in.close()
    printing = threading.Thread(target=_print, args=(console,))
    printing.start()
    try:
        with control:
            inside = UnifiedMachine(control)
            inside.wait_until_up()
            yield inside
    finally:
        running.kill()
        printing.join()


def initrd(place: Path, modules: list[str], busybox: str) -> int:
    """The first file system as virtual machines of level microvm have it, with another process 1; open for reading."""
    archive = Archive()
    folders = ["bin", "proc", "sys", "dev", "root", "modules", "guest", "guest/flame", "guest/flame/shims"]
    for folder in (*folders, "guest/flame/shims/guest"):
        archive.folder(folder)
    archive.file("init", (_GUEST / "boot.sh").read_bytes(), 0o755)
    archive.file("bin/busybox", Path(busybox).read_bytes(), 0o755)
    names = [Path(path).name.partition(".ko")[0] + ".ko" for path in modules]
    for name, path in zip(names, modules, strict=True):
        archive.file(f"modules/{name}", unpacked(path))
    archive.file("modules/order", "".join(f"{name}\n" for name in names).encode())
    archive.file("guest/flame/shims/guest/init.py", _INIT.read_bytes())
    place.write_bytes(archive.finished())
    return os.open(place, os.O_RDONLY)


def _print(console: socket.socket) -> None:
    """What the kernel has to say is seen when a test fails."""
    with console, console.makefile("rb") as lines:
        for line in lines:
            sys.stdout.write(line.decode(errors="replace"))

"""The program in front of an instance of level microvm: runs it in a virtual machine of its own. Runs alone, by its
path, as `python -I -S`; only the standard library.

What to do is JSON in the environment, FLAME_MICROVM_0 and on, as `microvm.py` writes it. stdin, stdout and stderr are
the program's; this process exits as the program does, with 128 and the number when a signal killed it. When it is
killed, the kernel ends the machine too.

A program of the SDK says when it is prepared for any session. Then the machine is saved, and this machine and all later
ones alike are copies of it, which are told who they are.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from flame.shims.build_cache import Cache, digest
from flame.shims.microvm_disks import DiskError, directory_disk, python_disk, room_disk, system_disk
from flame.shims.microvm_inside import Inside, LiesError, Ports, Signalled, Signals
from flame.shims.microvm_kernel import KernelError, initrd
from flame.shims.microvm_machine import Machine, Running, Template, Vmm, VmmError
from flame.shims.snapshots import REFUSED, RESUME_S, SNAPSHOT, boot_id, common, fresh, mark, saved

FAILED = 125  # exit status when the machine can't be had, as of other programs that run programs
_RAM, _STATE = "memory", "state"
_MOUNTED = ("/tmp/", "/dev/shm/")  # where the machine has file systems of its own
_LAYOUT = 2  # grows when what is saved is to be used in another way


class Runner:
    """One launch. `spec` is what microvm.py wrote."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = spec
        self.signals = Signals()
        self.cache = Cache(spec["cache"]["folder"], spec["cache"]["kept"])
        self.vmm = load_vmm(spec["vmm"])
        self.inside: Inside | None = None

    def run(self) -> int:
        """Run the program to its end; gives the exit status. Raises DiskError, KernelError, VmmError, OSError."""
        spec, room, system = self.spec, self.spec["room"], self.spec["system"]
        image, python = spec["image"], None
        if image:
            python_key, python = python_disk(self.cache, image["python"])
            system_key = digest(image["identity"], python_key)
            disk = os.open(image["disk"], os.O_RDONLY | os.O_CLOEXEC)
        elif system["directory"]:
            system_key, disk = directory_disk(self.cache, system["directory"])
        else:
            system_key, disk = system_disk(self.cache, system["prefixes"], system["added"], system["busybox"])
        program = "" if image else spec["program"]["path"]
        room_key, room_file = room_disk(self.cache, room["readable"], room["hidden"], program)
        initrd_key, self.initrd = initrd(self.cache, spec["kernel"]["modules"], system["busybox"])
        self.disks = tuple(each for each in (disk, room_file, python) if each is not None)
        if spec["snapshots"]:
            program = {**spec["program"], "env": common(spec["program"]["env"])}
            key = digest(_LAYOUT, system_key, room_key, initrd_key, spec["kernel"], self.vmm.identity(), program,
                         spec["limits"], room["network"], room["listed"], spec["door"]["inside"], spec["memory"],
                         spec["processors"], boot_id())  # fmt: skip
            self.inside = self.restored(key)
        if self.inside is None:
            self.inside = self.started(self.vmm.start, spec["program"]["env"], prepare=False)
        return self.serve(self.inside)

    def serve(self, inside: Inside) -> int:
        inside.connect()
        last = inside.wait("exited")
        inside.read_on(link=last["link"], log=last["log"])
        inside.hear_out()
        if last.get("starved"):
            limit = self.spec["limits"]["memory"]
            self.judge(f"ran out of memory: it needed more than its limit of {limit} bytes")
        return last["status"]

    def judge(self, why: str) -> None:
        """Leave word why the program ended."""
        with open(self.spec["verdict"], "w") as file:
            file.write(why)

    # --- snapshots -------------------------------------------------------------------------------------------------

    def restored(self, key: str) -> Inside | None:
        """A copy of the machine that was saved for such launches, saved now if need be; None = boot one."""
        try:
            template = self.template(key)
            if template is None:
                return None
            inside = self.inside = self.begun(partial(self.vmm.restore, template=template))
            inside.tell("resume", env=self.spec["program"]["env"], **fresh())
            inside.wait("resumed", seconds=RESUME_S)
            for descriptor in template:
                os.close(descriptor)
        except VmmError as error:
            say(f"no snapshot is used, the machine is booted: {error}")
            if self.inside is not None:
                self.inside.end()
            self.inside = None
            self.cache.remove(SNAPSHOT, key)
            return None
        return inside

    def template(self, key: str) -> Template | None:
        """The files of the saved machine; None when its program takes no part in that. Of several launches that want
        the same one makes it, the others wait."""
        found = saved(self.cache, key, [_RAM, _STATE], partial(self.save, key), writable=True)
        return Template(*found) if found is not None else None

    def save(self, key: str) -> None:
        """Boot a machine without any identity, and save it when its program is prepared. Raises VmmError."""
        spec = self.spec
        with self.cache.making(SNAPSHOT, key) as folder:
            template = Template(*(os.open(f"{folder}/{name}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                                  for name in (_RAM, _STATE)))  # fmt: skip
            os.ftruncate(template.memory, spec["memory"])
            start = partial(self.vmm.start_template, template=template)
            inside = self.inside = self.started(start, common(spec["program"]["env"]), prepare=True)
            inside.listen()
            said = inside.wait("prepared", "refused", "spoke", "exited")
            inside.read_on(log=said["log"])
            if said["event"] == "prepared":
                inside.save()
            inside.end()
            self.inside = None
            for descriptor in template:
                os.close(descriptor)
            if said["event"] == "exited":
                raise SystemExit(said["status"])
            if said["event"] != "prepared":
                mark(self.cache, REFUSED, key)
                raise VmmError("the program takes no part in snapshots")

    # --- machines --------------------------------------------------------------------------------------------------

    def started(self, start: Callable[[Machine], Running], env: dict[str, str], *, prepare: bool) -> Inside:
        spec = self.spec
        # Who is prepared for any session speaks the link: to others there is no way into what is saved.
        inside = self.begun(start, "" if prepare else spec["door"]["outside"])
        program = {**spec["program"], "env": env}
        room, system = spec["room"], spec["system"]
        # A folder of the operator's has its own programs in place of these, and so has an image.
        own = () if system["directory"] or spec["image"] else (*system["prefixes"], *system["added"])
        paths = (*room["readable"], *own)
        shown = sorted(path for path in paths if path.startswith(_MOUNTED))
        inside.tell("start", program=program, limits=spec["limits"], shown=shown, network=room["network"],
                    listed=bool(room["listed"]), door=spec["door"]["inside"], prepare=prepare, **fresh())  # fmt: skip
        return inside

    def begun(self, start: Callable[[Machine], Running], door: str = "") -> Inside:
        spec = self.spec
        ports = Ports(listed=bool(spec["room"]["listed"]), door=bool(door))
        words = ("console=ttyS0", "quiet", "loglevel=3", "reboot=t", "panic=-1", "random.trust_cpu=on",
                 f"flame.disks={len(self.disks)}", *self.python())  # fmt: skip
        machine = Machine(
            spec["memory"], spec["processors"], spec["kernel"]["image"], self.initrd, words, self.disks,
            ports.descriptors(), spec["room"]["network"],
        )  # fmt: skip
        return Inside(start(machine), ports, self.signals, spec["room"]["proxy"], door)

    def python(self) -> tuple[str, ...]:
        """What the kernel's command line says of the Python of process 1."""
        image = self.spec["image"]
        if not image:
            return (f"flame.python={self.spec['system']['python']}",)
        return (f"flame.python={image['program']}", "flame.apart")


def load_vmm(named: dict[str, Any]) -> Vmm:
    """Make the VMM that is named `module:class`, found in further folders for a plugin."""
    sys.path += named["path"]
    module, _, name = named["load"].partition(":")
    return getattr(import_module(module), name)(**named["arguments"])


def say(text: str) -> None:
    os.write(2, f"flame: {text}\n".encode())


def spec_of(environ: dict[str, str]) -> dict[str, Any]:
    """What is to be done; the parts are taken out of the environment."""
    parts: list[str] = []
    while (part := environ.pop(f"FLAME_MICROVM_{len(parts)}", None)) is not None:
        parts.append(part)
    return json.loads("".join(parts))


def main() -> int:
    runner = Runner(spec_of(os.environ))  # type: ignore[arg-type]
    try:
        status = runner.run()
    except (DiskError, KernelError, VmmError, OSError) as error:
        say(f"level microvm: {error}")
        status = FAILED
    except LiesError as error:
        say(f"the virtual machine broke its contract: {error}")
        runner.judge(f"broke its contract: {error}")
        status = FAILED
    except Signalled as signalled:
        status = 128 + signalled.number
    if runner.inside is not None:
        runner.inside.end()
    return status


if __name__ == "__main__":
    os._exit(main())

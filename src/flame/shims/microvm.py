"""Level microvm: a program runs in a virtual machine of its own, on its own kernel. By QEMU, or by what a plugin of the
entry point group `flame.vmms` names; what is started for an instance is microvm_runner.py."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from flame.model.isolation import Limits
from flame.proto import types_pb2
from flame.shims import image_python
from flame.shims.build_cache import Cache
from flame.shims.container_disk import disk_of
from flame.shims.isolation_sandbox import USER, Room
from flame.shims.levels import shared_folder
from flame.shims.microvm_kernel import KernelError, find_kernel, module_files
from flame.shims.microvm_probe import Acceleration, find_acceleration
from flame.shims.processes import Program
from flame.shims.reception import SOCKET
from flame.shims.shim import Launch
from flame.shims.snapshots import COMMON_DATA, alike

logger = logging.getLogger("flame.node")

GROUP = "flame.vmms"
ACCEL_LABEL = "flame.microvm.accel"
_MIB = 1024**2
_RUNNER = Path(__file__).with_name("microvm_runner.py")
_FLAME = Path(__file__).parents[1]
_DEFAULT_MEMORY = 512 * _MIB  # when nobody says how much
_INSIDE = 96 * _MIB  # what the machine's own kernel takes of its memory
_BRIDGE = 24 * _MIB  # and what passes on connections: to what a list names, to the program
_OUTSIDE = 320 * _MIB  # what QEMU takes besides it, and the runner
_OUTSIDE_PIDS = 512  # threads and processes of both
_KEPT = {"system": 4, "room": 32, "python": 4, "initrd": 4, "snapshot": 8, "refused": 64, "probe": 8}
_PIECE = 100_000  # bytes; one variable of an environment may have 128 KiB
_INSTALL = "install QEMU (qemu-system-x86), busybox-static and e2fsprogs"


class Microvm:
    """The virtual machines of a node. `missing` says why there can be none; empty = there can."""

    name = "microvm"
    streams = True
    carries = True
    door = "/dev/shm/flame-door/s.sock"

    def __init__(self, settings: dict[str, Any], verdicts: Path, missing: str = "", accel: str = "") -> None:
        """`settings` is the part of the runner's work that is the same for all launches."""
        self.missing = missing
        self.labels: Mapping[str, str] = {ACCEL_LABEL: accel} if accel else {}
        self._settings = settings
        self._verdicts = verdicts

    @classmethod
    def find(cls, folder: Path, environ: Mapping[str, str]) -> Microvm:
        """Look what this machine has. Where KVM seems to work one machine is booted, once and remembered. Blocks a
        moment; raises OSError."""
        verdicts = folder / "verdicts"
        try:
            vmm = _vmm(environ)
            tools = {name: _tool(name, environ) for name in ("busybox", "mke2fs")}
            kernel = find_kernel(environ)
            cache = Cache(_cache_folder(environ), _kept(environ))
            modules = module_files(kernel, pci=vmm["pci"])
            accel = Acceleration("", "")
            if vmm["accelerated"]:
                accel = find_acceleration(cache, vmm, kernel, modules, tools["busybox"])
                vmm["arguments"].update(accel=accel.name)
        except (_MissingError, KernelError) as error:
            return cls({}, verdicts, str(error))
        verdicts.mkdir(mode=0o700, parents=True, exist_ok=True)
        if accel.why:
            logger.info("level microvm runs in software, many times slower: %s", accel.why)
        own = list(dict.fromkeys((sys.prefix, sys.base_prefix)))
        settings: dict[str, Any] = {
            "cache": {"folder": cache.folder, "kept": cache.kept},
            "system": {
                "prefixes": own,
                "added": [path for path in environ.get("FLAME_MICROVM_ADD", "").split(":") if path],
                "directory": environ.get("FLAME_MICROVM_ROOT", ""),
                "busybox": tools["busybox"],
                "python": environ.get("FLAME_MICROVM_PYTHON") or sys.executable,
            },
            "kernel": {"image": kernel.image, "modules": modules},
            "vmm": {name: vmm[name] for name in ("load", "path", "arguments")},
            "snapshots": cache.kept["snapshot"] > 0,
        }
        return cls(settings, verdicts, accel=accel.name)

    def wrap(self, program: Program, room: Room, limits: Limits, launch: Launch) -> Program:
        """The program, run in a virtual machine."""
        memory = limits.memory or (launch.resreq.memory if launch.resreq is not None else 0) or _DEFAULT_MEMORY
        verdict = str(self._verdicts / launch.executor_id)
        env = dict(program.env)
        # Who speaks the link gets the session's common data over it, when it enters the session.
        data = env.pop(COMMON_DATA, "") if _by_sdk(launch.application) else ""
        prefixes = self._settings["system"]["prefixes"]
        own = [] if room.root is not None or any(_FLAME.is_relative_to(each) for each in prefixes) else [_FLAME]
        doors = [str(folder / SOCKET) for folder in room.sockets]  # of one instance there is one at most
        spec = {
            **self._settings,
            "image": None if room.root is None else _image(room.root),
            "program": {
                "path": program.path,
                "argv": list(program.argv),
                "env": env,
                "cwd": room.cwd,
                "user": room.user if room.root is not None else USER,
            },
            "room": {
                "readable": [str(path) for path in (*own, *room.readable) if str(path) != data],
                "hidden": [*(str(path) for path in room.hidden), self._settings["cache"]["folder"]],
                "network": room.network,
                "listed": launch.application.network if room.proxy is not None else "",
                "proxy": str(room.proxy or ""),
            },
            "door": {"inside": self.door if doors else "", "outside": "".join(doors)},
            "limits": {"memory": memory, "pids": limits.pids, "disk": room.disk},
            "memory": _size(memory, (room.proxy is not None) + len(doors)),
            "processors": min(max(1, -(-limits.cpu_millis // 1000)), len(os.sched_getaffinity(0))),
            "snapshots": self._settings["snapshots"] and _alike(env, launch),
            "verdict": verdict,
        }
        text = json.dumps(spec)  # plain ASCII, whatever is in it
        parts = {f"FLAME_MICROVM_{n}": text[n * _PIECE : (n + 1) * _PIECE] for n in range(-(-len(text) // _PIECE))}
        parts["PATH"] = os.environ.get("PATH", os.defpath)
        parts.update((name, program.env[name]) for name in ("FLAME_INSTANCE_ID",) if name in program.env)
        argv = [sys.executable, "-I", "-S", str(_RUNNER)]
        return msgspec.structs.replace(
            program, path=sys.executable, argv=argv, env=parts, boxed=True, relays=True, verdict=verdict
        )

    def around(self, limits: Limits) -> Limits:
        """What its control group holds it to: what the machine has is held inside, and QEMU needs more than that."""
        memory = limits.memory and _size(limits.memory) + 2 * _BRIDGE + _OUTSIDE
        return msgspec.structs.replace(limits, memory=memory, pids=limits.pids and _OUTSIDE_PIDS)


class _MissingError(Exception):
    """Something that is needed is not there; the text says what."""


def _vmm(environ: Mapping[str, str]) -> dict[str, Any]:
    """What the runner loads: QEMU, or the plugin that FLAME_MICROVM_VMM names."""
    named = environ.get("FLAME_MICROVM_VMM")
    if named:
        found = [entry for entry in importlib.metadata.entry_points(group=GROUP) if entry.name == named]
        if not found:
            raise _MissingError(f"FLAME_MICROVM_VMM names {named!r}, and no installed package offers such a one")
        pci = bool(getattr(found[0].load(), "pci", False))
        return {"load": found[0].value, "path": sys.path, "arguments": {}, "pci": pci, "accelerated": False}
    if os.uname().machine != "x86_64":
        raise _MissingError(f"machines by QEMU are made on x86_64 only, not on {os.uname().machine}")
    arguments = {"program": _tool("qemu-system-x86_64", environ), "khz": _counter_khz()}
    return {"load": "flame.shims.microvm_qemu:Qemu", "path": [], "arguments": arguments, "pci": False,
            "accelerated": True}  # fmt: skip


def _tool(name: str, environ: Mapping[str, str]) -> str:
    found = shutil.which(name, path=environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin")
    if found is None:
        raise _MissingError(f"{name} is not installed: {_INSTALL}")
    return found


def _cache_folder(environ: Mapping[str, str]) -> str:
    """What all nodes of this user on this machine share."""
    folder = shared_folder("microvm", environ) or Path("/root/.cache/flame/microvm")
    return environ.get("FLAME_MICROVM_CACHE") or str(folder)


def _kept(environ: Mapping[str, str]) -> dict[str, int]:
    text = environ.get("FLAME_MICROVM_SNAPSHOTS", "")
    if not text:
        return _KEPT
    if not text.isdecimal():
        raise _MissingError(f"FLAME_MICROVM_SNAPSHOTS must be the number of snapshots to keep, not {text!r}")
    return {**_KEPT, "snapshot": int(text)}


def _counter_khz() -> int:
    """The rate of the time stamp counter, as the system knows it."""
    try:
        return int(Path("/sys/devices/system/cpu/cpu0/cpufreq/base_frequency").read_text())
    except (OSError, ValueError):
        pass
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("cpu MHz"):
            return round(float(line.partition(":")[2]) * 1000)
    return 2_000_000


def _by_sdk(application: types_pb2.ApplicationSpec) -> bool:
    """Whether its program is one of the SDK, of the node or of an image."""
    forms = [label for label in application.labels if label.startswith("stdio=")]
    return application.shim == types_pb2.Host or (application.shim == types_pb2.Container and not forms)


def _image(root: Path) -> dict[str, Any]:
    """The unpacked image that is the root of a machine, and the Python of its process 1."""
    python = image_python.find()
    places = {path.removeprefix(image_python.FOLDER): str(file) for path, file in python.files.items()}
    program = python.command[-1].removeprefix(image_python.FOLDER)
    return {"identity": root.name, "disk": str(disk_of(root)), "python": places, "program": program}


def _size(memory: int, bridges: int = 0) -> int:
    """Of a machine in which a program may use so much."""
    return -(-(memory + _INSIDE + bridges * _BRIDGE) // (2 * _MIB)) * 2 * _MIB


def _alike(env: Mapping[str, str], launch: Launch) -> bool:
    """Whether such instances are the same until they enter a session: a program of the SDK, without a place in a gang,
    and without a session's data before it is ready."""
    return (
        env.get("FLAME_INSTANCE_STDIO") == "framed"
        and COMMON_DATA not in env
        and alike(launch.application.labels, launch.application.arguments, gang=launch.context.HasField("gang"))
    )

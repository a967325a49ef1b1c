"""The kernel of virtual machines: where it is looked for, which of its modules are needed, and the first file system
that it starts with (modules, busybox, boot.sh, init.py). Only the standard library: the runner uses it."""

from __future__ import annotations

import glob
import gzip
import lzma
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from flame.shims.build_cache import Cache, digest, fingerprint, fingerprints

INITRD = "initrd.cpio"
# What a machine needs and kernels of distributions have as modules; what depends on what is read from them.
MODULES = ("virtio_mmio", "virtio_console", "virtio_blk", "overlay", "virtio_net", "virtio_rng")
_MODULES_OF_PCI = ("virtio_pci",)
_GUEST = os.path.join(os.path.dirname(os.path.abspath(__file__)), "guest")


class Kernel(NamedTuple):
    """A kernel's image and the folder of its modules, "" = it has none."""

    image: str
    modules: str


class KernelError(Exception):
    """A kernel can't be used; the text says why."""


def places(environ: Mapping[str, str]) -> list[str]:
    """Where a kernel is looked for: folders with boot/vmlinuz-VERSION and lib/modules/VERSION."""
    data = environ.get("XDG_DATA_HOME") or environ.get("HOME", "/root") + "/.local/share"
    return ["/var/lib/flame/microvm", data + "/flame/microvm", "/"]


def find_kernel(environ: Mapping[str, str]) -> Kernel:
    """The kernel that FLAME_MICROVM_KERNEL names, with modules in FLAME_MICROVM_MODULES or beside it, else the newest
    of the first place that has one. Raises KernelError."""
    named = environ.get("FLAME_MICROVM_KERNEL")
    if named:
        if not os.access(named, os.R_OK):
            raise KernelError(f"FLAME_MICROVM_KERNEL names {named}, which can't be read")
        return Kernel(named, environ.get("FLAME_MICROVM_MODULES") or _modules_beside(named))
    unreadable = ""
    for place in places(environ):
        for image in sorted(glob.glob(f"{place}/boot/vmlinuz-*".replace("//", "/")), key=_version, reverse=True):
            if os.access(image, os.R_OK):
                return Kernel(image, _modules_beside(image))
            unreadable = f", and {image} can't be read"
    raise KernelError(
        f"no kernel for virtual machines was found in {', '.join(places(environ))}{unreadable}: unpack a package such "
        "as linux-image-cloud-amd64 there, or set FLAME_MICROVM_KERNEL"
    )


def initrd(cache: Cache, files: Sequence[str], busybox: str) -> tuple[str, int]:
    """The key of the first file system, with these files of modules, and its own file, open for reading. Raises
    KernelError, OSError."""
    key = digest([fingerprint(path) for path in files], fingerprint(busybox), fingerprints(_GUEST))

    def make(folder: str) -> None:
        modules = {_name_of(path): unpacked(path) for path in files}
        with open(busybox, "rb") as file:
            shell = file.read()
        with open(f"{_GUEST}/boot.sh", "rb") as file:
            boot = file.read()
        archive = Archive()
        for name in ("bin", "proc", "sys", "dev", "root", "modules", "guest", "guest/flame", "guest/flame/shims",
                     "guest/flame/shims/guest"):  # fmt: skip
            archive.folder(name)
        archive.file("init", boot, 0o755)
        archive.file("bin/busybox", shell, 0o755)
        for name, data in modules.items():
            archive.file(f"modules/{name}.ko", data)
        archive.file("modules/order", "".join(f"{name}.ko\n" for name in modules).encode())
        for path in sorted(glob.glob(f"{_GUEST}/*.py")):
            with open(path, "rb") as file:
                archive.file(f"guest/flame/shims/guest/{os.path.basename(path)}", file.read())
        with open(f"{folder}/{INITRD}", "wb") as file:
            file.write(archive.finished())

    return key, cache.make("initrd", key, [INITRD], make)[0]


def module_files(kernel: Kernel, *, pci: bool) -> list[str]:
    """The files of the modules that a machine needs and of those that these need, in the order of their loading.
    What is built into the kernel, or what there is not, has none. Raises KernelError."""
    if not kernel.modules:
        return []
    files: dict[str, str] = {}
    for folder, _, names in os.walk(kernel.modules):
        for name in names:
            if ".ko" in name:
                files.setdefault(_name_of(name), f"{folder}/{name}")
    ordered: list[str] = []

    def load(name: str) -> None:
        path = files.get(name)
        if path is None or path in ordered:
            return
        for needed in needs(unpacked(path)):
            load(needed)
        ordered.append(path)

    for name in (*_MODULES_OF_PCI, *MODULES) if pci else MODULES:
        load(name)
    return ordered


def needs(module: bytes) -> list[str]:
    """The modules that this one names as its dependencies."""
    begin = module.find(b"\0depends=")
    if begin < 0:
        return []
    text = module[begin + len(b"\0depends=") : module.index(b"\0", begin + 1)].decode()
    return [name.replace("-", "_") for name in text.split(",") if name]


def unpacked(path: str) -> bytes:
    """A module as it is loaded. Raises KernelError."""
    with open(path, "rb") as file:
        data = file.read()
    if path.endswith(".xz"):
        return lzma.decompress(data)
    if path.endswith(".gz"):
        return gzip.decompress(data)
    if path.endswith(".zst"):
        zstd = shutil.which("zstd")
        if zstd is None:
            raise KernelError(f"the modules of the kernel are compressed with zstd ({path}), which is not installed")
        return subprocess.run([zstd, "-dcq", path], stdin=subprocess.DEVNULL, capture_output=True, check=True).stdout
    return data


class Archive:
    """A cpio archive in the form that kernels read (newc)."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._count = 0

    def folder(self, name: str) -> None:
        self._add(name, 0o040755, b"")

    def file(self, name: str, data: bytes, mode: int = 0o644) -> None:
        self._add(name, 0o100000 | mode, data)

    def finished(self) -> bytes:
        self._add("TRAILER!!!", 0, b"")
        return b"".join(self._parts)

    def _add(self, name: str, mode: int, data: bytes) -> None:
        self._count += 1
        fields = (self._count, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        self._parts += [head, bytes(-len(head) % 4), data, bytes(-len(data) % 4)]


def _modules_beside(image: str) -> str:
    """The modules of a kernel that lies in boot/vmlinuz-VERSION."""
    version = os.path.basename(image).partition("-")[2]
    folder = f"{os.path.dirname(os.path.dirname(os.path.abspath(image)))}/lib/modules/{version}".replace("//", "/")
    return folder if version and os.path.isdir(folder) else ""


def _version(image: str) -> list[tuple[int, str]]:
    """Sorts 6.10 behind 6.9."""
    words = os.path.basename(image).replace("-", ".").split(".")
    return [(int(word), "") if word.isdecimal() else (-1, word) for word in words]


def _name_of(path: str) -> str:
    return os.path.basename(path).partition(".ko")[0].replace("-", "_")

"""Whether machines can be made with KVM here. That /dev/kvm opens says little: a machine has to boot."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flame.shims.build_cache import Cache, digest, fingerprint
from flame.shims.microvm_kernel import Kernel, initrd
from flame.shims.microvm_machine import Machine, VmmError
from flame.shims.microvm_qemu import Qemu

KVM, TCG = "kvm", "tcg"
BOOTED = b"flame: booted"  # boot.sh says so
_BOOT_S = 10.0
_MEMORY = 128 * 1024**2
_RESULT = "result"


class Acceleration(NamedTuple):
    """How QEMU runs machines: `kvm` or `tcg`, and why it is not KVM."""

    name: str
    why: str


def find_acceleration(
    cache: Cache, vmm: dict[str, Any], kernel: Kernel, modules: Sequence[str], busybox: str, root: Path = Path("/")
) -> Acceleration:
    """What works on this machine. `root` is where /dev and /sys are, for tests. Blocks while a machine boots, the first
    time after a start of the system. Raises KernelError, OSError."""
    device = root / "dev/kvm"
    if not os.access(device, os.R_OK | os.W_OK):
        return Acceleration(TCG, "/dev/kvm can't be opened" if device.exists() else "there is no /dev/kvm")
    if (root / "sys/module/kvm_pvm").exists():
        return Acceleration(TCG, "the KVM of this machine (kvm_pvm) runs kernels that are made for it only")
    boot_id = (root / "proc/sys/kernel/random/boot_id").read_text()
    program = vmm["arguments"]["program"]
    key = digest(boot_id, fingerprint(program), fingerprint(kernel.image), os.getuid())

    def probe(folder: str) -> None:
        qemu = Qemu(**vmm["arguments"], accel=KVM)
        Path(folder, _RESULT).write_text(boots(qemu, kernel, initrd(cache, modules, busybox)[1]))

    [result] = cache.make("probe", key, [_RESULT], probe)
    with os.fdopen(result) as file:
        why = file.read()
    return Acceleration(TCG, why) if why else Acceleration(KVM, "")


def boots(qemu: Qemu, kernel: Kernel, first: int, seconds: float = _BOOT_S) -> str:
    """Boot a machine that only says that it has; why it can't, empty = it can."""
    ours, theirs = socket.socketpair()
    with ours:
        words = ("console=ttyS0", "quiet", "reboot=t", "panic=-1", "flame.probe")
        machine = Machine(_MEMORY, 1, kernel.image, first, words, (), {"console": theirs.fileno()})
        try:
            running = qemu.start(machine)
        except VmmError as error:
            return str(error)
        finally:
            theirs.close()
        try:
            deadline = time.monotonic() + seconds
            heard = b""
            while BOOTED not in heard:
                ours.settimeout(max(0.001, deadline - time.monotonic()))
                piece = ours.recv(4096)
                if not piece:
                    return "a machine that was started with KVM ended before it had booted"
                heard = (heard + piece)[-4096:]
        except TimeoutError:
            return f"a machine that was started with KVM did not boot within {seconds:g} s"
        finally:
            running.kill()
    return ""

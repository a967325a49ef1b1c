"""Virtual machines by QEMU: its machine type `microvm`, with KVM or in software. Only the standard library: the runner
uses it."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
from collections.abc import Generator
from typing import Any

from flame.shims.build_cache import digest, fingerprint
from flame.shims.microvm_machine import Machine, Running, Template, VmmError

_ANSWER_S = 20.0  # for one command of QEMU's monitor; a state is a few hundred KiB
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)
# A guest that breaks out into QEMU can start no program and gain no privilege.
_SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
_TRANSLATED = 64  # MiB for code that software emulation has translated


class Qemu:
    """`accel` is `kvm` or `tcg`, `khz` the rate of this machine's time stamp counter."""

    pci = False
    _type = "microvm,acpi=on,rtc=on,isa-serial=on,pit=on,pic=off"

    def __init__(self, program: str, accel: str, khz: int) -> None:
        self._program = program
        self._accel = accel
        self._khz = khz

    def identity(self) -> str:
        return digest(fingerprint(self._program), self._type, self._accel, self._khz)

    def start(self, machine: Machine) -> Running:
        return self._run(machine, [], None, ())

    def start_template(self, machine: Machine, template: Template) -> Running:
        running = self._run(machine, self._memory(machine, template, shared=True), template, ())
        with _or_killed(running):
            running.command("migrate-set-capabilities", capabilities=_CAPABILITIES)
        return running

    def restore(self, machine: Machine, template: Template) -> Running:
        # Mapped privately: what the copy writes is its own, and nothing is read before it is touched.
        running = self._run(machine, self._memory(machine, template, shared=False), template, ("-incoming", "defer"))
        with _or_killed(running):
            running.command("migrate-set-capabilities", capabilities=_CAPABILITIES)
            running.command("migrate-incoming", uri=f"fd:{template.state}")
            running.wait_until_moved()
            running.command("cont")  # it was stopped when it was saved
        return running

    def _run(
        self, machine: Machine, memory: list[str], template: Template | None, more: tuple[str, ...]
    ) -> QemuMachine:
        ours, theirs = socket.socketpair()
        with theirs:
            command = [self._program, *self._arguments(machine, memory, theirs.fileno()), *more]
            passed = [theirs.fileno(), machine.initrd, *machine.disks, *machine.ports.values(), *(template or ())]
            pid = _spawn(command, passed)
        running = QemuMachine(pid, ours, template)
        with _or_killed(running):
            running.command("qmp_capabilities")
        return running

    def _arguments(self, machine: Machine, memory: list[str], monitor: int) -> list[str]:
        bus = "pci" if self.pci else "device"
        found = ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-sandbox", _SANDBOX]
        found += ["-M", self._type + (",memory-backend=memory" if memory else "")]
        found += ["-accel", f"tcg,thread=multi,tb-size={_TRANSLATED}" if self._accel == "tcg" else self._accel]
        found += ["-cpu", "max" if self._accel == "tcg" else "host", "-smp", str(machine.processors)]
        found += ["-m", f"{machine.memory // 1024**2}M", *memory, "-global", "virtio-mmio.force-legacy=false"]
        found += ["-kernel", machine.kernel, "-initrd", _file(machine.initrd)]
        found += ["-append", " ".join((*machine.words, *self._words()))]
        found += ["-chardev", f"socket,id=monitor,fd={monitor}", "-mon", "chardev=monitor,mode=control"]
        for number, descriptor in enumerate(machine.disks):
            file = f"driver=file,filename={_file(descriptor)},node-name=file{number},read-only=on,auto-read-only=off"
            raw = f"driver=raw,file=file{number},node-name=disk{number},read-only=on,auto-read-only=off"
            found += ["-blockdev", file, "-blockdev", raw, "-device", f"virtio-blk-{bus},drive=disk{number}"]
        found += ["-device", f"virtio-serial-{bus}"]
        for name, descriptor in machine.ports.items():
            found += ["-chardev", f"socket,id={name},fd={descriptor}"]
            found += ["-serial", f"chardev:{name}"] if name == "console" else [
                "-device", f"virtserialport,chardev={name},name=flame.{name}"]  # fmt: skip
        if machine.network:
            found += ["-netdev", "user,id=network", "-device", f"virtio-net-{bus},netdev=network"]
        return found

    def _words(self) -> list[str]:
        """Without being told, a guest in software waits for ever for a clock to measure its counter with."""
        if self._accel != "tcg" or self.pci:
            return []
        return [f"tsc_early_khz={self._khz}", f"lpj={self._khz * 4}", "no_timer_check"]

    @staticmethod
    def _memory(machine: Machine, template: Template, *, shared: bool) -> list[str]:
        options = f"id=memory,size={machine.memory},mem-path={_file(template.memory)},share={'on' if shared else 'off'}"
        return ["-object", f"memory-backend-file,{options}"]


class QemuQ35(Qemu):
    """The machine type of an ordinary PC: slower to start, for kernels that do not run on the small one."""

    pci = True
    _type = "q35,smm=off"


# The memory is a file that both map, which is not copied; and QEMU says when it is done with the rest.
_CAPABILITIES = [{"capability": name, "state": True} for name in ("x-ignore-shared", "events")]


class QemuMachine:
    """One process of QEMU, and its monitor."""

    def __init__(self, pid: int, monitor: socket.socket, template: Template | None) -> None:
        self.pid = pid
        self._monitor = monitor
        self._monitor.settimeout(_ANSWER_S)
        self._template = template
        self._lines = monitor.makefile("rb")
        self._moved = ""  # how far the state is

    def save(self) -> None:
        assert self._template is not None
        self.command("stop")
        self.command("getfd", self._template.state, fdname="state")
        self.command("migrate", uri="fd:state")
        self.wait_until_moved()

    def kill(self) -> None:
        try:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass
        self._lines.close()
        self._monitor.close()

    def command(self, name: str, descriptor: int | None = None, **arguments: Any) -> Any:
        """The answer of QEMU's monitor, which gets the descriptor with it. Raises VmmError."""
        request = {"execute": name, **({"arguments": arguments} if arguments else {})}
        try:
            descriptors = [] if descriptor is None else [descriptor]
            socket.send_fds(self._monitor, [json.dumps(request).encode() + b"\n"], descriptors)
        except OSError:
            pass  # it has ended: the next line says so
        while True:
            message = self._next()
            if "return" in message:
                return message["return"]
            if "error" in message:
                raise VmmError(f"QEMU refuses {name}: {message['error'].get('desc', message['error'])}")

    def wait_until_moved(self) -> None:
        """Until the state has been written or read. Raises VmmError."""
        while self._moved not in ("completed", "failed", "cancelled"):
            self._next()
        if self._moved != "completed":
            raise VmmError(f"QEMU can't move the machine's state: {self._moved}")

    def _next(self) -> dict[str, Any]:
        try:
            line = self._lines.readline()
        except ConnectionError:
            line = b""
        except OSError as error:
            raise VmmError(f"QEMU does not answer: {error}") from error
        if not line:
            raise VmmError("QEMU has ended, and says why on its stderr")
        message: dict[str, Any] = json.loads(line)
        if message.get("event") == "MIGRATION":
            self._moved = message["data"]["status"]
        return message


@contextlib.contextmanager
def _or_killed(running: QemuMachine) -> Generator[None]:
    """A machine that could not be brought so far does not stay."""
    try:
        yield
    except BaseException:
        running.kill()
        raise


def _spawn(command: list[str], passed: list[int]) -> int:
    """Start a program that the kernel ends together with this one. Its stdout is stderr. Raises OSError."""
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(127)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the runner passes it on to the program inside
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 0)
        os.dup2(2, 1)
        for descriptor in passed:
            os.set_inheritable(descriptor, True)
        # The keeper knows by the id whose process this is.
        kept = {name: os.environ[name] for name in ("FLAME_INSTANCE_ID",) if name in os.environ}
        os.execve(command[0], command, {"PATH": os.defpath, **kept})
    except BaseException as error:
        os.write(2, f"flame: can't start {command[0]}: {error}\n".encode())
    os._exit(127)


def _file(descriptor: int) -> str:
    return f"/dev/fd/{descriptor}"

"""The seam between the runner and what makes virtual machines: QEMU (microvm_qemu.py), or a plugin of the entry point
group `flame.vmms`. Only the standard library: the runner uses it."""

from __future__ import annotations

from typing import NamedTuple, Protocol


class VmmError(Exception):
    """A virtual machine can't be started, saved or restored; the text says why."""


class Machine(NamedTuple):
    """What a machine has. All numbers but the first two are descriptors of this process, which stay the caller's.

    `words` is the kernel's command line, to which a VMM adds what it needs. The `disks` are read-only. `ports` are
    streams between the two worlds, by name: each a connected socket, whose other end is the caller's; that of the name
    `console` is a serial line. `network`: one that reaches what the node reaches.
    """

    memory: int  # bytes
    processors: int
    kernel: str
    initrd: int
    words: tuple[str, ...]
    disks: tuple[int, ...]
    ports: dict[str, int]
    network: bool = False


class Template(NamedTuple):
    """Descriptors of the two files of a snapshot: the machine's memory, of full size, and the state of its devices."""

    memory: int
    state: int


class Running(Protocol):
    """A machine that runs. It ends with this process."""

    pid: int

    def save(self) -> None:
        """Stop it, and write the state to the template that it was started to become. Raises VmmError."""
        ...

    def kill(self) -> None:
        """End it at once; returns when it is gone."""
        ...


class Vmm(Protocol):
    """Makes virtual machines. `pci`: whether its devices are found on a PCI bus."""

    pci: bool

    def identity(self) -> str:
        """Changes with everything that could make a snapshot of one unusable for another."""
        ...

    def start(self, machine: Machine) -> Running:
        """Start a machine. Raises VmmError."""
        ...

    def start_template(self, machine: Machine, template: Template) -> Running:
        """Start a machine of which a snapshot will be taken. Raises VmmError."""
        ...

    def restore(self, machine: Machine, template: Template) -> Running:
        """Start a copy of a saved machine, which goes on where that was stopped; the template stays as it is, and
        several run at once. Raises VmmError."""
        ...

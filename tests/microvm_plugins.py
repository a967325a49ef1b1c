"""Further makers of virtual machines, as plugins would bring them. The runner loads this file: only the standard
library."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from typing import Any

from flame.shims.guest.multiplex import DATA, FRAME, OPEN, START
from flame.shims.microvm_machine import Machine, Running, Template, VmmError
from flame.shims.microvm_qemu import QemuQ35


class Pc(QemuQ35):
    """QEMU's ordinary PC, in software."""

    def __init__(self) -> None:
        super().__init__("/usr/bin/qemu-system-x86_64", "tcg", 0)


class Puppet:
    """No machine at all: a process that plays process 1 of one. FLAME_TEST_PUPPET of the program says how."""

    pci = False

    def identity(self) -> str:
        return "puppet"

    def start(self, machine: Machine) -> Running:
        parent = os.getpid()
        pid = os.fork()
        if not pid:
            try:
                play({name: socket.socket(fileno=end) for name, end in machine.ports.items()}, parent)
            finally:
                os._exit(0)
        return PuppetMachine(pid)

    def start_template(self, machine: Machine, template: Template) -> Running:
        return self.start(machine)

    def restore(self, machine: Machine, template: Template) -> Running:
        raise VmmError("a puppet can't be restored")


class PuppetMachine:
    def __init__(self, pid: int) -> None:
        self.pid = pid

    def save(self) -> None:
        raise VmmError("a puppet can't be saved")

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


LIES: dict[str, bytes] = {
    "garbage": b"\xff\xfe\x00\n",
    "no object": b"[]\n",
    "no event": b"{}\n",
    "an event that nobody waits for": b'{"event": "prepared"}\n',
    "a status that is none": b'{"event": "exited", "status": "0"}\n',
    "a status out of range": b'{"event": "exited", "status": 256}\n',
    "less than nothing": b'{"event": "exited", "link": -1}\n',
    "a line without end": b"x" * 100_000,
    "a flood": b'{"event": "exited"}\n' * 100_000,
}


NETWORK_LIES: dict[str, bytes] = {
    "garbage on its way out": b"\xff" * 1000,
    "connections without end": b"".join(FRAME.pack(OPEN, number, 0) for number in range(1, 10_000)),
    "bytes for a connection that there is not": FRAME.pack(DATA, 7, 1) + b"x",
}
DOOR_LIES: dict[str, bytes] = {
    "garbage on the way in": b"\xff" * 1000,
    "that it opens a connection": FRAME.pack(OPEN, 1, 0),
    "an answer to nobody": FRAME.pack(START, 0, 0) + FRAME.pack(DATA, 1, 1) + b"x",
}


def play(ports: dict[str, socket.socket], parent: int) -> None:
    control = ports["control"]
    lines = control.makefile("rb")
    start: dict[str, Any] = json.loads(lines.readline())
    role = start["program"]["env"]["FLAME_TEST_PUPPET"]
    if role in LIES:
        control.sendall(LIES[role])
        lines.read()
    elif role in NETWORK_LIES:
        ports["network"].sendall(NETWORK_LIES[role])
        lines.read()
    elif role in DOOR_LIES:
        ports["door"].sendall(DOOR_LIES[role])
        lines.read()
    elif role == "dies":
        ports["console"].sendall(b"no more\n")
        sys.exit()
    elif role == "hides":
        # It says that there is more than it will ever send.
        control.sendall(b'{"event": "exited", "status": 4, "link": 1000000}\n')
    elif role == "answers":
        ended = json.loads(lines.readline())
        words = ports["link"].recv(ended["after"], socket.MSG_WAITALL)
        ports["link"].sendall(words.upper())
        ports["log"].sendall(b"done\n")
        said = {"event": "exited", "status": 3, "link": len(words), "log": 5}
        control.sendall(json.dumps(said).encode() + b"\n")
        lines.read()

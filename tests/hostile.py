"""Instances that speak the link without our SDK, and not as they should, at every level of isolation.

In a virtual machine an attack runs in `on_session_enter` of a service that has greeted its node in the ordinary way: so
machines need not boot one by one, all are copies of one.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flame.proto import types_pb2
from flame.shims.levels import find_levels
from microvms import DISK, LIMITS
from scripted_manager import Node
from untrusted import SERVICE, require_sandboxes

LEVELS = ("none", "process", "gvisor", "microvm")
WITH_SOCKETS = LEVELS[:3]  # where a socket of the node reaches inside

FRAMES = """
import os, socket, stat, struct, sys, time
from flame.proto import link_pb2 as L, types_pb2 as T
def frame(kind, message=b"", channel=0):
    body = message if isinstance(message, bytes) else message.SerializeToString()
    return struct.pack("<IBBHI", len(body), kind, 0, 0, channel) + body
def read(size):
    data = b""
    while len(data) < size:
        data += sock.recv(size - len(data)) or sys.exit("the link ended")
    return data
def receive():
    length, kind, *_ = struct.unpack("<IBBHI", read(12))
    return kind, read(length)
def tell(text):
    print(text, flush=True)
    time.sleep(3600)
"""
_BY_SOCKET = """
def connect():
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(os.environ["FLAME_INSTANCE_LINK"])
    return sock
def enter(**result):
    known = dict(version=1, role="instance", id=os.environ["FLAME_EXECUTOR_ID"])
    sock.sendall(frame(L.HELLO, L.Hello(**known, token=os.environ["FLAME_INSTANCE_TOKEN"])))
    receive()
    receive()
    sock.sendall(frame(L.ENTERED, T.Result(**result)))
"""
_IN_A_SESSION = """
def connect():
    for number in range(3, 64):
        try:
            if stat.S_ISSOCK(os.fstat(number).st_mode):
                return socket.socket(fileno=number)
        except OSError:
            pass
def enter(**result):
    sock.sendall(frame(L.ENTERED, T.Result(**result)))
"""
# Does what it is told to when it enters its session, and what its tasks tell it.
_ACCOMPLICE = SERVICE.replace(
    "class Untrusted(FlameService):\n",
    "class Untrusted(FlameService):\n"
    "        def on_session_enter(self, context):\n"
    "            exec((context.common_data() or b'').decode(), {})\n",
)


async def begin(
    node: Node,
    accomplice: Path,
    channel: int,
    level: str,
    network: str = "",
    memory: int = LIMITS.memory,
    **limits: int,
) -> None:
    """Start an executor that runs what its tasks say (`untrusted.ask`); wait until it is bound. `memory` is its limit,
    except in a virtual machine."""
    if level == "microvm":
        begin_machine(node, accomplice, channel, network=network, limits=limits)
    else:
        held = types_pb2.Limits(memory=memory, **limits)
        node.start(channel, SERVICE, isolation=level, network=network, limits=held)
    await node.manager.bound(channel)


def prepared(folder: Path) -> Path:
    """The program that virtual machines are made for, in this folder: they are alike if it is one file. What the levels
    need has to be there: `make test` installs it."""
    file = folder / "accomplice.py"
    if not file.exists():
        require_sandboxes(folder / "process")
        for level in find_levels(folder, names=LEVELS[2:]):
            assert level.missing == ""
        file.write_text("import os, sys, time\nfrom flame.service import *\n" + _ACCOMPLICE.replace("\n    ", "\n"))
    return file


def attack(node: Node, accomplice: Path, channel: int, level: str, source: str, **options: Any) -> None:
    """Start an executor whose instance does this, with `connect()`, `enter(**result)`, `frame(kind, body, channel)`,
    `receive()` and `tell(line)` at hand; what connect() gives it calls `sock`."""
    if level == "microvm":
        begin_machine(node, accomplice, channel, (FRAMES + _IN_A_SESSION + source).encode(), **options)
    else:
        file = node.folder / f"attack{channel}.py"
        file.write_text(FRAMES + _BY_SOCKET + source)
        node.manager.start(channel, sys.executable, str(file), isolation=level, **options)


def begin_machine(
    node: Node,
    accomplice: Path,
    channel: int,
    source: bytes = b"",
    *,
    network: str = "",
    limits: Mapping[str, int] | None = None,
    **options: Any,
) -> None:
    """Start an executor in a virtual machine that runs this when it enters its session."""
    held = types_pb2.Limits(memory=LIMITS.memory, pids=LIMITS.pids, disk=DISK, **(limits or {}))
    node.manager.start(
        channel,
        sys.executable,
        str(accomplice),
        isolation="microvm",
        common_data=source,
        start_timeout_ms=110_000,
        limits=held,
        network=network,
        **options,
    )

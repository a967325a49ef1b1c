"""An instance that runs whatever code it is told to, as code that nobody reviewed would be run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

import flame
from flame.proto import types_pb2
from flame.shims.isolation_sandbox import Sandboxes
from scripted_manager import Node

MIB = 1024**2
# Runs what it is told to, as untrusted code would be run; `answer` is what comes back.
SERVICE = """
    import ctypes, errno, json, signal, socket, subprocess, threading
    class Untrusted(FlameService):
        def on_task_invoke(self, context):
            names = dict(globals())
            try:
                exec(context.input.decode(), names)
            except OSError as error:
                return json.dumps({"error": errno.errorcode.get(error.errno, str(error))}).encode()
            return json.dumps(names.get("answer")).encode()
    run(Untrusted())
"""


def require_sandboxes(folder: Path) -> None:
    """bubblewrap has to be there: `make test` installs it. A kernel may still forbid what it needs."""
    missing = Sandboxes.find(folder).missing
    assert "not installed" not in missing
    if missing:
        pytest.skip(f"this kernel forbids user namespaces: {missing}")


def require_level(connection: flame.Connection, level: str) -> None:
    """The cluster's one node has this level: `make test` installs what it needs, where it can be had."""
    if level == "microvm" and os.uname().machine != "x86_64":
        pytest.skip("level microvm is tested on x86_64 only")
    (node,) = connection.list_nodes()
    assert node.labels[f"flame.isolation.{level}"] == "yes", "its executor manager says why"


async def begin(node: Node, channel: int, level: str, **limits: int) -> None:
    """Start an executor of this level, and wait until it is bound."""
    spec: dict[str, Any] = {"isolation": level}
    if limits:
        spec["limits"] = types_pb2.Limits(**limits)
    node.start(channel, SERVICE, **spec)
    await node.manager.bound(channel)


async def ask(node: Node, channel: int, source: str) -> Any:
    """What this code answers when the instance runs it; {"error": NAME} when the system refused."""
    [answer] = await node.manager.answered(channel, node.manager.run(channel, source.encode()))
    assert isinstance(answer, bytes), answer
    return json.loads(answer)


def named(text: str) -> list[int]:
    """The processes of this machine with this text in their command line."""
    found: list[int] = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdecimal() and text.encode() in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def control_groups(beginning: str) -> list[Path]:
    """Those whose name begins so. Others of this machine may come and go meanwhile."""
    return [
        Path(folder, name)
        for folder, names, _ in os.walk("/sys/fs/cgroup")
        for name in names
        if name.startswith(beginning)
    ]


def throttled(group: str) -> int:
    """How often the processes of this control group had to wait because they had used up their time."""
    [file] = [file for folder in control_groups(group) if (file := folder / "cpu.stat").exists()]
    return int(dict(line.split() for line in file.read_text().splitlines())["nr_throttled"])

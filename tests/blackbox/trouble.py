"""What the failure tests share: a registered `trouble` service and short words for its tasks."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flame
from cluster import PATIENCE, Cluster

SERVICE = Path(__file__).parent / "services" / "trouble.py"


def ask(what: str = "echo", **more: Any) -> bytes:
    """The input of one task."""
    return json.dumps({"do": what, **more}).encode()


def register(connection: flame.Connection, name: str = "trouble", **attributes: Any) -> None:
    """Register the service under this name."""
    environment = attributes.pop("environments", {})
    connection.register_application(
        name,
        flame.ApplicationAttributes(
            command=sys.executable, arguments=[str(SERVICE)], environments=environment, **attributes
        ),
    )


def connect(cluster: Cluster) -> flame.Connection:
    """A client of the cluster."""
    return flame.connect(cluster.endpoint)


def echoes(count: int, start: int = 0) -> Iterator[bytes]:
    """Inputs that are answered with their number."""
    return (ask(n=number) for number in range(start, start + count))


def numbers(outputs: Any) -> list[int]:
    """The numbers that came back."""
    return [json.loads(output)["echo"] for output in outputs]


def until(condition: Any, what: str) -> None:
    """Wait for something that must come and that announces itself in no other way."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited {PATIENCE:g} s for {what}"
        time.sleep(0.02)


def instances(connection: flame.Connection, session_id: str) -> list[int]:
    """Process ids of the session's instances."""
    return [executor.pid for executor in connection.list_executors(session_id) if executor.pid]


def alive(pid: int) -> bool:
    """Whether the process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False

"""Sandboxes for tests: a cluster that can hold them, and short words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flame
from cluster import Cluster
from flame.client.synchronous import Connection
from untrusted import require_sandboxes

LEVELS = ("none", "process")


def cluster_for_sandboxes(folder: Path, **settings: Any) -> Cluster:
    """Room for four at a time; a node that can isolate."""
    require_sandboxes(folder)
    return Cluster(folder, capacity="cpu=4,mem=8g", **settings)


def create(connection: Connection, level: str = "process", **options: Any) -> flame.Sandbox:
    if level == "none":
        options.setdefault("network", "host")
    return flame.Sandbox.create(isolation=level, connection=connection, **options)

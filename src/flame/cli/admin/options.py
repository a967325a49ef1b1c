"""Options of several commands of flmadm."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def name_option(function: F) -> F:
    """Add --name, by default $FLAME_CLUSTER or `default`."""
    return click.option("--name", metavar="NAME", help="Of the cluster ($FLAME_CLUSTER, else default).")(function)


def cluster_name(name: str | None) -> str:
    """The cluster that is meant."""
    return name or os.environ.get("FLAME_CLUSTER") or "default"

"""The options that belong to every command: which cluster, how long to wait, how to print.

They may stand before or after the command's name; the later one counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from flame.cli.bounds import SECONDS

FORMATS = ("table", "wide", "json", "yaml", "name")
DEFAULT_TIMEOUT = 30.0

F = TypeVar("F", bound=Callable[..., Any])


@dataclass
class Settings:
    """What the user chose for this run. `timeout` in seconds, of one call to the cluster.

    `start`: start a local cluster when no cluster is configured and none runs.
    """

    config: Path | None = None
    context: str | None = None
    endpoint: str | None = None
    timeout: float = DEFAULT_TIMEOUT
    output: str = "table"
    start: bool = True


def _remember(ctx: click.Context, param: click.Parameter, value: object) -> None:
    if value is not None and param.name:
        setattr(ctx.ensure_object(Settings), param.name, value)


def _option(*names: str, **settings: Any) -> Callable[[F], F]:
    return click.option(*names, expose_value=False, callback=_remember, **settings)


def cluster_options(function: F) -> F:
    """Add --config, --context, --endpoint and --timeout."""
    return where_options(
        _option("--timeout", type=SECONDS, metavar="SECONDS", help="How long one call may take (30).")(function)
    )


def where_options(function: F) -> F:
    """Add --config, --context and --endpoint."""
    for option in (
        _option("--endpoint", metavar="URL", help="The cluster's address: http://HOST:PORT or unix:PATH."),
        _option("--context", metavar="NAME", help="The context of the settings file to use."),
        _option("--config", type=click.Path(path_type=Path), metavar="FILE", help="Settings (~/.flame/flame.yaml)."),
    ):
        function = option(function)
    return function


def output_option(function: F) -> F:
    """Add -o/--output."""
    return _option("-o", "--output", type=click.Choice(FORMATS), help="How to print (table).")(function)


def all_options(function: F) -> F:
    """Add everything that every command of flmctl understands."""
    return cluster_options(output_option(function))


def settings_of(ctx: click.Context) -> Settings:
    """The choices made so far for this run."""
    return ctx.ensure_object(Settings)

"""The options that belong to every command: which cluster, how long to wait, how to print.

They may stand before or after the command's name; the later one counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

FORMATS = ("table", "wide", "json", "yaml", "name")
DEFAULT_TIMEOUT = 30.0

F = TypeVar("F", bound=Callable[..., Any])


@dataclass
class Settings:
    """What the user chose for this run. `timeout` in seconds, of one call to the cluster."""

    config: Path | None = None
    context: str | None = None
    endpoint: str | None = None
    timeout: float = DEFAULT_TIMEOUT
    output: str = "table"


def _remember(ctx: click.Context, param: click.Parameter, value: object) -> None:
    if value is not None and param.name:
        setattr(ctx.ensure_object(Settings), param.name, value)


def _option(*names: str, **settings: Any) -> Callable[[F], F]:
    return click.option(*names, expose_value=False, callback=_remember, **settings)


def cluster_options(function: F) -> F:
    """Add --config, --context, --endpoint and --timeout."""
    for option in (
        _option("--timeout", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS", help="Of one call (30)."),
        _option("--endpoint", metavar="URL", help="The cluster's address: http://HOST:PORT or unix:PATH."),
        _option("--context", metavar="NAME", help="The context of the settings file to use."),
        _option(
            "--config", type=click.Path(path_type=Path), metavar="FILE", help="Settings (default ~/.flame/flame.yaml)."
        ),
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


def session_option(*, required: bool = True, help_text: str = "The session.") -> Callable[[F], F]:
    """Add -s/--session ID."""
    return click.option("-s", "--session", "session_id", metavar="ID", required=required, help=help_text)

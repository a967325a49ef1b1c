"""Options of several tools for what they start: a session, its instances, a sandbox, a script. Each stands here once.

`otherwise` is what counts when the option is not given, in words for the help.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from flame.cli import completing
from flame.cli.bounds import SECONDS, whole
from flame.model.isolation import LEVELS
from flame.model.network import FORM

F = TypeVar("F", bound=Callable[..., Any])


def session_option(
    *,
    required: bool = True,
    help_text: str = "The session.",
    complete: completing.Complete = completing.sessions,
) -> Callable[[F], F]:
    """Add -s/--session ID. `complete`: which sessions the shell offers."""
    return click.option(
        "-s", "--session", "session_id", metavar="ID", required=required, help=help_text, shell_complete=complete
    )


def isolation_option(otherwise: str, default: str | None = None) -> Callable[[F], F]:
    """Add --isolation."""
    return click.option(
        "--isolation",
        type=click.Choice(LEVELS),
        default=default,
        help=f"How far it is kept from its node ({otherwise}).",
    )


def network_option(otherwise: str) -> Callable[[F], F]:
    """Add --network."""
    return click.option("--network", metavar=FORM, help=f"What it may reach ({otherwise}).")


def readable_option(function: F) -> F:
    """Add --readable-objects, as `readable_objects`."""
    return click.option(
        "--readable-objects",
        multiple=True,
        metavar="KEY",
        help="What it may read of the object cache besides, when it is isolated: APPLICATION/SESSION[/OBJECT] or"
        " APPLICATION/*; may be repeated.",
    )(function)


def limit_option(function: F) -> F:
    """Add --limit, as `limits`."""
    words = "What an instance may use: memory=256Mi, pids=64, cpu=0.5, disk=64Mi, wall=600, output=10Mi."
    return click.option("--limit", "limits", multiple=True, metavar="NAME=VALUE", help=words)(function)


def memory_option(function: F) -> F:
    """Add --memory."""
    return click.option("--memory", metavar="SIZE", help="Short for --limit memory=SIZE.")(function)


def limit_texts(limits: tuple[str, ...], memory: str | None) -> list[str]:
    """Of --limit and --memory, for `parse_limits`."""
    return [*([f"memory={memory}"] if memory else []), *limits]


def resreq_option(*short: str) -> Callable[[F], F]:
    """Add --resreq, and a `short` name for it."""
    return click.option(
        *short, "--resreq", metavar="TEXT", help="What one executor gets of its node, such as cpu=1,mem=2g,gpu=1."
    )


def priority_option(short: str) -> Callable[[F], F]:
    """Add --priority, and a `short` name for it."""
    return click.option(
        short, "--priority", type=whole(), metavar="N", default=0, help="Sessions with a larger one go first (0)."
    )


def tenant_option(function: F) -> F:
    """Add --tenant."""
    return click.option(
        "--tenant",
        metavar="NAME",
        default="",
        help="Whose share it uses (the tenant default).",
        shell_complete=completing.tenants,
    )(function)


def env_option(function: F) -> F:
    """Add -e/--env, as `env`."""
    return click.option(
        "-e",
        "--env",
        "env",
        multiple=True,
        metavar="NAME=VALUE",
        help="A variable of its environment; may be repeated.",
    )(function)


def cwd_option(otherwise: str) -> Callable[[F], F]:
    """Add --cwd."""
    return click.option("--cwd", metavar="FOLDER", help=f"The folder to run in ({otherwise}).")


def time_limit_option(function: F) -> F:
    """Add --time-limit."""
    return click.option("--time-limit", type=SECONDS, metavar="SECONDS", help="It is ended after that (never).")(
        function
    )


def patience_option(function: F) -> F:
    """Add --timeout, of the whole command."""
    return click.option("--timeout", type=SECONDS, metavar="SECONDS", help="Give up after that (never).")(function)


def start_timeout_option(function: F) -> F:
    """Add --timeout, of the start of a sandbox."""
    return click.option(
        "--timeout",
        type=SECONDS,
        default=60.0,
        metavar="SECONDS",
        help="Give up when it has not started after that (60).",
    )(function)


def common_data_option(*short: str) -> Callable[[F], F]:
    """Add --common-data, and a `short` name for it."""
    return click.option(
        *short, "--common-data", metavar="TEXT", help="Data that every instance gets when it enters the session."
    )


def label_option(function: F) -> F:
    """Add --label, as `labels`: what is made gets it."""
    return click.option(
        "--label", "labels", multiple=True, metavar="KEY=VALUE", help="A label of it; may be repeated."
    )(function)


def only_label_option(what: str) -> Callable[[F], F]:
    """Add --label, as `labels`: what is listed has it."""
    return click.option(
        "--label", "labels", multiple=True, metavar="KEY=VALUE", help=f"Only {what} with this label; may be repeated."
    )

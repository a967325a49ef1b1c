"""Names that the shell completes: asked from the cluster, within a second, and in silence when that fails.

Each function here is a `shell_complete` callback of click. No cluster is started for it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, TypeAlias

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from flame.cli.api import Api

Complete: TypeAlias = "Callable[[click.Context, click.Parameter, str], list[CompletionItem]]"

PATIENCE = 1.0  # seconds, for the connection and for the answer
MOST = 1000  # of one kind; who has more types a few letters more


def sessions(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Ids of sessions."""
    return _complete(ctx, incomplete, _sessions)


def open_sessions(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Ids of sessions that can be closed."""
    return _complete(ctx, incomplete, lambda api: _sessions(api, "open"))


def closed_sessions(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Ids of sessions that can be deleted."""
    return _complete(ctx, incomplete, lambda api: _sessions(api, "closed"))


def sandboxes(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Ids of sandboxes that are open."""
    from flame.cli.sandboxes import sandboxes

    return _complete(
        ctx, incomplete, lambda api: ((entry.metadata.id, entry.spec.isolation) for entry in sandboxes(api, {}))
    )


def applications(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of applications."""
    return _complete(
        ctx, incomplete, lambda api: ((app.metadata.name, app.spec.description) for app in api.applications())
    )


def tenants(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of tenants."""
    return _complete(
        ctx, incomplete, lambda api: ((entry.metadata.name, entry.spec.description) for entry in api.tenants())
    )


def nodes(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of nodes."""
    from flame.cli.objects.states import node_state

    return _complete(ctx, incomplete, lambda api: ((node.metadata.name, node_state(node)) for node in api.nodes()))


def executors(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Ids of executors."""
    return _complete(
        ctx,
        incomplete,
        lambda api: (
            (entry.metadata.id, f"{entry.status.session_id} on {entry.spec.node}") for entry in api.executors()
        ),
    )


def what_to_explain(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """`session` or `task`, then the id of a session."""
    from click.shell_completion import CompletionItem

    words = ctx.params.get("what") or ()
    if len(words) == 0:
        return [CompletionItem(word) for word in ("session", "task") if word.startswith(incomplete)]
    return open_sessions(ctx, param, incomplete) if len(words) == 1 else []


def _sessions(api: Api, state: str = "") -> Iterable[tuple[str, str]]:
    from flame.cli.objects.states import SESSION_STATES, session_state

    found = api.sessions([SESSION_STATES[state]] if state else [])
    return ((entry.metadata.id, f"{entry.spec.application}, {session_state(entry)}") for entry in islice(found, MOST))


def _complete(
    ctx: click.Context, incomplete: str, ask: Callable[[Api], Iterable[tuple[str, str]]]
) -> list[CompletionItem]:
    """Those that begin so, with a word on each where the shell shows it. Whatever goes wrong, there are none."""
    from click.shell_completion import CompletionItem

    from flame.cli.options import settings_of

    names: list[tuple[str, str]] = []
    # Somebody is typing: an error has no place on the screen now.
    with contextlib.suppress(Exception):
        from flame.cli.api import open_api

        with open_api(replace(settings_of(ctx), timeout=PATIENCE, start=False)) as api:
            names = sorted(ask(api))
    return [CompletionItem(name, help=text or None) for name, text in names if name.startswith(incomplete)]

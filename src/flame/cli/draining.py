"""Waiting until the executors of a node that drains are gone, also over a restart of the session manager."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from flame.cli.api import Api, open_api
from flame.cli.options import Settings
from flame.cli.progress import StatusLine
from flame.cli.times import span
from flame.model.errors import InvalidStateError, TimedOutError, UnavailableError
from flame.proto import types_pb2 as ty

_INTERVAL = 0.25  # seconds between two looks


def wait_until_empty(settings: Settings, name: str, generation: int, timeout: float | None) -> ty.Node:
    """The node when no executor holds a place on it any more, also because it is lost.

    `generation` is that of the session manager that was told to drain it: a later one has to hear from the node
    again first. Raises TimedOutError after `timeout` seconds, InvalidStateError when the node is no longer draining.
    """
    start = time.monotonic()
    settings = replace(settings, start=False)
    state = "draining"

    def pause(text: str, wait: Callable[[float], None]) -> None:
        nonlocal state
        state = text
        passed = time.monotonic() - start
        if timeout is not None and passed >= timeout:
            raise TimedOutError(
                f"node {name} is not drained after {timeout:g} s: {state}",
                remedy=f"it goes on draining; flmctl node view {name} shows it, flmctl node uncordon {name} ends it",
            )
        line.show(f"Node <{name}>: {state} ({span(passed)})")
        wait(_INTERVAL if timeout is None else min(_INTERVAL, timeout - passed))

    with StatusLine() as line:
        while True:
            try:
                with open_api(settings) as api:
                    return _watch(api, name, generation, pause)
            except UnavailableError:
                pause("the session manager is away", time.sleep)


def executors_text(count: int) -> str:
    """How many, in words."""
    return f"{count} executor{'' if count == 1 else 's'}"


def _watch(api: Api, name: str, generation: int, pause: Callable[[str, Callable[[float], None]], None]) -> ty.Node:
    while True:
        node = api.node(name)
        if not node.status.draining:
            raise InvalidStateError(f"node {name} is no longer draining: somebody changed that meanwhile")
        if node.status.executors:
            pause(f"{executors_text(node.status.executors)} left", api.sleep)
        elif node.status.state == ty.NodeState.Ready or api.cluster().generation == generation:
            return node
        else:
            pause("the session manager was restarted and waits for the node", api.sleep)

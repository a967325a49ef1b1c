"""How the methods of sandboxes are written: once, as generators of steps, for the synchronous and the asyncio client.

A generator yields steps; whoever runs it (`calling.py`) does each and sends back the answer, or throws what went wrong.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Generator, Sequence
from typing import Any, TypeVar, cast

import msgspec

from flame.sandbox.wire import Call, Done

T = TypeVar("T")


class Ask(msgspec.Struct, frozen=True):
    """Make a call and wait for its answer, of this type."""

    call: Call
    kind: type[Any]


class AskAll(msgspec.Struct, frozen=True):
    """Make these calls, all at once, and wait for all answers."""

    asks: list[Ask]


class Tell(msgspec.Struct, frozen=True):
    """Make a call and don't wait."""

    call: Call


class Wait(msgspec.Struct, frozen=True):
    """Wait for what a callback of the user returned."""

    made: Any


Step = Ask | AskAll | Tell | Wait
Steps = Generator[Step, Any, T]


def ask(call: Call, kind: type[T]) -> Steps[T]:
    """The answer to a call."""
    return (yield Ask(call, kind))


def do(call: Call) -> Steps[None]:
    """Make a call that answers nothing."""
    yield Ask(call, Done)


def ask_all(calls: Sequence[Call], kind: type[T]) -> Steps[list[T]]:
    """The answers to these calls."""
    return (yield AskAll([Ask(call, kind) for call in calls]))


def hand_over(callback: Callable[[T], object] | None, value: T) -> Steps[None]:
    """Call the user's function, which may be a coroutine's."""
    if callback is None:
        return
    made = callback(value)
    if inspect.isawaitable(made):
        yield Wait(cast("Awaitable[object]", made))

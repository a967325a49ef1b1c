"""A service with a state that moves into the process that waits: in order, once, and only if it had not begun."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from flame.client.background import loop_thread
from flame.client.futures import CancelledTaskError, Settled, TaskFuture, settle
from flame.model.errors import FlameError, TaskCancelledError
from flame.runner.failures import StateLostError
from flame.runner.futures import ObjectFuture
from flame.runner.host import Host

SECONDS = 30.0


class Session:
    """Calls that wait, and what becomes of them when it is closed: cancelled unless told otherwise."""

    def __init__(self, count: int) -> None:
        self.connection = SimpleNamespace(thread=loop_thread())
        self.lock = threading.Lock()
        self.thread_id = 0
        self.session_id = "s"
        self.outcomes: dict[int, Settled] = {}
        self.handed: list[TaskFuture] = []
        self.lane: Any = SimpleNamespace(looks_after=False, free=lambda result: None)
        self.waiting = {self.future(): b"%d" % number for number in range(count)}

    def future(self) -> ObjectFuture:
        return ObjectFuture(self, self.lane)  # type: ignore[arg-type]

    def hand_over(self, old: TaskFuture, new: TaskFuture) -> None:
        self.handed.append(new)

    def cancel(self, future: TaskFuture) -> None: ...

    def close(self, *, force: bool) -> None:
        assert force
        for number, stand_in in enumerate(self.handed):
            settle(self.lock, (stand_in,), (self.outcomes.get(number, CancelledTaskError("closed")),), plain=False)

    def host(self, answer: Callable[[bytes], bytes | FlameError]) -> Host:
        session: Any = self
        return Host(session, session, self.waiting, answer, StateLostError("gone"))


def outcomes(futures: list[ObjectFuture]) -> list[bytes | type]:
    """What the futures got, without the name of the state."""
    for future in futures:
        future.wait(SECONDS)
    return [one.outcome[20:] if isinstance(one.outcome, bytes) else type(one.outcome) for one in futures]


def test_calls_are_answered_in_their_order() -> None:
    seen: list[bytes] = []
    session = Session(3)
    host = session.host(lambda call: (seen.append(call), b"<%s>" % call)[1])
    later = session.future()
    host.submit(later, b"later")
    assert outcomes([*session.waiting, later]) == [b"<0>", b"<1>", b"<2>", b"<later>"]
    assert seen == [b"0", b"1", b"2", b"later"]
    names = {one.outcome[4:20] for one in session.waiting if isinstance(one.outcome, bytes)}
    assert len(names) == 1  # one state


def test_a_state_that_an_instance_had_is_lost() -> None:
    session = Session(3)
    session.outcomes[0] = b"FLRs" + bytes(16) + b"from there"
    host = session.host(lambda call: pytest.fail("it must not be answered"))
    later = session.future()
    host.submit(later, b"later")
    assert outcomes([*session.waiting, later]) == [b"from there", StateLostError, StateLostError, StateLostError]


def test_what_is_cancelled_or_closed_has_no_turn() -> None:
    begun, gate = threading.Event(), threading.Event()

    def answer(call: bytes) -> bytes:
        begun.set()
        gate.wait(SECONDS)
        return b"<%s>" % call

    session = Session(3)
    host = session.host(answer)
    first, second, third = session.waiting
    assert begun.wait(SECONDS)
    second.cancel()
    host.close()
    gate.set()
    assert outcomes([first, second, third]) == [b"<0>", CancelledTaskError, CancelledTaskError]
    assert issubclass(CancelledTaskError, TaskCancelledError)

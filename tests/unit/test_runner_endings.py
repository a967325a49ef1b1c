"""What is left open is closed once, by whoever comes first."""

from __future__ import annotations

import logging
import os
import threading
from functools import partial
from typing import Any

import pytest

from flame.model.errors import TimedOutError
from flame.runner.endings import Ending, _end_all


class Opened:
    """Something to close, and the connection that this needs."""

    def __init__(self, connected: bool = True, fault: Exception | None = None) -> None:
        self.connected = connected
        self.fault = fault
        self.story: list[str] = []
        self.closed = threading.Event()
        self.ending = Ending(self, self._close, lambda: self.story.append("waited"))  # type: ignore[arg-type]

    def _close(self) -> None:
        self.story.append("closed")
        self.closed.set()
        if self.fault is not None:
            raise self.fault


def test_whoever_comes_first_closes_it() -> None:
    one = Opened()
    one.ending.finish()
    one.ending.close()
    one.ending.dropped()
    _end_all()
    assert one.story == ["waited", "closed"]


def test_what_is_dropped_is_closed_after_its_calls() -> None:
    one = Opened()
    one.ending.dropped()
    assert one.closed.wait(30)
    assert one.story == ["waited", "closed"]


def test_the_end_of_the_program_waits_for_no_calls_and_closes_the_latest_first() -> None:
    order: list[str] = []
    cluster: Any = Opened(connected=True)
    for name in ("first", "second"):
        Ending(cluster, partial(order.append, name), partial(order.append, "waited"))
    _end_all()
    assert order == ["second", "first"]


def test_a_cluster_that_is_away_is_not_waited_for() -> None:
    one = Opened(connected=False)
    _end_all()
    assert one.story == []


@pytest.mark.parametrize("fault", [TimedOutError("no answer"), RuntimeError("no answer")])
def test_what_fails_then_is_logged(caplog: pytest.LogCaptureFixture, fault: Exception) -> None:
    first, second = Opened(), Opened(fault=fault)
    with caplog.at_level(logging.WARNING, "flame.runner"):
        _end_all()
    assert first.story == second.story == ["closed"]
    assert "can't be closed: no answer" in caplog.text


def test_a_forked_process_leaves_it_to_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Opened()
    parent: Any = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: parent + 1)
    _end_all()
    assert one.story == []

"""Which tasks are told to stop, and when an instance is given up."""

from __future__ import annotations

from flame.node.overruns import Overruns


def test_tasks_without_time_out_are_not_watched() -> None:
    overruns = Overruns(grace=2)
    overruns.given([1, 2], timeout_ms=0)
    assert not overruns.watching
    assert overruns.look([1], now=0) == ([], [])
    assert overruns.next_look() is None


def test_the_time_of_a_task_counts_from_when_it_is_among_the_running_ones() -> None:
    overruns = Overruns(grace=2)
    overruns.given([1, 2], timeout_ms=1000)
    assert overruns.look([1], now=10) == ([], [])
    assert overruns.next_look() == 11
    overruns.ended([1])
    assert overruns.look([2], now=10.9) == ([], [])
    assert overruns.next_look() == 11.9
    assert overruns.look([2], now=11.9) == ([2], [])
    assert overruns.sentence(2).reason == "task timed out after 1000 ms"
    assert overruns.sentence(2).timed_out


def test_a_task_that_ignores_its_time_out_is_hopeless_after_the_grace_time() -> None:
    overruns = Overruns(grace=2)
    overruns.given([1], timeout_ms=1000)
    overruns.look([1], now=0)
    assert overruns.look([1], now=1) == ([1], [])
    assert overruns.next_look() == 3
    assert overruns.look([1], now=2.9) == ([], [])
    assert overruns.look([1], now=3) == ([], [1])


def test_a_cancelled_task_gets_the_grace_time_from_when_it_runs() -> None:
    overruns = Overruns(grace=2)
    overruns.cancelled([1, 2], "not needed", now=0)
    assert overruns.look([1], now=0) == ([], [])
    overruns.ended([1])
    # Task 2 was queued behind it: an instance that is busy can't answer for it, and is not to blame.
    assert overruns.look([2], now=1.5) == ([], [])
    assert overruns.look([2], now=3.4) == ([], [])
    assert overruns.look([2], now=3.5) == ([], [2])
    assert not overruns.sentence(2).timed_out


def test_a_second_cancel_does_not_prolong_the_grace_time() -> None:
    overruns = Overruns(grace=2)
    overruns.cancelled([1], "first", now=0)
    overruns.look([1], now=0)
    overruns.cancelled([1], "second", now=1)
    assert overruns.look([1], now=2) == ([], [1])
    assert overruns.sentence(1).reason == "first"


def test_what_ended_is_forgotten() -> None:
    overruns = Overruns(grace=2)
    overruns.given([1], timeout_ms=10)
    overruns.cancelled([1], "", now=0)
    overruns.look([1], now=0)
    overruns.ended([1])
    assert not overruns.watching
    assert overruns.next_look() is None

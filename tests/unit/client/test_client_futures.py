"""TaskFuture keeps the contract of concurrent.futures, and can be awaited from any loop."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable
from typing import Any

import pytest

from flame.client.futures import CancelledTaskError, TaskFuture, settle
from flame.model.errors import FlameError, InvalidStateError, TaskCancelledError, TaskFailedError, TimedOutError


class Stream:
    """What a future needs; the test's thread is not the one that settles."""

    session_id = "s"

    def __init__(self, thread_id: int = 0) -> None:
        self.thread_id = thread_id
        self.lock = threading.Lock()
        self.cancelled: list[TaskFuture] = []

    def cancel(self, future: TaskFuture) -> None:
        self.cancelled.append(future)

    def timed_out(self, text: str) -> TimedOutError:
        return TimedOutError(text)


@pytest.fixture
def stream() -> Stream:
    return Stream()


def finish(future: TaskFuture, value: bytes | FlameError | None) -> None:
    settle(future._stream.lock, (future,), (value,), plain=not isinstance(value, FlameError))


def in_thread(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_a_result_can_be_taken_often(stream: Stream) -> None:
    future = TaskFuture(stream)
    assert not future.done()
    finish(future, b"out")
    assert future.done()
    assert future.result() == future.result(0) == b"out"
    assert future.exception() is None
    assert not future.cancelled()
    assert not future.cancel()
    assert repr(future) == "<TaskFuture s/? done>"


def test_none_is_a_result(stream: Stream) -> None:
    future = TaskFuture(stream)
    finish(future, None)
    assert future.result() is None


def test_a_failure_is_raised(stream: Stream) -> None:
    future = TaskFuture(stream)
    error = TaskFailedError("broken")
    finish(future, error)
    assert future.exception() is error
    with pytest.raises(TaskFailedError, match="broken"):
        future.result()
    assert not future.cancelled()


def test_a_cancelled_task_is_cancelled_in_the_words_of_both_worlds(stream: Stream) -> None:
    future = TaskFuture(stream)
    assert future.cancel()
    assert future.cancel()
    assert stream.cancelled == [future]
    assert not future.cancelled()  # asked for, not done
    finish(future, CancelledTaskError("stopped"))
    assert future.cancelled()
    with pytest.raises(TaskCancelledError):
        future.result()
    with pytest.raises(concurrent.futures.CancelledError):
        future.exception()


def test_waiting_has_a_limit(stream: Stream) -> None:
    future = TaskFuture(stream)
    with pytest.raises(TimedOutError, match=r"session s did not end within 0\.01 s"):
        future.result(0.01)
    with pytest.raises(TimeoutError):
        future.exception(0)


def test_a_waiting_thread_is_woken(stream: Stream) -> None:
    future = TaskFuture(stream)
    got: list[bytes | None] = []
    thread = in_thread(lambda: got.append(future.result()))
    finish(future, b"out")
    thread.join()
    assert got == [b"out"]


def test_waiting_in_the_thread_of_the_results_is_an_error_not_a_deadlock() -> None:
    future = TaskFuture(Stream(threading.get_ident()))
    with pytest.raises(InvalidStateError, match="wait for ever"):
        future.result()


def test_callbacks_run_once_and_their_faults_stay_theirs(stream: Stream, caplog: pytest.LogCaptureFixture) -> None:
    future = TaskFuture(stream)
    called: list[Any] = []
    future.add_done_callback(lambda _: 1 / 0)
    future.add_done_callback(called.append)
    finish(future, b"")
    future.add_done_callback(called.append)
    assert called == [future, future]
    assert "ZeroDivisionError" in caplog.text


def test_wait_and_as_completed_of_the_standard_library_accept_it(stream: Stream) -> None:
    futures = [TaskFuture(stream) for _ in range(4)]
    finish(futures[0], b"early")
    done, left = concurrent.futures.wait(futures, timeout=0.01)
    assert (done, left) == ({futures[0]}, set(futures[1:]))
    done, _ = concurrent.futures.wait(futures, return_when=concurrent.futures.FIRST_COMPLETED)
    assert done == {futures[0]}
    thread = in_thread(
        lambda: settle(
            stream.lock,
            futures[1:],
            (b"", TaskFailedError("x"), CancelledTaskError("y")),
            plain=False,
        )
    )
    assert set(concurrent.futures.as_completed(futures)) == set(futures)
    thread.join()
    done, _ = concurrent.futures.wait(futures, return_when=concurrent.futures.FIRST_EXCEPTION)
    assert done == set(futures)


def test_wait_counts_each_future_once_whoever_comes_first(stream: Stream) -> None:
    """The step to done and the look of `wait` race; a count that is off would end the wait too early or never."""
    for _ in range(200):
        futures = [TaskFuture(stream) for _ in range(20)]
        start = threading.Barrier(2)

        def settle_all(futures: list[TaskFuture] = futures, start: threading.Barrier = start) -> None:
            start.wait()
            for future in futures:
                settle(stream.lock, (future,), (b"",), plain=True)

        thread = in_thread(settle_all)
        start.wait()
        done, left = concurrent.futures.wait(futures)
        thread.join()
        assert not left
        assert len(done) == 20


def test_settle_skips_what_is_gone_and_counts_the_rest(stream: Stream) -> None:
    first, second = TaskFuture(stream), TaskFuture(stream)
    assert settle(stream.lock, (first, None, second), (b"1", b"2", b"3"), plain=True) == 2
    assert (first.result(), second.result()) == (b"1", b"3")


async def test_it_can_be_awaited_while_another_thread_settles_it(stream: Stream) -> None:
    futures = [TaskFuture(stream) for _ in range(3)]
    together = asyncio.gather(*futures, return_exceptions=True)
    await asyncio.sleep(0)
    error = TaskFailedError("no")
    thread = in_thread(lambda: settle(stream.lock, futures, (b"1", None, error), plain=False))
    assert await together == [b"1", None, error]
    thread.join()
    assert await futures[0] == b"1"
    assert await asyncio.wrap_future(futures[0]) == b"1"


async def test_it_can_be_awaited_in_the_thread_that_settles_it() -> None:
    stream = Stream(threading.get_ident())
    future = TaskFuture(stream)
    asyncio.get_running_loop().call_soon(finish, future, b"x")
    assert await future == b"x"


async def test_cancelling_who_awaits_cancels_the_task(stream: Stream) -> None:
    future = TaskFuture(stream)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(future, 0.01)
    assert stream.cancelled == [future]


async def test_a_cancelled_task_raises_its_own_error_when_awaited(stream: Stream) -> None:
    future = TaskFuture(stream)
    finish(future, CancelledTaskError("stopped"))
    with pytest.raises(TaskCancelledError):
        await future


def test_a_loop_that_is_closed_meanwhile_does_no_harm(stream: Stream) -> None:
    future = TaskFuture(stream)

    async def leave() -> None:
        waiting = asyncio.ensure_future(future)
        await asyncio.sleep(0)
        waiting.cancel()

    asyncio.run(leave())
    finish(future, b"x")
    assert future.result() == b"x"

"""A full quota of pending tasks: `map` waits for room, `submit` says it in its future."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

import flame
from flame.client.batches import Batch
from flame.client.gather import Gather
from flame.client.held import Held
from flame.model.errors import ExhaustedError, FlameError, InvalidStateError
from flame.proto import link_pb2


@pytest.fixture
async def remote(manager: Any, hold: Any) -> AsyncIterator[flame.aio.AsyncSession]:
    """A session whose tasks stay pending."""
    manager.service = lambda payload: hold
    async with await flame.aio.connect(str(manager.address)) as connection:
        yield await connection.create_session("app", session_id="s")


def pending(manager: Any) -> list[int]:
    return [task.id for task in manager.sessions["s"].tasks if task.state == 0]


def quota(manager: Any, most: int) -> Callable[[link_pb2.Submit], FlameError | None]:
    def refuse(submit: link_pb2.Submit) -> FlameError | None:
        more = len(submit.inputs)
        if len(pending(manager)) + more <= most:
            return None
        return ExhaustedError(f"at its quota of {most} pending", remedy="wait, or raise it", retryable=more <= most)

    return refuse


async def serve(manager: Any) -> None:
    """End what is pending, again and again; the output is the input."""
    while True:
        await manager.until(lambda: bool(pending(manager)))
        tasks = manager.sessions["s"].tasks
        manager.finish("s", {task_id: tasks[task_id - 1].payload for task_id in pending(manager)[:5]})
        await asyncio.sleep(0)


# --- decided ---------------------------------------------------------------------------------------------------------


def batch(count: int, base: int = 0, gather: Gather | None = None) -> Batch:
    body = link_pb2.Submit(inputs=[b"%d" % (base + index) for index in range(count)], absent=[count - 1])
    return Batch(1, count, count, (gather or Gather(lambda: None, 10), base), body.SerializeToString())


def inputs(made: Batch) -> list[bytes]:
    return list(link_pb2.Submit.FromString(made.body).inputs)


def test_a_batch_is_cut_in_two() -> None:
    whole = batch(5)
    rest = whole.cut(2)
    assert rest is not None
    assert (inputs(whole), inputs(rest)) == ([b"0", b"1"], [b"2", b"3", b"4"])
    assert [list(link_pb2.Submit.FromString(part.body).absent) for part in (whole, rest)] == [[], [2]]
    assert (whole.count, rest.count, whole.input_bytes + rest.input_bytes) == (2, 3, 5)
    assert isinstance(whole.owner, tuple)
    assert isinstance(rest.owner, tuple)
    assert (whole.owner[1], rest.owner[1]) == (0, 2)
    assert whole.cut(2) is None


def test_refused_tasks_go_again_in_smaller_batches_one_at_a_time() -> None:
    held = Held()
    full = ExhaustedError("full")
    held.hold(batch(8), full)
    held.add([batch(4, base=8)])
    first = held.take()
    assert first is not None
    assert first.count == 4
    assert held.take() is None  # until it is answered
    held.hold(first, full)
    assert held.pause == 0.1
    first = held.take()
    assert first is not None
    assert first.count == 2
    held.accepted(first)
    sizes: list[int] = []
    while (made := held.take()) is not None:
        sizes.append(made.count)
        held.accepted(made)
    assert sizes == [2, 4, 4]
    assert held.error is None
    assert held.take() is None


def test_only_a_map_waits_and_only_for_what_may_come() -> None:
    full = ExhaustedError("full")
    never = ExhaustedError("submit at most 3 at once", retryable=False)
    assert Held.bears(batch(8), full)
    assert Held.bears(batch(8), never)  # in pieces
    assert not Held.bears(batch(1), never)
    assert not Held.bears(batch(8), InvalidStateError("closed"))
    assert not Held.bears(Batch(1, 1, 0, [None], b""), full)


def test_what_nobody_wants_any_more_is_dropped() -> None:
    held = Held()
    gather = Gather(lambda: None, 10)
    held.hold(batch(8, gather=gather), ExhaustedError("full"))
    gather.closed = True
    assert held.take() is None
    assert (list(held.batches), held.error) == ([], None)


# --- through a connection --------------------------------------------------------------------------------------------


async def test_a_map_is_slowed_down_and_loses_nothing(remote: Any, manager: Any) -> None:
    manager.refuse = quota(manager, 7)
    serving = asyncio.create_task(serve(manager))
    wanted = [b"%d" % number for number in range(2000)]
    assert [output async for output in remote.map(wanted)] == wanted
    assert len(manager.sessions["s"].tasks) == 2000
    serving.cancel()


async def test_a_future_is_told_at_once_and_the_map_goes_on(remote: Any, manager: Any) -> None:
    manager.refuse = quota(manager, 2)
    results = remote.map([b"0", b"1", b"2", b"3"])
    first = asyncio.ensure_future(anext(results))
    await manager.until(lambda: len(pending(manager)) == 2)
    with pytest.raises(ExhaustedError, match="at its quota of 2 pending; wait, or raise it") as caught:
        await remote.submit(b"too many")
    assert caught.value.retryable
    serving = asyncio.create_task(serve(manager))
    assert [await first] + [output async for output in results] == [b"0", b"1", b"2", b"3"]
    assert await remote.submit(b"fits") == b"fits"
    serving.cancel()


async def test_futures_are_refused_one_by_one_although_they_leave_together(remote: Any, manager: Any) -> None:
    manager.refuse = quota(manager, 5)
    futures = [remote.submit(b"%d" % number) for number in range(20)]
    await manager.until(lambda: bool(pending(manager)))
    serving = asyncio.create_task(serve(manager))
    ended = await asyncio.gather(*futures, return_exceptions=True)
    serving.cancel()
    accepted = [output for output in ended if isinstance(output, bytes)]
    refused = [error for error in ended if isinstance(error, ExhaustedError)]
    assert len(accepted) + len(refused) == 20
    assert accepted[:5] == [b"0", b"1", b"2", b"3", b"4"]
    assert all(error.retryable for error in refused)
    assert remote.stream.idle


async def test_a_quota_of_nothing_ends_a_map(remote: Any, manager: Any) -> None:
    manager.refuse = quota(manager, 0)
    with pytest.raises(ExhaustedError, match="quota of 0"):
        [output async for output in remote.map([b"0", b"1", b"2"])]
    await remote.wait()


async def test_a_map_that_is_left_waits_for_no_room(remote: Any, manager: Any) -> None:
    manager.refuse = lambda submit: ExhaustedError("full")
    results = remote.map([b"0", b"1"])
    first = asyncio.ensure_future(anext(results))
    await manager.until(lambda: len(manager.frames) >= 4)  # refused and tried again
    first.cancel()
    await asyncio.wait({first})
    await results.aclose()
    await remote.wait()
    assert remote.stream.unfinished() == 0
    manager.refuse = lambda submit: None
    again = remote.submit(b"next")
    await manager.until(lambda: bool(pending(manager)))
    manager.finish("s", {1: b"next"})
    assert await again == b"next"


async def test_tasks_that_wait_for_room_fail_with_their_connection(remote: Any, manager: Any) -> None:
    manager.refuse = lambda submit: ExhaustedError("full")
    first = asyncio.ensure_future(anext(remote.map([b"0"])))
    await manager.until(lambda: len(manager.frames) >= 3)
    await remote.connection.close()
    with pytest.raises(InvalidStateError, match="closed"):
        await first


@pytest.mark.parametrize("seed", range(5))
async def test_breaks_while_tasks_wait_for_room_lose_and_double_nothing(remote: Any, manager: Any, seed: int) -> None:
    rng = random.Random(seed)
    limit = quota(manager, 50)
    manager.refuse = lambda submit: limit(submit) if rng.random() < 0.5 else None
    wanted = [b"%d" % number for number in range(1500)]

    async def disturb() -> None:
        while True:
            for _ in range(rng.randrange(1, 30)):
                manager.arrived.clear()
                await manager.arrived.wait()
            manager.accepting = rng.random() < 0.7
            if not manager.accepting:
                await asyncio.sleep(rng.random() / 100)  # what is sent now is made, and its acceptance is lost
                manager.accepting = True
            manager.drop()

    busy = [asyncio.create_task(serve(manager)), asyncio.create_task(disturb())]

    async def both() -> tuple[list[bytes], list[bytes]]:
        one = [output async for output in remote.map(wanted)]
        two = [output async for output in remote.map(wanted[:200], window=10)]
        return one, two

    assert await both() == (wanted, wanted[:200])
    assert len(manager.sessions["s"].tasks) == 1700
    for task in busy:
        task.cancel()

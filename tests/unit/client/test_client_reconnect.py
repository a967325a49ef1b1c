"""The connection breaks and comes back: tasks and calls see a pause, and nothing is done twice or lost."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest

import flame
from flame.link import Kind
from flame.model.errors import (
    AlreadyExistsError,
    InvalidStateError,
    NotFoundError,
    TaskCancelledError,
    TimedOutError,
    UnavailableError,
)
from flame.proto import link_pb2


@pytest.fixture
async def remote(manager: Any) -> AsyncIterator[flame.aio.AsyncSession]:
    async with await flame.aio.connect(str(manager.address)) as connection:
        yield await connection.create_session("app")


async def back(manager: Any) -> None:
    """Until the client is connected again."""
    await manager.until(lambda: bool(manager.links))


async def test_results_that_came_meanwhile_are_fetched(remote: Any, manager: Any, hold: Any) -> None:
    manager.service = lambda payload: hold
    futures = [remote.submit(b"%d" % number) for number in range(4)]
    await manager.until(lambda: len(manager.sessions[remote.id].tasks) == 4)
    manager.finish(remote.id, {2: b"before"})
    assert await futures[1] == b"before"
    manager.drop()
    manager.finish(remote.id, {1: b"meanwhile", 3: b"too"})
    assert [await futures[0], await futures[2]] == [b"meanwhile", b"too"]
    attach = [frame for frame in manager.frames if frame.kind == Kind.ATTACH][-1]
    ranges = link_pb2.Attach.FromString(attach.body).unresolved
    assert [(r.first, r.last) for r in ranges] == [(1, 1), (3, 4)]
    manager.finish(remote.id, {4: b"after"})
    assert await futures[3] == b"after"


async def test_what_was_not_accepted_is_sent_again_and_made_once(remote: Any, manager: Any, hold: Any) -> None:
    manager.service = lambda payload: hold
    manager.accepting = False  # the cluster makes the tasks, but its answer is lost
    futures = [remote.submit(b"%d" % number, priority=number) for number in range(3)]
    await manager.until(lambda: manager.count(Kind.SUBMIT) == 3)
    manager.accepting = True
    manager.drop()
    await manager.until(lambda: manager.count(Kind.ATTACH) == 2)
    manager.finish(remote.id, {1: b"a", 2: b"b", 3: b"c"})
    assert [await future for future in futures] == [b"a", b"b", b"c"]
    assert len(manager.sessions[remote.id].tasks) == 3


async def test_submissions_while_it_is_gone_leave_when_it_is_back(remote: Any, manager: Any) -> None:
    assert await remote.submit(b"first") == b"first"
    await manager.stop()
    futures = [remote.submit(b"%d" % number) for number in range(10)]
    cancelled = remote.submit(b"not wanted")
    cancelled.cancel()
    await asyncio.sleep(0)
    await manager.start()
    assert [await future for future in futures] == [b"%d" % number for number in range(10)]
    with pytest.raises(TaskCancelledError):
        await cancelled
    assert len(manager.sessions[remote.id].tasks) == 11


async def test_a_cancel_that_was_lost_is_said_again(remote: Any, manager: Any, hold: Any) -> None:
    manager.service = lambda payload: hold
    future = remote.submit(b"")
    await manager.until(lambda: manager.count(Kind.SUBMIT) == 1)
    manager.drop()
    future.cancel()
    with pytest.raises(TaskCancelledError):
        await future


async def test_a_session_that_is_gone_after_the_break_fails_its_futures(remote: Any, manager: Any, hold: Any) -> None:
    manager.service = lambda payload: hold
    future = remote.submit(b"")
    await manager.until(lambda: manager.count(Kind.SUBMIT) == 1)
    del manager.sessions[remote.id]
    manager.drop()
    with pytest.raises(NotFoundError):
        await future


async def test_breaks_at_any_moment_lose_and_double_nothing(remote: Any, manager: Any) -> None:
    rng = random.Random(7)
    outputs = [b"%d" % number for number in range(20_000)]

    async def disturb() -> None:
        while True:
            for _ in range(rng.randrange(1, 6)):
                manager.arrived.clear()
                await manager.arrived.wait()
            manager.accepting = rng.random() < 0.7
            if not manager.accepting:
                await asyncio.sleep(rng.random() / 100)  # what is sent now is made, and its acceptance is lost
            manager.drop()
            manager.accepting = True

    disturbing = asyncio.ensure_future(disturb())
    try:
        assert [output async for output in remote.map(outputs, window=3000)] == outputs
        futures = [remote.submit(output) for output in outputs[:5000]]
        assert [await future for future in futures] == outputs[:5000]
    finally:
        disturbing.cancel()
    assert len(manager.sessions[remote.id].tasks) == 25_000


# --- calls -----------------------------------------------------------------------------------------------------------


async def test_calls_that_only_read_are_made_again(remote: Any, manager: Any) -> None:
    async def drop_once(link: Any) -> None:
        del manager.before["GetSession"]
        link.abort()

    manager.before["GetSession"] = drop_once
    await remote.refresh()
    assert [method for method, _ in manager.calls].count("GetSession") == 2


async def test_a_session_is_created_once_whenever_the_break_comes(remote: Any, manager: Any) -> None:
    async def create_then_drop(link: Any) -> None:
        del manager.before["CreateSession"]
        manager.CreateSession(manager.calls[-1][1])
        link.abort()

    manager.before["CreateSession"] = create_then_drop
    session = await remote.connection.create_session("app", session_id="mine")
    assert session.id == "mine"
    with pytest.raises(AlreadyExistsError):
        await remote.connection.create_session("app", session_id="mine")


async def test_an_application_is_registered_once_whenever_the_break_comes(remote: Any, manager: Any) -> None:
    async def register_then_drop(link: Any) -> None:
        del manager.before["RegisterApplication"]
        manager.RegisterApplication(manager.calls[-1][1])
        link.abort()

    manager.before["RegisterApplication"] = register_then_drop
    await remote.connection.register_application("a", {"command": "x"})
    with pytest.raises(AlreadyExistsError):
        await remote.connection.register_application("a", {"command": "x"})


async def test_a_call_whose_outcome_is_unknown_says_so(remote: Any, manager: Any) -> None:
    async def drop(link: Any) -> None:
        del manager.before["DeleteSession"]
        link.abort()

    manager.before["DeleteSession"] = drop
    with pytest.raises(UnavailableError, match="broke during DeleteSession"):
        await remote.connection.delete_session(remote.id)


async def test_a_task_is_created_once_whenever_the_break_comes(remote: Any, manager: Any) -> None:
    async def create_then_drop(link: Any) -> None:
        del manager.before["CreateTask"]
        manager.CreateTask(manager.calls[-1][1])
        link.abort()

    manager.before["CreateTask"] = create_then_drop
    task = await remote.create_task(b"x")
    assert (task.id, len(manager.sessions[remote.id].tasks)) == ("1", 1)


async def test_streams_go_on_where_they_were(remote: Any, manager: Any, hold: Any) -> None:
    manager.service = lambda payload: hold
    futures = [remote.submit(b"") for _ in range(3)]
    await manager.until(lambda: len(manager.sessions[remote.id].tasks) == 3)
    watching = remote.watch_task(1)
    assert (await anext(watching)).state == flame.TaskState.PENDING
    manager.drop()
    manager.finish(remote.id, {1: b"out"})
    assert [(task.state, task.output) async for task in watching] == [(flame.TaskState.SUCCEED, b"out")]
    listing = remote.list_tasks()
    assert (await anext(listing)).id == "1"
    manager.drop()
    assert {task.id async for task in listing} >= {"3"}
    manager.finish(remote.id, {2: b"", 3: b""})
    assert [await future for future in futures] == [b"out", b"", b""]


# --- for good --------------------------------------------------------------------------------------------------------


async def test_everything_fails_when_the_cluster_stays_away(manager: Any, hold: Any) -> None:
    manager.service = lambda payload: hold
    connection = await flame.aio.connect(str(manager.address), reconnect_timeout=0.05)
    session = await connection.create_session("app")
    future = session.submit(b"")
    await manager.until(lambda: manager.count(Kind.SUBMIT) == 1)
    await manager.stop()
    keyed = session.submit(b"", idempotency_key="k")
    with pytest.raises(UnavailableError, match="gone"):
        await future
    with pytest.raises(UnavailableError, match="gone"):
        await keyed
    for endless in (session.watch_task(1), session.watch(), session.list_tasks()):
        with pytest.raises(UnavailableError, match="gone"):
            await anext(endless)
    with pytest.raises(UnavailableError):
        await connection.list_sessions()
    manager.service = lambda payload: payload
    await manager.start()
    assert await session.submit(b"again") == b"again"  # who asks again is connected again
    await connection.close()


async def test_a_call_waits_no_longer_than_its_time(manager: Any) -> None:
    connection = await flame.aio.connect(str(manager.address), call_timeout=0.05)
    await manager.stop()
    with pytest.raises(TimedOutError, match="GetCluster waited for the connection"):
        await connection.get_cluster()
    await connection.close()
    with pytest.raises(InvalidStateError):
        await connection.get_cluster()
    await manager.start()

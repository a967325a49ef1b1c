"""Logs that are followed go on after an interruption where they were, and nothing is read twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

import flame
from flame.client import logs, uplink
from flame.model.errors import NotFoundError, TimedOutError, UnavailableError
from flame.proto import frontend_pb2 as fe
from flame.proto.seen_logs import SeenLogs


def chunk(data: bytes, offset: int = 0, executor_id: str = "e", stream: str = "stdout") -> fe.LogChunk:
    return fe.LogChunk(executor_id=executor_id, stream=stream, offset=offset, data=data)


@pytest.fixture
async def remote(manager: Any) -> AsyncIterator[flame.aio.AsyncSession]:
    async with await flame.aio.connect(str(manager.address)) as connection:
        yield await connection.create_session("app", session_id="s")


def plays(manager: Any, *parts: list[Any]) -> list[fe.GetLogsRequest]:
    """The manager gives one part at each call: chunks, "break", or an error. Answers the requests as they come."""
    requests: list[fe.GetLogsRequest] = []

    async def give(request: fe.GetLogsRequest) -> AsyncIterator[fe.LogChunk]:
        requests.append(request)
        for item in parts[len(requests) - 1]:
            if item == "break":
                written = asyncio.Event()
                manager.links[0].when_drained(written.set)
                await written.wait()
                manager.drop()
            elif item == "close":
                manager.sessions["s"].open = False
            elif isinstance(item, Exception):
                raise item
            else:
                yield item

    manager.logs = give
    return requests


async def text(chunks: AsyncIterator[flame.LogChunk]) -> bytes:
    return b"".join([chunk.data async for chunk in chunks])


def test_what_was_read_is_cut_off() -> None:
    seen = SeenLogs()

    def rest(offset: int, data: bytes, stream: str = "stdout") -> tuple[int, bytes] | None:
        found = seen.rest(chunk(data, offset, stream=stream))
        return (found.offset, found.data) if found is not None else None

    assert rest(5, b"abc") == (5, b"abc")
    assert rest(5, b"abc") is None
    assert rest(6, b"bcde") == (8, b"de")
    assert rest(0, b"x", "stderr") == (0, b"x")
    assert rest(20, b"later") == (20, b"later")  # what lies between is gone
    assert rest(0, b"") is None


async def test_following_goes_on_after_a_break(remote: Any, manager: Any) -> None:
    requests = plays(
        manager,
        [chunk(b"one\n"), chunk(b"err\n", stream="stderr"), "break"],
        [chunk(b"one\ntwo\n"), chunk(b"err\n", stream="stderr"), chunk(b"new\n", executor_id="f"), "close"],
    )
    assert await text(remote.logs(follow=True, tail_bytes=100)) == b"one\nerr\ntwo\nnew\n"
    assert [request.tail_bytes for request in requests] == [100, 0]


async def test_nodes_may_come_back_later_than_the_manager(
    remote: Any, manager: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "_SHORTEST_PAUSE", 0.001)
    plays(
        manager,
        [chunk(b"one\n"), "break"],
        [NotFoundError("no logs of session s are kept here")],
        [],
        [chunk(b"one\n")],  # of an executor that has ended; the session is open
        [chunk(b"one\ntwo\n"), "close"],
    )
    assert await text(remote.logs(follow=True)) == b"one\ntwo\n"


async def test_following_outlasts_what_a_call_waits(manager: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uplink, "CALL_TIMEOUT", 0.01)
    connection = await flame.aio.connect(str(manager.address), call_timeout=0.01)
    session = await connection.create_session("app", session_id="s")
    plays(manager, [chunk(b"one\n"), "break"], [chunk(b"one\ntwo\n"), "close"])
    following = session.logs(follow=True)
    assert (await anext(following)).data == b"one\n"
    await manager.stop()
    rest = asyncio.create_task(text(following))
    for _ in range(2):
        with pytest.raises(TimedOutError):
            await connection.get_cluster()
    await manager.start()
    assert await rest == b"two\n"
    await connection.close()


async def test_nobody_follows_a_cluster_that_stays_away(manager: Any) -> None:
    connection = await flame.aio.connect(str(manager.address), reconnect_timeout=0.02)
    plays(manager, [chunk(b"one\n"), "break"])
    following = connection.logs("s", follow=True)
    await anext(following)
    await manager.stop()
    with pytest.raises(UnavailableError, match="gone"):
        await anext(following)
    await connection.close()
    await manager.start()


async def test_an_executor_that_ended_is_the_end(remote: Any, manager: Any) -> None:
    plays(manager, [chunk(b"one\n"), "break"], [chunk(b"one\n")])
    assert await text(remote.connection.logs(executor_id="e", follow=True)) == b"one\n"


async def test_nobody_waits_for_ever_for_nodes(remote: Any, manager: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "RESUME_TIME", 0.0)
    plays(manager, [chunk(b"one\n"), "break"], [])
    assert await text(remote.logs(follow=True)) == b"one\n"
    plays(manager, [chunk(b"one\n"), "break"], [NotFoundError("gone")])
    with pytest.raises(NotFoundError):
        await text(remote.logs(follow=True))


async def test_without_a_break_it_is_as_the_cluster_says(remote: Any, manager: Any) -> None:
    plays(manager, [chunk(b"one\n")], [NotFoundError("no logs")], ["break"])
    assert await text(remote.logs(follow=True)) == b"one\n"
    with pytest.raises(NotFoundError):
        await text(remote.logs(follow=True))
    with pytest.raises(UnavailableError):
        await text(remote.logs())  # who does not follow asks again

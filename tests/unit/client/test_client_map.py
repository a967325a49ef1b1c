"""`map`: ordered, streaming, bounded, and tidy when it is left early; synchronous and asynchronous."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

import flame
from flame.client.gather import Gather
from flame.link import Kind
from flame.model.errors import InvalidArgumentError, TaskFailedError, TimedOutError, TooLargeError
from flame.proto import link_pb2


@pytest.fixture
def session(connection: flame.Connection) -> flame.Session:
    return connection.create_session("app")


@pytest.fixture
async def remote(manager: Any) -> AsyncIterator[flame.aio.AsyncSession]:
    async with await flame.aio.connect(str(manager.address)) as connection:
        yield await connection.create_session("app")


def fail_on_three(payload: bytes | None) -> bytes | None:
    if payload == b"3":
        raise ValueError("three")
    return payload


def test_outputs_come_in_order(session: flame.Session) -> None:
    inputs = [b"%d" % number for number in range(5000)]
    assert list(session.map(inputs)) == inputs
    assert list(session.map([])) == []
    assert list(session.map([None, b""])) == [None, b""]


def test_results_that_come_out_of_order_wait_for_those_before(session: flame.Session, cluster: Any, hold: Any) -> None:
    cluster.manager.service = lambda payload: hold
    results = session.map([b"a", b"b", b"c", b"d"])
    cluster.until(lambda: len(cluster.manager.sessions[session.id].tasks) == 4)
    cluster.run(lambda: cluster.manager.finish(session.id, {3: b"C", 2: b"B"}))
    cluster.run(lambda: cluster.manager.finish(session.id, {4: b"D", 1: b"A"}))
    assert list(results) == [b"A", b"B", b"C", b"D"]


def test_an_endless_input_is_taken_as_far_as_the_window_goes(session: flame.Session, cluster: Any) -> None:
    taken = itertools.count()

    def endless() -> Iterator[bytes]:
        for number in taken:
            yield b"%d" % number

    results = session.map(endless(), window=10)
    assert [next(results) for _ in range(100)] == [b"%d" % number for number in range(100)]
    assert next(taken) <= 111
    results.close()


def test_leaving_early_cancels_what_has_not_ended(session: flame.Session, cluster: Any, hold: Any) -> None:
    cluster.manager.service = lambda payload: hold
    results = session.map(b"%d" % number for number in range(50))
    state = cluster.manager.sessions[session.id]
    cluster.until(lambda: len(state.tasks) == 50)
    results.close()  # it was not even begun
    cluster.until(lambda: all(task.state != 0 for task in state.tasks))
    cluster.manager.service = lambda payload: payload
    assert session.invoke(b"next", 5) == b"next"


def test_a_failure_comes_in_its_place(session: flame.Session, cluster: Any) -> None:
    cluster.manager.service = fail_on_three
    results = session.map([b"1", b"2", b"3", b"4"])
    assert [next(results), next(results)] == [b"1", b"2"]
    with pytest.raises(TaskFailedError, match="three"):
        next(results)
    assert list(results) == []
    got = list(session.map([b"1", b"2", b"3", b"4"], return_exceptions=True))
    assert [got[0], got[1], got[3]] == [b"1", b"2", b"4"]
    assert isinstance(got[2], TaskFailedError)


def test_time_runs_from_the_call(session: flame.Session, cluster: Any, hold: Any) -> None:
    cluster.manager.service = lambda payload: payload if payload == b"0" else hold
    results = session.map([b"0", b"1"], timeout=0.2)
    assert next(results) == b"0"
    with pytest.raises(TimedOutError):
        next(results)


def test_an_error_of_the_input_comes_through(session: flame.Session) -> None:
    def broken() -> Iterator[bytes]:
        yield b"1"
        raise KeyError("the caller's own")

    with pytest.raises(KeyError):
        list(session.map(broken()))
    with pytest.raises(TooLargeError):
        list(session.map([b"1", bytes(1001)]))
    with pytest.raises(InvalidArgumentError):
        list(session.map([b"1"], window=0))
    with pytest.raises(TypeError):
        session.map(7)  # type: ignore[arg-type]


def test_options_apply_to_all_tasks(session: flame.Session, cluster: Any) -> None:
    assert list(session.map([b"1", b"2"], priority=4)) == [b"1", b"2"]
    batches = [link_pb2.Submit.FromString(f.body) for f in cluster.manager.frames if f.kind == Kind.SUBMIT]
    assert {batch.options.priority for batch in batches} == {4}


def test_an_input_may_depend_on_an_earlier_output(session: flame.Session) -> None:
    """Inputs leave one by one: an iterable that waits for a result of the same session does not wait for ever."""

    def chained() -> Iterator[bytes]:
        value = b"x"
        for _ in range(5):
            yield value
            value = (session.invoke(value, 5) or b"") + b"x"

    assert list(session.map(chained())) == [b"x" * length for length in range(1, 6)]


def test_two_maps_and_single_tasks_mix(session: flame.Session) -> None:
    first, second = session.map(b"a%d" % n for n in range(1000)), session.map(b"b%d" % n for n in range(1000))
    future = session.submit(b"single")
    pairs = list(zip(first, second, strict=True))
    assert pairs == [(b"a%d" % n, b"b%d" % n) for n in range(1000)]
    assert future.result(5) == b"single"


def test_a_session_that_is_gone_ends_the_map(session: flame.Session, cluster: Any) -> None:
    del cluster.manager.sessions[session.id]
    with pytest.raises(flame.NotFoundError):
        list(session.map([b"1"]))


# --- how much may wait -----------------------------------------------------------------------------------------------


def test_large_results_shrink_the_window() -> None:
    gather = Gather(lambda: None, 100_000)
    assert gather.room == 2048
    gather.weigh(100, 100 * 100)
    assert gather.room == 100_000
    gather.weigh(100, 100 << 20)
    assert 64 <= gather.room < 300
    gather.weigh(1000, 10_000 << 20)
    assert gather.room == 64


def test_inputs_that_the_cluster_has_not_taken_fill_the_window() -> None:
    woken: list[bool] = []
    gather = Gather(lambda: woken.append(True), 1000)
    gather.submitted, gather.submitted_bytes = 2, 200 << 20
    assert gather.room == 0
    gather.starved = True
    gather.accept(100 << 20)
    assert gather.room == 998
    assert woken == [True]


def test_inputs_in_the_object_cache_are_bounded_until_their_tasks_have_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLAME_KEEP_PARCELS", "1")
    told: list[bool] = []
    gather = Gather(lambda: told.append(True), window=100)
    while gather.room > 0:
        gather.store(b"parcel", 200 << 20)
        gather.submitted += 1
    assert gather.submitted == 4  # some may be there, however large they are
    gather.starved = True
    gather.put(2, [None])
    assert told
    assert gather.room > 0


# --- asyncio ---------------------------------------------------------------------------------------------------------


async def test_async_map_takes_both_kinds_of_iterables(remote: flame.aio.AsyncSession) -> None:
    async def slowly() -> AsyncIterator[bytes]:
        for number in range(20):
            await asyncio.sleep(0)
            yield b"%d" % number

    expected = [b"%d" % number for number in range(20)]
    assert [output async for output in remote.map(slowly())] == expected
    assert [output async for output in remote.map(iter(expected), window=3)] == expected
    assert [output async for output in remote.map([])] == []


async def test_async_map_passes_failures_and_errors_of_the_input(remote: flame.aio.AsyncSession, manager: Any) -> None:
    manager.service = fail_on_three
    results = remote.map([b"2", b"3"])
    assert await anext(results) == b"2"
    with pytest.raises(TaskFailedError):
        await anext(results)
    got = [output async for output in remote.map([b"3", b"4"], return_exceptions=True)]
    assert isinstance(got[0], TaskFailedError)
    assert got[1] == b"4"
    with pytest.raises(InvalidArgumentError):
        [output async for output in remote.map([b"1", "text"])]  # type: ignore[list-item]


async def test_async_map_ends_in_time_and_cancels_the_rest(
    remote: flame.aio.AsyncSession, manager: Any, hold: Any
) -> None:
    manager.service = lambda payload: hold
    with pytest.raises(TimedOutError):
        [output async for output in remote.map([b"1"], timeout=0.02)]
    await manager.until(lambda: manager.count(Kind.CANCEL) == 1)


async def test_async_map_of_an_endless_input_respects_the_window(remote: flame.aio.AsyncSession) -> None:
    taken = itertools.count()
    results = remote.map((b"%d" % number for number in taken), window=5)
    assert [await anext(results) for _ in range(50)] == [b"%d" % number for number in range(50)]
    assert next(taken) <= 56
    await results.aclose()  # type: ignore[attr-defined]

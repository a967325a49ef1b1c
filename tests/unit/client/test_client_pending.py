"""Futures that wait in vain are explained: once in a while, in words, and only while nothing runs."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

import flame
from flame.client.pending import Patience, Wait, period_of, timed_out, told
from flame.link import Kind
from flame.model.errors import ExhaustedError, InvalidArgumentError, InvalidConfigError, TimedOutError
from flame.proto import frontend_pb2 as fe
from flame.proto import types_pb2 as ty

PERIOD = 0.01
NO_GPU = fe.Reason(rule="capacity", object="cluster", message="needs 2 GPUs; the largest node has 1", remedy="ask less")


class Heard(logging.Handler):
    """What the SDK said, from INFO on."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.said: list[tuple[int, str]] = []
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if " wait" in record.getMessage():
            self.said.append((record.levelno, record.getMessage()))
            self._loop.call_soon_threadsafe(self._news.set)

    async def count(self, count: int) -> None:
        """Until so much was said."""
        while len(self.said) < count:
            self._news.clear()
            await self._news.wait()


@pytest.fixture
async def heard() -> AsyncIterator[Heard]:
    handler = Heard()
    logger = logging.getLogger("flame.client")
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(level)


@pytest.fixture
async def remote(manager: Any, hold: Any) -> AsyncIterator[flame.aio.AsyncSession]:
    """A session whose tasks stay pending."""
    manager.service = lambda payload: hold
    async with await flame.aio.connect(str(manager.address), pending_warning=PERIOD) as connection:
        yield await connection.create_session("app", session_id="s")


# --- when ------------------------------------------------------------------------------------------------------------


def asked(patience: Patience, ticks: int, news: int = 0) -> list[int]:
    """The ticks at which it asks."""
    return [tick for tick in range(1, ticks + 1) if patience.tick(news)]


def test_it_asks_after_one_quiet_tick_then_ever_more_seldom() -> None:
    assert asked(Patience(longest=8), 40) == [1, 3, 7, 15, 23, 31, 39]
    assert asked(Patience(longest=1), 4) == [1, 2, 3, 4]


def test_something_that_came_starts_it_anew() -> None:
    patience = Patience(longest=60)
    assert asked(patience, 7) == [1, 3, 7]
    assert not patience.fresh
    assert not patience.tick(news=1)
    assert patience.fresh
    assert asked(patience, 3, news=1) == [1, 3]


@pytest.mark.parametrize(
    ("given", "environment", "seconds"),
    [
        (..., None, 5.0),
        (..., "", 5.0),
        (..., "2.5", 2.5),
        (..., " never ", None),
        (None, "2.5", None),
        (1, "2.5", 1.0),
        (timedelta(minutes=1), None, 60.0),
    ],
)
def test_what_is_given_comes_before_the_environment(
    monkeypatch: pytest.MonkeyPatch, given: Any, environment: str | None, seconds: float | None
) -> None:
    monkeypatch.delenv("FLAME_PENDING_WARNING", raising=False)
    if environment is not None:
        monkeypatch.setenv("FLAME_PENDING_WARNING", environment)
    assert period_of(given) == seconds


def test_other_periods_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for given in (0, -1, float("nan"), float("inf"), timedelta(0)):
        with pytest.raises(InvalidArgumentError, match="pending_warning"):
            period_of(given)
    for text in ("0", "soon", "nan", "-3"):
        monkeypatch.setenv("FLAME_PENDING_WARNING", text)
        with pytest.raises(InvalidConfigError, match="FLAME_PENDING_WARNING"):
            period_of(...)


# --- in words --------------------------------------------------------------------------------------------------------


def test_the_warning_names_session_number_time_rule_and_remedy() -> None:
    wait = Wait("needs 2 GPUs; the largest node has 1", "ask for less", "capacity", "cluster", since=1_700_000_000)
    text = told("s", 3, wait, since=1_700_000_004, now=1_700_000_005.4)
    assert text.startswith("session s: 3 tasks wait and none runs, for 5 s (since 2023-11-1")
    assert text.endswith("): needs 2 GPUs; the largest node has 1 (rule capacity: cluster); ask for less")
    short = told("s", 1, Wait("its executors are starting"), since=1_700_000_004, now=1_700_000_004.4)
    assert short.startswith("session s: 1 task waits and none runs, for 0 s (since ")
    assert short.endswith("): its executors are starting")


def test_a_time_out_tells_what_is_known() -> None:
    error = timed_out("too late", Wait("no room", "add a node", "room", "cluster"))
    assert error.message == "too late; it waits: no room (rule room: cluster)"
    assert error.remedy == "add a node"
    assert timed_out("too late", None).message == "too late"


# --- through a connection --------------------------------------------------------------------------------------------


async def test_waiting_futures_are_explained(remote: Any, manager: Any, heard: Heard) -> None:
    manager.sessions["s"].explanation = fe.Explanation(reasons=[NO_GPU, fe.Reason(rule="node")])
    futures = [remote.submit(b"") for _ in range(3)]
    await heard.count(1)
    level, text = heard.said[0]
    assert level == logging.WARNING
    assert text.startswith("session s: 3 tasks wait and none runs, for 0 s (since ")
    assert text.endswith("): needs 2 GPUs; the largest node has 1 (rule capacity: cluster); ask less")
    manager.sessions["s"].explanation = fe.Explanation(
        reasons=[fe.Reason(rule="bind", object="s", message="no python")]
    )
    await heard.count(2)
    assert heard.said[1][1].endswith("): no python (rule bind)")
    manager.finish("s", {1: b"", 2: b"", 3: b""})
    for future in futures:
        assert await future == b""
    remote.stream.watch._tick()
    assert remote.stream.watch._timer is None  # until the next task


async def test_nothing_is_said_while_a_task_runs(remote: Any, manager: Any, heard: Heard) -> None:
    manager.sessions["s"].explanation = fe.Explanation(reasons=[NO_GPU])
    manager.sessions["s"].running = 1
    remote.submit(b"")
    await manager.until(lambda: sum(method == "WatchSession" for method, _ in manager.calls) == 2)
    assert heard.said == []
    assert "Explain" not in [method for method, _ in manager.calls]
    manager.sessions["s"].running = 0  # taken away from it
    await heard.count(1)


@pytest.mark.parametrize("rule", ["starting", "order"])
async def test_what_will_be_over_by_itself_is_no_warning(remote: Any, manager: Any, heard: Heard, rule: str) -> None:
    reasons = [fe.Reason(rule=rule, object="s", message="patience")]
    if rule == "starting":
        reasons.insert(0, fe.Reason(rule="max_instances", object="s", message="it has one"))
    manager.sessions["s"].explanation = fe.Explanation(reasons=reasons)
    remote.submit(b"")
    await heard.count(1)
    assert heard.said[0][0] == logging.INFO
    assert "patience" in heard.said[0][1]


async def test_a_reason_that_is_not_known_is_not_invented(remote: Any, manager: Any, heard: Heard) -> None:
    remote.submit(b"")
    await manager.until(lambda: sum(method == "Explain" for method, _ in manager.calls) == 2)
    assert heard.said == []


async def test_tasks_with_a_key_of_their_own_are_explained_too(remote: Any, manager: Any, heard: Heard) -> None:
    manager.sessions["s"].explanation = fe.Explanation(reasons=[NO_GPU])
    future = remote.submit(b"", idempotency_key="k")
    await heard.count(1)
    assert heard.said[0][1].startswith("session s: 1 task waits")
    manager.finish("s", {1: b"done"})
    manager.arrived.set()
    assert await future == b"done"
    assert not remote.stream.waits


async def test_nothing_is_said_after_the_end(remote: Any, manager: Any, heard: Heard) -> None:
    manager.sessions["s"].explanation = fe.Explanation(reasons=[NO_GPU])
    future = remote.submit(b"")
    watch = remote.stream.watch

    async def close_first(link: Any) -> None:
        await remote.connection.close()

    manager.before["Explain"] = close_first
    with pytest.raises(flame.InvalidStateError, match="closed"):
        await future
    assert (watch._timer, watch._stopped) == (None, True)
    await asyncio.wait({watch._looking})
    watch.arm()
    assert watch._timer is None
    assert heard.said == []


async def test_a_closed_session_has_no_timer(remote: Any, manager: Any) -> None:
    future = remote.submit(b"")
    await manager.until(lambda: manager.count(Kind.SUBMIT) == 1)
    watch = remote.stream.watch
    await remote.close()
    with pytest.raises(flame.TaskCancelledError):
        await future
    await manager.until(lambda: manager.count(Kind.DETACH) == 1)
    assert watch._timer is None


async def test_a_cluster_that_can_not_be_asked_is_no_trouble(remote: Any, manager: Any, heard: Heard) -> None:
    future = remote.submit(b"")
    await manager.until(lambda: manager.count(Kind.SUBMIT) == 1)
    session = manager.sessions.pop("s")
    await manager.until(lambda: any(method == "WatchSession" for method, _ in manager.calls))
    manager.sessions["s"] = session
    manager.finish("s", {1: b"out"})
    assert await future == b"out"
    assert heard.said == []


async def test_never_means_never(manager: Any, hold: Any) -> None:
    manager.service = lambda payload: hold
    async with await flame.aio.connect(str(manager.address), pending_warning=None) as connection:
        session = await connection.create_session("app")
        session.submit(b"")
        assert session.stream.watch is None


async def test_one_timer_serves_many_tasks(manager: Any) -> None:
    async with await flame.aio.connect(str(manager.address), pending_warning=60) as connection:
        session = await connection.create_session("app")
        await session.submit(b"")
        timer = session.stream.watch._timer
        for _ in range(20):
            await session.submit(b"")
        assert [output async for output in session.map([b"x"] * 2000)] == [b"x"] * 2000
        assert session.stream.watch._timer is timer


async def test_a_full_quota_is_what_a_map_waits_for(remote: Any, manager: Any, heard: Heard) -> None:
    full = ExhaustedError("tenant ml is at its quota of 0 pending", remedy="raise it")
    manager.refuse = lambda submit: full
    results = remote.map([b""])
    first = asyncio.ensure_future(anext(results))
    await heard.count(1)
    assert heard.said[0][1].startswith("session s: 1 task waits to be accepted, for 0 s")
    assert heard.said[0][1].endswith("): tenant ml is at its quota of 0 pending (rule quota); raise it")
    manager.refuse = lambda submit: None
    await manager.until(lambda: len(manager.sessions["s"].tasks) == 1)
    manager.finish("s", {1: b"out"})
    assert await first == b"out"
    assert [output async for output in results] == []


# --- time-outs -------------------------------------------------------------------------------------------------------


async def test_who_waited_no_longer_reads_the_reason(remote: Any, manager: Any, heard: Heard) -> None:
    manager.sessions["s"].explanation = fe.Explanation(reasons=[NO_GPU])
    remote.submit(b"")
    await heard.count(1)
    why = r"it waits: needs 2 GPUs; .* \(rule capacity: cluster\); ask less"
    with pytest.raises(TimedOutError, match=f"did not end within 0.02 s and was cancelled; {why}"):
        await remote.invoke(b"", timeout=0.02)
    await manager.until(lambda: manager.sessions["s"].tasks[1].state == 4)  # CANCELLED
    await remote.connection.list_sessions()  # its answer comes after that result
    with pytest.raises(TimedOutError, match=why):  # which is no sign that anything goes on
        await remote.invoke(b"", timeout=0.001)
    with pytest.raises(TimedOutError, match=f"results were missing after 0.001 s; {why}"):
        [output async for output in remote.map([b""], timeout=0.001)]


@pytest.fixture
def session(connection: flame.Connection, cluster: Any, hold: Any) -> flame.Session:
    cluster.manager.service = lambda payload: hold
    return connection.create_session("app", session_id="s")


def test_a_reason_that_the_cluster_told_is_in_the_time_out(session: flame.Session, cluster: Any) -> None:
    future = session.submit(b"")
    cluster.until(lambda: len(cluster.manager.sessions["s"].tasks) == 1)
    with pytest.raises(TimedOutError, match=r"task \S+ of session s did not end within 0.01 s \("):
        future.result(0.01)  # not known yet
    cluster.run(lambda: cluster.manager.notice("s", pending_reason="no node is ready"))
    cluster.run(lambda: cluster.manager.notice("s", ty.Event(code=1001, message="told after it")))
    session.connection.list_sessions()  # its answer comes after them
    with pytest.raises(TimedOutError, match="it waits: no node is ready"):
        future.result(0.01)
    results = session.map([b""], timeout=0.01)
    with pytest.raises(TimedOutError, match="it waits: no node is ready"):
        next(results)
    cluster.run(lambda: cluster.manager.finish("s", {1: b"out"}))
    assert future.result(5) == b"out"
    with pytest.raises(TimedOutError, match=r"within 0.01 s \("):
        session.submit(b"").result(0.01)  # what was known is old


# --- the program's end -----------------------------------------------------------------------------------------------

LEAVING = {
    "asyncio, slowly": """
import asyncio, sys
from flame import aio

async def slow_to_end():
    try:
        yield
    finally:
        await asyncio.sleep(0.2)  # many ticks

async def main():
    global ending
    ending = slow_to_end()
    await anext(ending)
    connection = await aio.connect(sys.argv[1], pending_warning=0.01)
    session = await connection.create_session("app", session_id="s")
    future = session.submit(b"")
    while future.task_id is None:
        await connection.list_sessions()

asyncio.run(main())
""",
    "a loop that is just left": """
import asyncio, sys
from flame import aio

async def main():
    connection = await aio.connect(sys.argv[1], pending_warning=60)
    session = await connection.create_session("app", session_id="s")
    future = session.submit(b"")
    while future.task_id is None:
        await connection.list_sessions()

loop = asyncio.new_event_loop()
loop.run_until_complete(main())
loop.close()
""",
    "asyncio": """
import asyncio, sys
from flame import aio

async def main():
    connection = await aio.connect(sys.argv[1], pending_warning=0.01)
    session = await connection.create_session("app", session_id="s")
    future = session.submit(b"")
    while future.task_id is None:
        await connection.list_sessions()

asyncio.run(main())
""",
    "threads": """
import sys
import flame

connection = flame.connect(sys.argv[1], pending_warning=0.01)
session = connection.create_session("app", session_id="s")
future = session.submit(b"")
while future.task_id is None:
    connection.list_sessions()
""",
}


@pytest.mark.parametrize("kind", LEAVING)
def test_a_program_ends_with_futures_that_wait(cluster: Any, hold: Any, kind: str) -> None:
    async def never(link: Any) -> None:
        await asyncio.Event().wait()

    cluster.manager.service = lambda payload: hold
    cluster.manager.before["Explain"] = never  # who asks for the reason is still at it when the loop ends
    command = [sys.executable, "-c", LEAVING[kind], str(cluster.manager.address)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")

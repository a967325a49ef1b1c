"""Tasks of a synchronous session: submit, invoke, cancel, failures, limits, batches."""

from __future__ import annotations

import concurrent.futures
import logging
import threading
from typing import Any

import pytest

import flame
from flame.link import Kind
from flame.model.errors import (
    ExhaustedError,
    FlameError,
    InvalidArgumentError,
    InvalidStateError,
    NotFoundError,
    TaskCancelledError,
    TaskFailedError,
    TimedOutError,
    TooLargeError,
)
from flame.proto import frontend_pb2 as fe
from flame.proto import link_pb2
from flame.proto import types_pb2 as ty


@pytest.fixture
def session(connection: flame.Connection) -> flame.Session:
    return connection.create_session("app")


def submitted(cluster: Any) -> list[link_pb2.Submit]:
    frames = [frame for frame in cluster.manager.frames if frame.kind == Kind.SUBMIT]
    return [link_pb2.Submit.FromString(frame.body) for frame in frames]


def test_a_task_gives_its_output(session: flame.Session) -> None:
    future = session.submit(b"in")
    assert future.result(5) == b"in"
    assert future.task_id == "1"
    assert future.session_id == session.id
    assert session.run(bytearray(b"too")).result(5) == b"too"
    assert session.invoke(memoryview(b"views"), 5) == b"views"


def test_no_input_and_no_output_are_not_empty_ones(session: flame.Session, cluster: Any) -> None:
    seen: list[bytes | None] = []
    cluster.manager.service = lambda payload: seen.append(payload) or payload
    assert session.invoke(None, 5) is None
    assert session.invoke(b"", 5) == b""
    assert seen == [None, b""]


def test_a_failure_shows_the_remote_traceback(session: flame.Session, cluster: Any) -> None:
    def service(payload: bytes | None) -> bytes:
        raise ValueError("no good")

    cluster.manager.service = service
    with pytest.raises(TaskFailedError, match="no good") as caught:
        session.invoke(b"x", 5)
    assert caught.value.traceback == "Traceback of ValueError('no good')"
    assert "Traceback of ValueError" in "".join(caught.value.__notes__)


def test_many_tasks_from_many_threads_all_come_back(session: flame.Session, cluster: Any) -> None:
    def caller(number: int) -> list[bytes | None]:
        futures = [session.submit(b"%d-%d" % (number, index)) for index in range(200)]
        return [future.result(20) for future in futures]

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for number, got in enumerate(pool.map(caller, range(8))):
            assert got == [b"%d-%d" % (number, index) for index in range(200)]
    batches = submitted(cluster)
    assert sum(len(batch.inputs) for batch in batches) == 1600
    following = 1
    for batch in batches:
        assert batch.first_seq == following
        assert len(batch.inputs) <= 512
        following += len(batch.inputs)


def test_a_burst_leaves_in_few_batches(session: flame.Session, cluster: Any, hold: Any) -> None:
    cluster.manager.service = lambda payload: hold
    session.submit(b"")
    cluster.until(lambda: cluster.manager.count(Kind.SUBMIT) == 1)
    released = threading.Event()
    flame_loop = session.connection.thread.loop
    flame_loop.call_soon_threadsafe(released.wait, 10)  # the loop is busy while the burst comes
    for _ in range(1000):
        session.submit(b"")
    released.set()
    cluster.until(lambda: sum(len(batch.inputs) for batch in submitted(cluster)) == 1001)
    assert [len(batch.inputs) for batch in submitted(cluster)] == [1, 512, 488]


def test_large_inputs_travel_in_batches_of_their_own(cluster: Any, hold: Any) -> None:
    cluster.manager.max_payload = 3 << 20
    cluster.manager.service = lambda payload: hold
    with flame.connect(str(cluster.manager.address)) as connection:
        session = connection.create_session("app")
        session.submit(b"")
        cluster.until(lambda: cluster.manager.count(Kind.SUBMIT) == 1)
        released = threading.Event()
        connection.thread.loop.call_soon_threadsafe(released.wait, 10)
        for size in (700_000, 700_000, 2 << 20, 10, 10):
            session.submit(bytes(size))
        released.set()
        cluster.until(lambda: sum(len(batch.inputs) for batch in submitted(cluster)) == 6)
        assert [len(batch.inputs) for batch in submitted(cluster)] == [1, 1, 1, 1, 2]


def test_an_input_over_the_limit_is_refused_here_and_names_the_setting(session: flame.Session, cluster: Any) -> None:
    with pytest.raises(TooLargeError, match=r"cluster\.limits\.max_payload"):
        session.submit(bytes(1001))
    assert session.invoke(bytes(1000), 5) == bytes(1000)


@pytest.mark.parametrize("value", ["text", 7, ["list"]])
def test_inputs_must_be_bytes(session: flame.Session, value: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=type(value).__name__):
        session.submit(value)


def test_options_go_with_the_batch_and_divide_batches(session: flame.Session, cluster: Any) -> None:
    futures = [
        session.submit(b"a"),
        session.submit(b"b", run_timeout=1.5, max_retries=0, priority=-3, labels={"k": "v"}),
        session.submit(b"c", run_timeout=1.5, max_retries=0, priority=-3, labels={"k": "v"}),
        session.submit(b"d", priority=1),
    ]
    assert [future.result(5) for future in futures] == [b"a", b"b", b"c", b"d"]
    by_input = {payload: batch.options for batch in submitted(cluster) for payload in batch.inputs}
    assert by_input[b"a"] == ty.TaskOptions()
    assert by_input[b"b"] == ty.TaskOptions(timeout_ms=1500, max_retries=0, priority=-3, labels={"k": "v"})
    assert by_input[b"c"] == by_input[b"b"]
    assert by_input[b"d"] == ty.TaskOptions(priority=1)


@pytest.mark.parametrize("options", [{"priority": "high"}, {"run_timeout": "1"}, {"labels": 3}, {"max_retries": -1}])
def test_bad_options_are_errors_of_the_argument(session: flame.Session, options: Any) -> None:
    with pytest.raises(InvalidArgumentError):
        session.submit(b"", **options)


# --- cancelling ------------------------------------------------------------------------------------------------------


def test_cancel_reaches_the_cluster(session: flame.Session, cluster: Any, hold: Any) -> None:
    cluster.manager.service = lambda payload: hold
    kept, future = session.submit(b"1"), session.submit(b"2")
    cluster.until(lambda: len(cluster.manager.sessions[session.id].tasks) == 2)
    assert future.cancel()
    with pytest.raises(TaskCancelledError):
        future.result(5)
    assert future.cancelled()
    assert not future.cancel()
    assert not kept.done()
    cluster.run(lambda: cluster.manager.finish(session.id, {1: b"fine"}))
    assert kept.result(5) == b"fine"


def test_a_task_that_is_not_accepted_is_cancelled_by_its_number(
    session: flame.Session, cluster: Any, hold: Any
) -> None:
    cluster.manager.service = lambda payload: hold
    cluster.manager.accepting = False
    future = session.submit(b"1")
    cluster.until(lambda: cluster.manager.count(Kind.SUBMIT) == 1)
    future.cancel()
    cluster.until(lambda: cluster.manager.count(Kind.CANCEL) == 1)
    cancel = link_pb2.Cancel.FromString(cluster.manager.frames[-1].body)
    assert [(r.first, r.last) for r in cancel.seqs] == [(1, 1)]


def test_a_result_that_comes_first_wins_over_cancel(session: flame.Session, cluster: Any, hold: Any) -> None:
    cluster.manager.service = lambda payload: hold
    future = session.submit(b"1")
    cluster.until(lambda: cluster.manager.count(Kind.SUBMIT) == 1)

    def finish_then_cancel() -> None:
        cluster.manager.finish(session.id, {1: b"made it"})
        future.cancel()

    cluster.run(finish_then_cancel)
    assert future.result(5) == b"made it"
    assert not future.cancelled()


def test_invoke_cancels_what_it_gives_up(session: flame.Session, cluster: Any, hold: Any) -> None:
    cluster.manager.service = lambda payload: hold
    with pytest.raises(TimedOutError):
        session.invoke(b"", 0.01)
    cluster.until(lambda: cluster.manager.count(Kind.CANCEL) == 1)


def test_cancelling_the_session_ends_all_its_tasks(session: flame.Session, cluster: Any, hold: Any) -> None:
    cluster.manager.service = lambda payload: hold
    futures = [session.submit(b"") for _ in range(3)]
    cluster.until(lambda: len(cluster.manager.sessions[session.id].tasks) == 3)
    assert session.cancel() == ["1", "2", "3"]
    for future in futures:
        with pytest.raises(TaskCancelledError):
            future.result(5)
    assert session.cancel(["1"]) == []
    assert session.cancel([]) == []


# --- what the cluster refuses ----------------------------------------------------------------------------------------


def test_a_refused_submission_fails_its_futures_with_the_reason(session: flame.Session, cluster: Any) -> None:
    session.invoke(b"1", 5)
    cluster.manager.sessions[session.id].open = False
    with pytest.raises(InvalidStateError, match="not open"):
        session.invoke(b"2", 5)


def test_batches_after_a_refused_one_are_numbered_anew(session: flame.Session, cluster: Any) -> None:
    def refuse(submit: link_pb2.Submit) -> FlameError | None:
        return ExhaustedError("too many") if submit.inputs[0] == b"bad" else None

    cluster.manager.refuse = refuse
    session.invoke(b"first", 5)
    released = threading.Event()
    session.connection.thread.loop.call_soon_threadsafe(released.wait, 10)
    options = [{"priority": number} for number in range(6)]  # each in a batch of its own
    futures = [
        session.submit(b"bad" if number in (1, 3) else b"%d" % number, **option)  # type: ignore[arg-type]
        for number, option in enumerate(options)
    ]
    released.set()
    outcomes = [future.exception(5) or future.result(5) for future in futures]
    assert [str(o) if isinstance(o, FlameError) else o for o in outcomes] == [
        b"0",
        "too many (code: 9)",
        b"2",
        "too many (code: 9)",
        b"4",
        b"5",
    ]
    assert session.invoke(b"later", 5) == b"later"
    assert [task.payload for task in cluster.manager.sessions[session.id].tasks] == [
        b"first",
        b"0",
        b"2",
        b"4",
        b"5",
        b"later",
    ]


def test_a_session_that_is_gone_fails_its_futures_and_later_ones(session: flame.Session, cluster: Any) -> None:
    del cluster.manager.sessions[session.id]
    for _ in range(2):
        with pytest.raises(NotFoundError):
            session.invoke(b"", 5)


def test_what_happens_to_the_session_is_logged(
    session: flame.Session, cluster: Any, hold: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "flame.client")
    cluster.manager.service = lambda payload: hold
    future = session.submit(b"")
    cluster.until(lambda: cluster.manager.count(Kind.SUBMIT) == 1)

    def tell() -> None:
        cluster.manager.notice(
            session.id, ty.Event(code=1001, message="bind failed"), ty.Event(code=1002, message="over")
        )
        cluster.manager.finish(session.id, {1: b""})

    cluster.run(tell)
    future.result(5)
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == [
        f"session {session.id}: bind failed (code 1001)",
        f"session {session.id}: over (code 1002)",
    ]


# --- idempotency keys ------------------------------------------------------------------------------------------------


def test_a_key_names_one_task_for_everybody(session: flame.Session, cluster: Any, hold: Any) -> None:
    ran: list[bytes | None] = []
    cluster.manager.service = lambda payload: ran.append(payload) or hold
    first = session.submit(b"once", idempotency_key="k")
    second = session.submit(b"once", idempotency_key="k")
    cluster.until(lambda: bool(ran))
    with flame.connect(str(cluster.manager.address)) as other:
        third = other.open_session(session.id).submit(b"once", idempotency_key="k")
        cluster.run(lambda: (cluster.manager.finish(session.id, {1: b"out"}), cluster.manager.arrived.set()))
        assert [future.result(5) for future in (first, second, third)] == [b"out"] * 3
        assert {future.task_id for future in (first, second, third)} == {"1"}
    assert ran == [b"once"]


def test_a_keyed_task_can_fail_and_be_cancelled(session: flame.Session, cluster: Any, hold: Any) -> None:
    def fail(payload: bytes | None) -> bytes:
        raise ValueError("no good")

    cluster.manager.service = fail
    with pytest.raises(TaskFailedError, match="no good"):
        session.submit(b"", idempotency_key="a").result(5)
    cluster.manager.service = lambda payload: hold
    future = session.submit(b"", idempotency_key="b")
    future.cancel()
    with pytest.raises(TaskCancelledError):
        future.result(5)


# --- the end of a session --------------------------------------------------------------------------------------------


def test_leaving_the_block_waits_for_the_tasks_and_closes(
    connection: flame.Connection, cluster: Any, hold: Any
) -> None:
    cluster.manager.service = lambda payload: hold
    with connection.create_session("app") as session:
        future = session.submit(b"")
        cluster.until(lambda: cluster.manager.count(Kind.SUBMIT) == 1)
        loop = connection.thread.loop
        loop.call_soon_threadsafe(lambda: cluster.manager.finish(session.id, {1: b"late"}))
    assert future.result(0) == b"late"
    assert not cluster.manager.sessions[session.id].open
    cluster.until(lambda: cluster.manager.count(Kind.DETACH) == 1)
    assert session.state == flame.SessionState.CLOSED


def test_leaving_the_block_by_an_error_cancels_the_tasks(connection: flame.Connection, cluster: Any, hold: Any) -> None:
    cluster.manager.service = lambda payload: hold
    with pytest.raises(KeyError), connection.create_session("app") as session:  # noqa: PT012
        future = session.submit(b"")
        raise KeyError("the block's own")
    with pytest.raises(TaskCancelledError):
        future.result(5)
    request = next(body for method, body in cluster.manager.calls if method == "CloseSession")
    assert fe.CloseSessionRequest.FromString(request).force


def test_closing_the_connection_fails_what_is_unfinished(cluster: Any, hold: Any) -> None:
    cluster.manager.service = lambda payload: hold
    connection = flame.connect(str(cluster.manager.address))
    session = connection.create_session("app")
    sent, keyed = session.submit(b""), session.submit(b"", idempotency_key="k")
    cluster.until(lambda: len(cluster.manager.sessions[session.id].tasks) == 2)
    connection.close()
    connection.close()
    for future in (sent, keyed):
        assert isinstance(future.exception(5), FlameError)
    with pytest.raises(InvalidStateError, match="closed"):
        session.submit(b"").result(5)
    with pytest.raises(InvalidStateError, match="closed"):
        connection.list_sessions()

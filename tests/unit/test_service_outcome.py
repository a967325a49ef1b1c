"""Results and failures in the columns of a wire Results."""

from __future__ import annotations

from flame.node.columns import read_results
from flame.proto import link_pb2, types_pb2
from flame.service.api import TaskFailure
from flame.service.outcome import Outcomes, describe, format_traceback


def taken(outcomes: Outcomes) -> link_pb2.Results:
    body = outcomes.take(busy_us=5)
    read_results(body)  # the executor manager finds nothing to object to
    return link_pb2.Results.FromString(body)


def test_columns_are_aligned() -> None:
    outcomes = Outcomes(max_payload=10)
    outcomes.add(1, 1, b"out")
    outcomes.add(2, 1, None)
    outcomes.fail(3, 1, "bad", "trace")
    outcomes.add(4, 1, b"")
    assert taken(outcomes) == link_pb2.Results(
        task_ids=[1, 2, 3, 4],
        outputs=[b"out", b"", b"", b""],
        absent=[1, 2],
        failures=[link_pb2.Failure(index=2, state=types_pb2.Failed, code=-1, message="bad", traceback="trace")],
        busy_us=5,
    )
    assert not outcomes


def test_attempts_are_told_when_one_is_not_the_first() -> None:
    outcomes = Outcomes(max_payload=10)
    outcomes.add(1, 1, None)
    assert list(taken(outcomes).attempts) == []
    outcomes.add(1, 1, None)
    outcomes.add(2, 3, None)
    outcomes.fail(3, 2, "")
    assert list(taken(outcomes).attempts) == [1, 3, 2]


def test_what_is_no_output_becomes_a_failure() -> None:
    async def coroutine() -> None: ...

    class Text(bytes):
        pass

    outcomes = Outcomes(max_payload=10)
    made = coroutine()
    for task_id, output in enumerate(("text", 7, bytearray(b"x"), made, b"x" * 11, Text(b"ten bytes."), b"y" * 10)):
        outcomes.add(task_id, 1, output)
    made.close()
    results = taken(outcomes)
    assert {failure.index: failure.message for failure in results.failures} == {
        0: "on_task_invoke must return bytes or None, not str",
        1: "on_task_invoke must return bytes or None, not int",
        2: "on_task_invoke must return bytes or None, not bytearray",
        3: "on_task_invoke returned a coroutine that nothing awaits; define the handler itself with `async def`",
        4: "the output of 11 bytes is over the limit of 10 bytes (cluster.limits.max_payload)",
    }
    assert list(results.outputs[5:]) == [b"ten bytes.", b"y" * 10]


def test_a_time_out_may_be_retried_and_a_cancellation_not() -> None:
    outcomes = Outcomes(max_payload=10)
    outcomes.stop(1, 1, "task timed out after 5 ms", timed_out=True)
    outcomes.stop(2, 1, "", timed_out=False)
    late, cancelled = taken(outcomes).failures
    assert (late.state, late.message, late.retryable) == (types_pb2.Failed, "task timed out after 5 ms", True)
    assert (cancelled.state, cancelled.message, cancelled.retryable) == (
        types_pb2.Cancelled,
        "the task was cancelled",
        False,
    )


def test_long_texts_are_cut_where_they_say_least() -> None:
    outcomes = Outcomes(max_payload=10)
    outcomes.fail(1, 1, "a" * 100_000 + "z", "a" + "z" * 100_000)
    (failure,) = taken(outcomes).failures
    assert (len(failure.message), len(failure.traceback)) == (65536, 65536)
    assert failure.message.startswith("a")
    assert failure.traceback.endswith("z")


def test_every_exception_has_a_text() -> None:
    class SilentError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    assert describe(ValueError("why")) == "why"
    assert describe(ValueError()) == "ValueError"
    assert describe(SilentError()) == "SilentError"


def test_a_traceback_begins_in_the_service() -> None:
    def handler() -> None:
        raise KeyError("lost")

    def loop() -> str:
        try:
            handler()
        except KeyError as error:
            return format_traceback(error)
        raise AssertionError

    text = loop()
    assert "in handler" in text
    assert "in loop" not in text
    assert text.endswith("KeyError: 'lost'\n")


def test_a_handler_words_its_failure_itself() -> None:
    outcomes = Outcomes(max_payload=100)
    outcomes.fail_with(7, 1, TaskFailure("no", "where it was", b"more"))
    (failure,) = link_pb2.Results.FromString(outcomes.take(0)).failures
    assert (failure.message, failure.traceback, failure.details) == ("no", "where it was", b"more")


def test_details_that_are_too_large_are_left_out() -> None:
    outcomes = Outcomes(max_payload=100)
    outcomes.fail_with(7, 1, TaskFailure("no", details=b"x" * (256 * 1024 + 1)))
    (failure,) = link_pb2.Results.FromString(outcomes.take(0)).failures
    assert (failure.message, failure.details) == ("no", b"")

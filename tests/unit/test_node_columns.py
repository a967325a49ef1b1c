"""Bodies that pass through the executor manager are checked, not changed."""

from __future__ import annotations

import pytest

from flame.model.errors import ProtocolError
from flame.model.states import TaskState
from flame.node.columns import failure, read_results, read_retracted, read_tasks, with_usage
from flame.proto import link_pb2, types_pb2
from flame.shims.shim import Usage


def test_tasks_are_read_with_attempts_and_time_out() -> None:
    tasks = link_pb2.Tasks(task_ids=[5, 3], inputs=[b"a", b""], absent=[1], timeout_ms=7)
    assert read_tasks(tasks.SerializeToString()) == ({5: 1, 3: 1}, 7)
    tasks.attempts.extend([2, 4])
    assert read_tasks(tasks.SerializeToString()) == ({5: 2, 3: 4}, 7)


@pytest.mark.parametrize(
    "body",
    [
        b"\xff",
        link_pb2.Tasks(task_ids=[1], inputs=[]).SerializeToString(),
        link_pb2.Tasks(task_ids=[1, 2], inputs=[b"", b""], attempts=[1]).SerializeToString(),
    ],
)
def test_malformed_tasks_are_refused(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        read_tasks(body)


@pytest.mark.parametrize(
    "body",
    [
        b"\xff",
        link_pb2.Results(task_ids=[1], outputs=[]).SerializeToString(),
        link_pb2.Results(task_ids=[1], outputs=[b""], attempts=[1, 1]).SerializeToString(),
        link_pb2.Results(task_ids=[1], outputs=[b""], absent=[1]).SerializeToString(),
        link_pb2.Results(
            task_ids=[1], outputs=[b""], failures=[link_pb2.Failure(index=1, state=types_pb2.Failed)]
        ).SerializeToString(),
        link_pb2.Results(
            task_ids=[1], outputs=[b""], failures=[link_pb2.Failure(index=0, state=types_pb2.Succeed)]
        ).SerializeToString(),
    ],
)
def test_malformed_results_are_refused(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        read_results(body)


def test_ids_of_results_and_of_retracted_tasks() -> None:
    assert list(read_results(link_pb2.Results(task_ids=[4, 2], outputs=[b"", b"x"]).SerializeToString()).task_ids) == [
        4,
        2,
    ]
    assert list(read_retracted(link_pb2.Retracted(task_ids=[9]).SerializeToString())) == [9]


def test_a_failure_of_the_executor_managers_own_making_is_a_valid_result() -> None:
    body = failure(8, 3, "task timed out after 5 ms", state=TaskState.FAILED, retryable=True)
    assert list(read_results(body).task_ids) == [8]
    results = link_pb2.Results.FromString(body)
    assert list(results.attempts) == [3]
    assert list(results.absent) == [0]
    (failed,) = results.failures
    assert (failed.state, failed.code, failed.message, failed.retryable) == (
        types_pb2.Failed,
        -1,
        "task timed out after 5 ms",
        True,
    )
    cancelled = link_pb2.Results.FromString(failure(8, 1, "why", state=TaskState.CANCELLED, retryable=False))
    assert cancelled.failures[0].state == types_pb2.Cancelled


def test_what_an_instance_used_is_what_its_node_counted() -> None:
    claimed = link_pb2.Results(task_ids=[4], outputs=[b"x"], cpu_us=9, peak_memory=9, busy_us=5, sent=9, received=9)
    honest = link_pb2.Results(task_ids=[4], outputs=[b"x"], busy_us=5)
    for results in (claimed, honest):
        body = results.SerializeToString()
        counted = read_results(with_usage(body, read_results(body), Usage(0.25, 4096, sent=7)))
        assert (counted.cpu_us, counted.peak_memory, counted.sent, counted.received) == (250_000, 4096, 7, 0)
        assert (list(counted.task_ids), list(counted.outputs), counted.busy_us) == ([4], [b"x"], 5)
        assert read_results(with_usage(body, read_results(body), None)) == honest

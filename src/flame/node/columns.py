"""What the executor manager must know of the bodies that pass through it: ids, attempts, time-outs, no payloads."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from typing import TypeVar

from google.protobuf.message import DecodeError

from flame.model.errors import ProtocolError
from flame.model.states import TaskState
from flame.proto import link_pb2, types_pb2
from flame.shims.shim import Usage

FAILED = -1

M = TypeVar("M", link_pb2.Tasks, link_pb2.Results, link_pb2.Retracted)


def read_tasks(body: bytes) -> tuple[dict[int, int], int]:
    """Task ids with their attempts, and the time-out in ms (0 = none), of a wire Tasks. Raises ProtocolError."""
    tasks = _parse(link_pb2.Tasks(), body)
    attempts: Sequence[int] = tasks.attempts
    if len(tasks.inputs) != len(tasks.task_ids) or (attempts and len(attempts) != len(tasks.task_ids)):
        raise ProtocolError("the columns of a Tasks are not equally long")
    return dict(zip(tasks.task_ids, attempts or repeat(1), strict=False)), tasks.timeout_ms


def read_results(body: bytes) -> link_pb2.Results:
    """A wire Results. Raises ProtocolError when it is not well made: it goes on as it is."""
    results = _parse(link_pb2.Results(), body)
    count = len(results.task_ids)
    if len(results.outputs) != count or (results.attempts and len(results.attempts) != count):
        raise ProtocolError("the columns of a Results are not equally long")
    if any(index >= count for index in results.absent):
        raise ProtocolError("a Results names an absent output that it does not have")
    for failure in results.failures:
        if failure.index >= count or failure.state not in (types_pb2.Failed, types_pb2.Cancelled):
            raise ProtocolError("a Results names a failure of a task that it does not have, or an impossible state")
    return results


def with_usage(body: bytes, results: link_pb2.Results, used: Usage | None) -> bytes:
    """The body with what the instance used, None = nobody knows. What it says of that itself does not count."""
    if results.cpu_us or results.peak_memory or results.sent or results.received:
        results.cpu_us = results.peak_memory = results.sent = results.received = 0
        body = results.SerializeToString()
    if used is None:
        return body
    more = link_pb2.Results(
        cpu_us=round(used.cpu * 1e6), peak_memory=used.peak_memory, sent=used.sent, received=used.received
    )
    return body + more.SerializeToString()  # fields that come later replace those that came before


def read_retracted(body: bytes) -> Sequence[int]:
    """The task ids of a wire Retracted. Raises ProtocolError."""
    return _parse(link_pb2.Retracted(), body).task_ids


def failure(task_id: int, attempt: int, message: str, *, state: TaskState, retryable: bool) -> bytes:
    """A wire Results that says that this task did not succeed."""
    failed = link_pb2.Failure(code=FAILED, message=message, retryable=retryable)
    failed.state = types_pb2.Cancelled if state is TaskState.CANCELLED else types_pb2.Failed
    results = link_pb2.Results(task_ids=[task_id], outputs=[b""], absent=[0], failures=[failed], attempts=[attempt])
    return results.SerializeToString()


def _parse(message: M, body: bytes) -> M:
    try:
        message.ParseFromString(body)
    except DecodeError:
        raise ProtocolError(f"what came is no {type(message).__name__}") from None
    return message

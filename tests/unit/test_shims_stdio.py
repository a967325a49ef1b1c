"""The parts of the stdio shim that need no process: forms, lines of JSON, how far ahead tasks are written."""

from __future__ import annotations

import json

import pytest

from flame.model.errors import InvalidArgumentError
from flame.proto import link_pb2, types_pb2
from flame.shims.backlog import Answers, Backlog, Waiting
from flame.shims.stdio import Form, form_of
from flame.shims.stdio_lines import output_of, read_answers, request_line, tasks_ahead


@pytest.mark.parametrize(
    ("labels", "form"),
    [
        ([], Form("lines")),
        (["team", "stdio=framed", "owner=me"], Form("framed")),
        (["stdio=once"], Form("once")),
        (["concurrency=8"], Form("lines", 8)),
    ],
)
def test_labels_choose_the_form(labels: list[str], form: Form) -> None:
    assert form_of(labels) == form


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (["stdio=json"], "unknown label stdio=json"),
        (["concurrency=0"], "from 1 to 10000, not '0'"),
        (["concurrency=many"], "not 'many'"),
        (["stdio=once", "concurrency=2"], "means nothing with stdio=once"),
    ],
)
def test_labels_that_mean_nothing_are_refused(labels: list[str], words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        form_of(labels)


@pytest.mark.parametrize(
    ("data", "fields"),
    [
        (b"text \xc3\xa4\n", {"input": "text ä\n"}),
        (b"", {"input": ""}),
        (None, {"input": None}),
        (b"\xff\x00", {"input": "/wA=", "encoding": "base64"}),
    ],
)
def test_a_request_is_one_line(data: bytes | None, fields: dict[str, object]) -> None:
    line = request_line("s", Waiting(7, data, 2))
    assert b"\n" not in line
    assert json.loads(line) == {"session_id": "s", "task_id": 7, "attempt": 2, **fields}


@pytest.mark.parametrize(
    ("fields", "output"),
    [
        ('"output": "text \\u00e4"', "text ä".encode()),
        ('"output": ""', b""),
        ('"output": null', None),
        ("", None),
        ('"output": "/wA=", "encoding": "base64"', b"\xff\x00"),
        ('"output": {"a": [1, 2]}', b'{"a": [1, 2]}'),
        ('"output": 3.5, "more": "is ignored"', b"3.5"),
    ],
)
def test_outputs_of_answers(fields: str, output: bytes | None) -> None:
    line = '{"task_id": 1%s}\n' % (fields and f", {fields}")
    (answer,) = read_answers(line.encode())
    assert output_of(answer) == output


@pytest.mark.parametrize(
    "fields",
    ['"output": "/w", "encoding": "base64"', '"output": "a", "encoding": "hex"', '"output": 1, "encoding": "base64"'],
)
def test_outputs_that_are_not_what_they_say(fields: str) -> None:
    (answer,) = read_answers(f'{{"task_id": 1, {fields}}}\n'.encode())
    with pytest.raises(ValueError, match=r"base64|encoding"):
        output_of(answer)


def test_lines_that_are_no_answers_are_shown() -> None:
    lines = b'{"task_id": 1, "output": "fine"}\n\n\nLoading the model: 12%' + b"." * 300 + b"\n"
    with pytest.raises(ValueError, match=r"no answer .*: 'Loading the model: 12%\.+' and 122 bytes more"):
        read_answers(lines)
    with pytest.raises(ValueError, match="no answer"):
        read_answers(b'{"output": "whose?"}\n')
    with pytest.raises(ValueError, match="no answer"):
        read_answers(b'{"task_id": 1, "error": "\xff"}\n')


def test_empty_lines_mean_nothing() -> None:
    assert [answer.task_id for answer in read_answers(b'\n{"task_id": 1}\n\n{"task_id": "2"}\r\n')] == [1, "2"]


def test_quick_tasks_are_written_ahead_and_slow_ones_are_not() -> None:
    assert tasks_ahead(20_000, 1) == 100
    assert tasks_ahead(10, 1) == 512
    assert tasks_ahead(5_000_000, 1) == 1
    assert tasks_ahead(5_000_000, 8) == 8


def backlog(*task_ids: int) -> Backlog:
    found = Backlog()
    found.add(link_pb2.Tasks(task_ids=task_ids, inputs=[b""] * len(task_ids), absent=[0]).SerializeToString())
    return found


def test_a_backlog_gives_back_the_last_ones() -> None:
    waiting = backlog(4, 5, 6)
    body = waiting.retracted(link_pb2.Retract(keep=2).SerializeToString(), running=1)
    assert list(link_pb2.Retracted.FromString(body).task_ids) == [5, 6]
    assert (len(waiting), waiting.take()) == (1, Waiting(4, None, 1))


@pytest.mark.parametrize(("timed_out", "state"), [(False, types_pb2.Cancelled), (True, types_pb2.Failed)])
def test_a_backlog_answers_for_those_that_are_cancelled(timed_out: bool, state: types_pb2.TaskState) -> None:
    waiting = backlog(4, 5, 6)
    cancel = link_pb2.Cancel(task_ids=[link_pb2.Range(first=5, last=5)], reason="why", timed_out=timed_out)
    results = link_pb2.Results.FromString(waiting.cancelled(cancel).wire())
    assert list(results.task_ids) == [5]
    failure = link_pb2.Failure(state=state, code=-1, message="why", retryable=timed_out)
    assert list(results.failures) == [failure]
    assert [waiting.take().task_id, waiting.take().task_id] == [4, 6]


def test_answers_are_columns() -> None:
    answers = Answers()
    answers.succeeded(1, 1, b"out", 10)
    answers.succeeded(2, 2, None, 10)
    answers.succeeded(3, 1, b"too large for it", 10)
    answers.failed(4, 1, 3, "broken", retryable=True, traceback="where")
    results = link_pb2.Results.FromString(answers.wire(busy_us=5))
    assert list(results.task_ids) == [1, 2, 3, 4]
    assert list(results.outputs) == [b"out", b"", b"", b""]
    assert list(results.absent) == [1, 2, 3]
    assert list(results.attempts) == [1, 2, 1, 1]
    assert results.busy_us == 5
    large, broken = results.failures
    assert large.message == "the output of 16 bytes is over the limit of 10 bytes (cluster.limits.max_payload)"
    assert (broken.index, broken.code, broken.message, broken.retryable) == (3, 3, "broken", True)
    assert broken.traceback == "where"

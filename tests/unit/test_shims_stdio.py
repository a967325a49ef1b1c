"""The parts of the stdio shim that need no process: forms, lines of JSON, how far ahead tasks are written."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterable

import pytest

from flame.model.errors import InvalidArgumentError
from flame.proto import link_pb2, types_pb2
from flame.shims.backlog import Answers, Backlog, Waiting
from flame.shims.stdio import Form, form_of
from flame.shims.stdio_lines import LinesStream, output_of, read_answers, request_line, tasks_ahead


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
    (answer,), fault = read_answers(line.encode())
    assert fault == ""
    assert output_of(answer) == output


@pytest.mark.parametrize(
    "fields",
    ['"output": "/w", "encoding": "base64"', '"output": "a", "encoding": "hex"', '"output": 1, "encoding": "base64"'],
)
def test_outputs_that_are_not_what_they_say(fields: str) -> None:
    (answer,), _ = read_answers(f'{{"task_id": 1, {fields}}}\n'.encode())
    with pytest.raises(ValueError, match=r"base64|encoding"):
        output_of(answer)


def test_lines_that_are_no_answers_are_shown() -> None:
    lines = b'{"task_id": 1, "output": "fine"}\n\n\nLoading the model: 12%' + b"." * 300 + b"\n"
    found, fault = read_answers(lines)
    assert [answer.task_id for answer in found] == [1]
    assert re.search(r"no answer .*: 'Loading the model: 12%\.+' and 122 bytes more", fault)


@pytest.mark.parametrize(
    "line",
    [
        b'{"output": "whose?"}',
        b'{"task_id": 1, "error": "\xff"}',
        b'{"task_id": 1, "error": "too bad", "code": 2147483648}',
        b'{"task_id": 1, "output": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
    ids=["no task", "no text", "no code", "lists in lists"],
)
def test_lines_that_are_almost_answers(line: bytes) -> None:
    found, fault = read_answers(line + b"\n")
    assert (list(found), "no answer" in fault) == ([], True)


def test_empty_lines_mean_nothing() -> None:
    assert [answer.task_id for answer in read_answers(b'\n{"task_id": 1}\n\n{"task_id": "2"}\r\n')[0]] == [1, "2"]


def test_quick_tasks_are_written_ahead_and_slow_ones_are_not() -> None:
    assert tasks_ahead(20_000, 1) == 100
    assert tasks_ahead(10, 1) == 512
    assert tasks_ahead(5_000_000, 1) == 1
    assert tasks_ahead(5_000_000, 8) == 8


def backlog(*task_ids: int) -> Backlog:
    found = Backlog()
    found.add(link_pb2.Tasks(task_ids=task_ids, inputs=[b""] * len(task_ids), absent=[0]).SerializeToString())
    return found


def test_a_backlog_knows_how_much_waits_in_it() -> None:
    backlog = Backlog()
    backlog.add(
        link_pb2.Tasks(task_ids=[1, 2, 3, 4], inputs=[b"a", b"bb", b"", b"dddd"], absent=[2]).SerializeToString()
    )
    assert backlog.size == 7
    assert backlog.take().data == b"a"
    assert backlog.size == 6
    backlog.cancelled(link_pb2.Cancel(task_ids=[link_pb2.Range(first=2, last=2)]))
    assert backlog.size == 4
    backlog.retracted(link_pb2.Retract(keep=1).SerializeToString(), 0)
    assert (len(backlog), backlog.size) == (1, 0)
    backlog.add(link_pb2.Tasks(task_ids=[5], inputs=[b"e"]).SerializeToString())
    backlog.clear()
    assert backlog.size == 0


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


class Pipe(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[int] = []
        self.reading = True

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += [json.loads(line)["task_id"] for line in bytes(data).splitlines()]

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


class Listener:
    """An owner that remembers."""

    def __init__(self) -> None:
        self.heard: list[int] = []
        self.complaints: list[str] = []

    def results(self, body: bytes) -> None:
        self.heard += link_pb2.Results.FromString(body).task_ids

    def retracted(self, body: bytes) -> None:
        self.heard += link_pb2.Retracted.FromString(body).task_ids

    def broken(self, why: str) -> None:
        self.complaints.append(why)


@pytest.fixture
async def pipe() -> Pipe:
    return Pipe()


@pytest.fixture
async def owner() -> Listener:
    return Listener()


@pytest.fixture
async def stream(pipe: Pipe, owner: Listener) -> LinesStream:
    stream = LinesStream(owner, "s", 1000, 1)
    stream.connection_made(pipe)
    return stream


def tasks(ids: Iterable[int]) -> bytes:
    ids = list(ids)
    return link_pb2.Tasks(task_ids=ids, inputs=[b"x"] * len(ids)).SerializeToString()


def answers(*ids: int) -> bytes:
    return b"".join(b'{"task_id": %d, "output": "x"}\n' % task_id for task_id in ids)


async def test_how_quick_a_program_is_must_be_seen_first(stream: LinesStream, pipe: Pipe, owner: Listener) -> None:
    stream.tasks(tasks([1, 2, 3]))
    assert pipe.written == [1]
    stream.retract(link_pb2.Retract(keep=2).SerializeToString())
    assert owner.heard == [3]
    stream.data_received(answers(1))
    assert pipe.written == [1, 2]
    assert owner.heard == [3, 1]


async def test_nothing_is_written_where_there_is_no_room(stream: LinesStream, pipe: Pipe) -> None:
    stream.pause_writing()
    stream.tasks(tasks([1]))
    assert pipe.written == []
    stream.resume_writing()
    assert pipe.written == [1]


async def test_no_answers_are_taken_while_nobody_takes_them_from_us(stream: LinesStream, pipe: Pipe) -> None:
    stream.pause()
    assert not pipe.reading
    stream.resume()
    assert pipe.reading


async def test_answers_come_in_any_pieces(stream: LinesStream, owner: Listener) -> None:
    stream.tasks(tasks([1]))
    for byte in answers(1):
        stream.data_received(bytes([byte]))
    assert owner.heard == [1]
    stream.tasks(tasks([2]))
    stream.data_received(answers(2).rstrip())
    assert owner.heard == [1]
    stream.eof_received()
    assert owner.heard == [1, 2]


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (answers(2), "it answered for task 2, which it does not have"),
        (b'{"task_id": "%s"}\n' % (b"1" * 5000), "it answered for task '1111"),
        (b'{"task_id": "one"}\n', "it answered for task 'one', which it does not have"),
        (b"x" * 1_100_000, "longer than 1050576 bytes"),
        (b"Hello\n" + answers(1), "'Hello'"),
    ],
)
async def test_what_breaks_the_contract(stream: LinesStream, owner: Listener, said: bytes, words: str) -> None:
    stream.tasks(tasks([1]))
    stream.data_received(said)
    (complaint,) = owner.complaints
    assert words in complaint
    stream.data_received(answers(1))
    stream.connection_lost(None)
    assert (owner.heard, len(owner.complaints)) == ([], 1)


@pytest.mark.parametrize(("more", "words"), [(answers(1), "for task 1"), (b"Hello\n", "'Hello'")])
async def test_what_was_answered_before_counts(
    stream: LinesStream, pipe: Pipe, owner: Listener, more: bytes, words: str
) -> None:
    stream.tasks(tasks([1, 2]))
    stream.data_received(answers(1) + more)
    (complaint,) = owner.complaints
    assert words in complaint
    assert (owner.heard, pipe.written) == ([1], [1])

"""Lines of JSON over a program's stdin and stdout: one for each task, one for each answer.

A request is `{"session_id", "task_id", "attempt", "input"}`; `input` is text, or base64 text with `"encoding":
"base64"` when it is no UTF-8, or null when there is none. An answer is `{"task_id", "output"}` or `{"task_id",
"error"}`. The end of its stdin tells the program that the session is over.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import time
from collections.abc import Sequence
from typing import Annotated, Any, cast

import msgspec

from flame.link.framed import loss
from flame.proto import link_pb2, shim_pb2, types_pb2
from flame.shims.backlog import FAILED, Answers, Backlog, Waiting
from flame.shims.shim import Owner

_PORTION = 1 << 20
_AHEAD_NS = 2_000_000
_MAX_AHEAD = 512
_SHOWN = 200
# Of a line beside its payload. Base64 is a third longer than what it stands for, text with escapes rarely more.
_LINE_SLACK = 1 << 20


class Request(msgspec.Struct, omit_defaults=True):
    """One task, as it is written."""

    session_id: str
    task_id: int
    attempt: int
    input: str | None
    encoding: str = ""


class Answer(msgspec.Struct):
    """What came of a task, as it is read. An output that is no text is taken as the JSON that it is."""

    task_id: int | str
    output: msgspec.Raw = msgspec.Raw(b"null")
    encoding: str = ""
    error: str | None = None
    code: Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)] = FAILED
    retryable: bool = False
    traceback: str = ""


_ENCODER = msgspec.json.Encoder()
_ANSWERS = msgspec.json.Decoder(Answer)
_TEXT = msgspec.json.Decoder(str)
# The last one is for lists in lists without end.
_NO_ANSWER = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def request_line(session_id: str, task: Waiting) -> bytes:
    """The line that tells a program of a task, without its end."""
    text, encoding = None, ""
    if task.data is not None:
        try:
            text = task.data.decode()
        except UnicodeDecodeError:
            text, encoding = base64.b64encode(task.data).decode(), "base64"
    return _ENCODER.encode(Request(session_id, task.task_id, task.attempt, text, encoding))


def read_answers(lines: bytes) -> tuple[Sequence[Answer], str]:
    """The answers in whole lines, up to the first line that is none; and what is wrong with that one, or nothing."""
    try:
        return cast("Sequence[Answer]", _ANSWERS.decode_lines(lines)), ""
    except _NO_ANSWER:
        found: list[Answer] = []
        for line in filter(bytes.strip, lines.split(b"\n")):
            try:
                found.append(_ANSWERS.decode(line))
            except _NO_ANSWER as error:
                return found, f"it wrote a line to stdout that is no answer ({error}): {_shown(line)}"
        return found, ""


def output_of(answer: Answer) -> bytes | None:
    """The bytes that an answer stands for. Raises ValueError when its encoding is wrong."""
    raw = bytes(answer.output)
    if raw == b"null":
        return None
    if not raw.startswith(b'"'):
        if answer.encoding:
            raise ValueError("an output with an encoding must be text")
        return raw
    text: str = _TEXT.decode(raw)
    if not answer.encoding:
        return text.encode()
    if answer.encoding != "base64":
        raise ValueError(f"unknown encoding {answer.encoding[:20]!r}; write base64, or leave it out")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"the output is not base64: {error}") from None


def tasks_ahead(mean_ns: float, concurrency: int) -> int:
    """How many tasks a program may have at once when one takes so long: about two milliseconds of work. So one that is
    quick need not wait for us, and those behind a slow one can still be taken back."""
    return max(concurrency, min(_MAX_AHEAD, int(_AHEAD_NS / max(mean_ns, 1))))


class LinesStream(asyncio.Protocol):
    """Talks with one program; stream and dialect in one, since there is nothing to wait for between the two."""

    ends_by_itself = True

    def __init__(self, owner: Owner, session_id: str, max_payload: int, concurrency: int) -> None:
        self.owner = owner
        self.concurrency = concurrency
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._session_id = session_id
        self._max_payload = max_payload
        self._max_line = 2 * max_payload + _LINE_SLACK
        self._backlog = Backlog()
        self._given: dict[int, int] = {}  # tasks that the program has, and their attempts
        self._limit = concurrency
        self._mean_ns = 0.0
        self._since = 0  # when the program began with what it has; monotonic ns
        self._entered = self._blocked = self._leaving = False
        self._deaf = False
        self._partial: list[bytes] = []
        self._partial_size = 0
        self._transport: asyncio.Transport

    # --- Stream ----------------------------------------------------------------------------------------------------

    def make(self) -> asyncio.Protocol:
        return self

    async def ready(self) -> LinesStream:
        return self

    def last_call(self) -> None:
        self.resume()

    # --- asyncio.Protocol ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=_PORTION)

    def pause_writing(self) -> None:
        self._blocked = True

    def resume_writing(self) -> None:
        self._blocked = False
        self._pump()

    def data_received(self, data: bytes) -> None:
        end = data.rfind(b"\n") + 1
        if not end:
            self._partial.append(data)
            self._partial_size += len(data)
            if self._partial_size > self._max_line:
                size = f"{self._max_line} bytes, twice cluster.limits.max_payload"
                self._break(f"it wrote a line to stdout that is longer than {size}")
            return
        lines = b"".join([*self._partial, data[:end]]) if self._partial else data[:end]
        rest = data[end:]
        self._partial, self._partial_size = ([rest], len(rest)) if rest else ([], 0)
        self._answered(lines)

    def eof_received(self) -> None:
        if self._partial:
            lines, self._partial = b"".join(self._partial), []
            self._answered(lines)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.over.done():
            self.over.set_result(None)
        if not self._leaving:
            self._break(f"it closed its stdout ({loss(exc).message})")

    @property
    def unread(self) -> int:
        return self._backlog.size + self._transport.get_write_buffer_size()

    # --- Dialect ---------------------------------------------------------------------------------------------------

    async def enter(self, context: shim_pb2.SessionContext) -> types_pb2.Result:
        self._entered = True
        return types_pb2.Result()

    async def leave(self) -> None:
        """Close its stdin; returns when it has said all that it had to say."""
        self._leaving = True
        self._backlog.clear()
        if self._transport.can_write_eof() and not self._transport.is_closing():
            self._transport.write_eof()
        await asyncio.shield(self.over)

    def tasks(self, body: bytes) -> None:
        self._backlog.add(body)
        self._pump()

    def cancel(self, body: bytes) -> None:
        answers = self._backlog.cancelled(link_pb2.Cancel.FromString(body))
        if answers:
            self.owner.results(answers.wire())

    def retract(self, body: bytes) -> None:
        self.owner.retracted(self._backlog.retracted(body, len(self._given)))

    def pause(self) -> None:
        self._transport.pause_reading()

    def resume(self) -> None:
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def close(self) -> None:
        self._deaf = True
        self._transport.abort()

    # --- inside ----------------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        """Write tasks as far ahead as the program is quick and the socket has room."""
        backlog = self._backlog
        while backlog and not self._blocked and not self._leaving and len(self._given) < self._limit:
            if not self._given:
                self._since = time.monotonic_ns()
            lines: list[bytes] = []
            size = 0
            while backlog and len(self._given) < self._limit and size < _PORTION:
                task = backlog.take()
                self._given[task.task_id] = task.attempt
                line = request_line(self._session_id, task)
                size += len(line)
                lines.append(line)
            lines.append(b"")
            self._transport.write(b"\n".join(lines))

    def _answered(self, lines: bytes) -> None:
        if self._deaf:
            return
        found, fault = read_answers(lines)
        answers, stray = self._settled(found)
        if answers:
            now = time.monotonic_ns()
            elapsed, self._since = now - self._since, now
            mean = elapsed / len(answers)
            self._mean_ns = (3 * self._mean_ns + mean) / 4 if self._mean_ns else mean
            self._limit = tasks_ahead(self._mean_ns, self.concurrency)
            self.owner.results(answers.wire(elapsed * min(self.concurrency, len(answers)) // 1000))
        if stray or fault:
            self._break(stray or fault)
        elif answers:
            self._pump()

    def _settled(self, found: Sequence[Answer]) -> tuple[Answers, str]:
        """What came of the tasks that are answered here, up to one that it does not have, which is then said."""
        answers = Answers()
        for answer in found:
            try:
                task_id = int(answer.task_id)
                attempt = self._given.pop(task_id)
            except (KeyError, ValueError):
                return answers, f"it answered for task {repr(answer.task_id)[:_SHOWN]}, which it does not have"
            if answer.error is not None:
                answers.failed(
                    task_id,
                    attempt,
                    answer.code or FAILED,
                    answer.error,
                    retryable=answer.retryable,
                    traceback=answer.traceback,
                )
                continue
            try:
                output = output_of(answer)
            except ValueError as error:
                answers.failed(task_id, attempt, FAILED, str(error))
            else:
                answers.succeeded(task_id, attempt, output, self._max_payload)
        return answers, ""

    def _break(self, why: str) -> None:
        """It does not keep to its contract: what else it says is nonsense."""
        if not self._deaf:
            self._deaf = True
            self._partial.clear()
            self.owner.broken(why)


def _shown(line: Any) -> str:
    text = repr(line[:_SHOWN].decode(errors="replace"))
    return f"{text} and {len(line) - _SHOWN} bytes more" if len(line) > _SHOWN else text

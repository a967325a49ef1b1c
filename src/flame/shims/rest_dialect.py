"""Tasks as HTTP requests: how the rest shim talks with a service that is ready.

Of a service that knows nothing of sessions, 404, 405 and 501 are good answers to `/session/enter` and
`/session/leave`. A call can't be interrupted over HTTP: a cancelled one is hung up, and its task has ended when the
service answers again.
"""

from __future__ import annotations

import asyncio
import io
import time
from typing import TYPE_CHECKING, cast

import msgspec

from flame.proto import link_pb2, shim_pb2, types_pb2
from flame.shims.backlog import FAILED, Answers, Backlog, Waiting, names, too_large
from flame.shims.shim import Owner

if TYPE_CHECKING:
    import aiohttp

ENTER, LEAVE = "/session/enter", "/session/leave"
NOT_THERE = (404, 405, 501)
_BUSY = (429, 503)
_NO_CONTENT = 204
_MAX_TEXT = 16 * 1024
_LARGE = 1 << 20  # from here on aiohttp wants a file, which it sends in pieces


class Pages(msgspec.Struct, frozen=True):
    """Where the service does what: its readiness is asked with GET, a task is a POST."""

    ready: str
    invoke: str


class RestDialect:
    """Talks with one service. `http` sends to that service only, and is closed by who made it."""

    ends_by_itself = False

    def __init__(
        self, http: aiohttp.ClientSession, owner: Owner, pages: Pages, max_payload: int, concurrency: int
    ) -> None:
        self.owner = owner
        self.concurrency = concurrency
        self._http = http
        self._pages = pages
        self._max_payload = max_payload
        self._session = ""
        self._backlog = Backlog()
        self._workers: set[asyncio.Task[None]] = set()
        self._calls: dict[int, asyncio.Task[Answers]] = {}  # by task id
        self._sent = 0  # bytes of inputs of those
        self._readers = Readers(2 * max_payload)
        self._sentences: dict[int, link_pb2.Cancel] = {}
        self._paused = self._deaf = False

    async def enter(self, context: shim_pb2.SessionContext) -> types_pb2.Result:
        self._session = context.session_id
        return await self._tell(ENTER, context.common_data if context.HasField("common_data") else None)

    async def leave(self) -> None:
        """Begin no further task; returns when those that run have ended and the service knows."""
        self._backlog.clear()
        if self._workers:
            await asyncio.wait(self._workers)
        await self._tell(LEAVE, None)

    @property
    def unread(self) -> int:
        return self._backlog.size + self._sent

    def tasks(self, body: bytes) -> None:
        self._backlog.add(body)
        self._fill()

    def cancel(self, body: bytes) -> None:
        cancel = link_pb2.Cancel.FromString(body)
        answers = self._backlog.cancelled(cancel)
        if answers:
            self.owner.results(answers.wire())
        for task_id, call in self._calls.items():
            if names(cancel, task_id) and task_id not in self._sentences:
                self._sentences[task_id] = cancel
                call.cancel()

    def retract(self, body: bytes) -> None:
        self.owner.retracted(self._backlog.retracted(body, len(self._calls)))

    def pause(self) -> None:
        """Begin no further task for now."""
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        self._fill()

    def close(self) -> None:
        self._deaf = True
        self._backlog.clear()
        for running in (*self._workers, *self._calls.values()):
            running.cancel()

    # --- calls -----------------------------------------------------------------------------------------------------

    def _fill(self) -> None:
        """As many workers as there are tasks and leave."""
        wanted = min(self.concurrency, len(self._backlog) + len(self._calls))
        while len(self._workers) < wanted and not self._paused and not self._deaf:
            worker = asyncio.get_running_loop().create_task(self._work())
            self._workers.add(worker)

    async def _work(self) -> None:
        """Run one task after another while there are some."""
        try:
            while self._backlog and not self._paused and not self._deaf:
                await self._run(self._backlog.take())
        finally:
            # Here, not in a callback later: tasks may come in between.
            self._workers.discard(cast("asyncio.Task[None]", asyncio.current_task()))

    async def _run(self, task: Waiting) -> None:
        began = time.monotonic_ns()
        self._sent += len(task.data or b"")
        call = self._calls[task.task_id] = asyncio.get_running_loop().create_task(self._invoke(task))
        try:
            await asyncio.wait({call})
            answers = await self._outcome(task, call)
        finally:
            del self._calls[task.task_id]
            self._sent -= len(task.data or b"")
            self._sentences.pop(task.task_id, None)
        if answers and not self._deaf:
            self.owner.results(answers.wire((time.monotonic_ns() - began) // 1000))

    async def _outcome(self, task: Waiting, call: asyncio.Task[Answers]) -> Answers:
        """The answer of a call that is over; none when the service is lost."""
        import aiohttp

        try:
            if not call.cancelled():
                return call.result()
            answers = Answers()
            async with self._http.get(self._pages.ready, allow_redirects=False):
                pass
            answers.stopped(task.task_id, task.attempt, self._sentences[task.task_id])
            return answers
        except aiohttp.ClientError as error:
            if not self._deaf:
                self._deaf = True
                self.owner.broken(f"the call of task {task.task_id} was lost: {describe(error)}")
            return Answers()

    async def _invoke(self, task: Waiting) -> Answers:
        headers = self._headers()
        headers["X-Flame-Task-Id"] = str(task.task_id)
        headers["X-Flame-Attempt"] = str(task.attempt)
        if task.data is None:
            headers["X-Flame-No-Input"] = "1"
        answers, limit = Answers(), self._max_payload
        content = task.data or b""
        data = io.BytesIO(content) if len(content) > _LARGE else content
        async with self._http.post(self._pages.invoke, data=data, headers=headers, allow_redirects=False) as response:
            status = response.status
            if status // 100 != 2:
                retryable = status in _BUSY or "Retry-After" in response.headers
                answers.failed(task.task_id, task.attempt, status, await _refusal(response), retryable=retryable)
                return answers
            said = response.content_length or 0
            output = await self._readers.read(response, limit) if said <= limit else b""
            if said > limit or len(output) > limit:
                response.close()
                message = too_large(said, limit) if said > limit else too_large(limit, limit, at_least=True)
                answers.failed(task.task_id, task.attempt, FAILED, message)
            else:
                answers.succeeded(task.task_id, task.attempt, None if status == _NO_CONTENT else output, limit)
            return answers

    async def _tell(self, page: str, data: bytes | None) -> types_pb2.Result:
        """Tell the service of its session."""
        import aiohttp

        headers = self._headers()
        if data is None:
            headers["X-Flame-No-Input"] = "1"
        content = io.BytesIO(data or b"") if len(data or b"") > _LARGE else data or b""
        try:
            async with self._http.post(page, data=content, headers=headers, allow_redirects=False) as response:
                if response.status // 100 == 2 or response.status in NOT_THERE:
                    return types_pb2.Result()
                message = f"POST {page}: {await _refusal(response)}"
                return types_pb2.Result(return_code=response.status, message=message)
        except aiohttp.ClientError as error:
            return types_pb2.Result(return_code=FAILED, message=f"POST {page}: {describe(error)}")

    def _headers(self) -> dict[str, str]:
        return {"X-Flame-Session-Id": self._session, "Content-Type": "application/octet-stream"}


def describe(error: Exception) -> str:
    """A failure of the connection in words."""
    return str(error) or type(error).__name__


class Readers:
    """Those who read answers of one service. When what they have, and is not complete, is more than `most` bytes, only
    the first of them reads on: a service may begin many answers and end none."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._sizes: dict[object, int] = {}  # by reader, in the order in which they began
        self._total = 0
        self._room = asyncio.Event()

    async def read(self, response: aiohttp.ClientResponse, limit: int) -> bytes:
        """The body, however it comes; a little of what is beyond `limit`."""
        pieces: list[bytes] = []
        reader = object()
        self._sizes[reader] = 0
        try:
            async for piece in response.content.iter_any():
                pieces.append(piece)
                self._sizes[reader] += len(piece)
                self._total += len(piece)
                if self._sizes[reader] > limit:
                    break
                while self._total > self._most and next(iter(self._sizes)) is not reader:
                    self._room.clear()
                    await self._room.wait()
        finally:
            self._total -= self._sizes.pop(reader)
            self._room.set()
        return b"".join(pieces)


async def _refusal(response: aiohttp.ClientResponse) -> str:
    """The status and the text of an answer that is no success."""
    text = (await Readers(_MAX_TEXT).read(response, _MAX_TEXT))[:_MAX_TEXT].decode(errors="replace").strip()
    words = f"HTTP {response.status} {response.reason or ''}".strip()
    return f"{words}: {text}" if text else words

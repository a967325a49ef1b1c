"""`flame.v1.Instance` over gRPC: services written with other SDKs.

Such an instance knows no batches: what it shall run waits here, and one call is made at a time. A running call can't
be interrupted; an instance whose cancelled task does not end by itself is killed by its executor.
"""

# The stubs of grpc leave type arguments out.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownLambdaType=false

from __future__ import annotations

import asyncio
import importlib
import time
from collections import deque
from itertools import repeat
from typing import TYPE_CHECKING, Any

from flame.link import FRAME_SLACK
from flame.model.states import BindCode
from flame.proto import link_pb2, shim_pb2, types_pb2
from flame.shims.reception import Arrival
from flame.shims.shim import BindError, Owner

if TYPE_CHECKING:
    import grpc.aio

_SERVICE = "/flame.v1.Instance/"
# A failure of the connection, not an answer of the service.
_LOST = {"UNAVAILABLE", "CANCELLED", "DEADLINE_EXCEEDED", "ABORTED"}
_FAILED = -1


async def connect(arrival: Arrival, owner: Owner, max_payload: int) -> GrpcDialect:
    """A dialect for the service that has made its socket; returns when it accepts calls. Raises BindError when what it
    made is none, or is gone."""
    try:
        path = arrival.address()
    except FileNotFoundError:
        raise BindError(BindCode.START, "the instance took its socket away again") from None
    # The import takes longer than starting an instance: not in the event loop.
    await asyncio.to_thread(importlib.import_module, "grpc.aio")
    import grpc.aio

    options: list[tuple[str, Any]] = [
        # Servers on hyper refuse the percent-encoded path that C-core takes as authority.
        ("grpc.default_authority", "localhost"),
        ("grpc.max_receive_message_length", max_payload + FRAME_SLACK),
        ("grpc.max_send_message_length", -1),
        # The socket's file exists a moment before the server listens.
        ("grpc.initial_reconnect_backoff_ms", 20),
        ("grpc.min_reconnect_backoff_ms", 20),
        ("grpc.max_reconnect_backoff_ms", 200),
        ("grpc.enable_http_proxy", 0),
    ]
    channel = grpc.aio.insecure_channel(f"unix:{path}", options=options)
    try:
        await channel.channel_ready()
    except BaseException:
        await channel.close(None)
        raise
    return GrpcDialect(channel, owner, max_payload)


class GrpcDialect:
    """Talks with one instance. `concurrency` is always 1."""

    ends_by_itself = False

    def __init__(self, channel: grpc.aio.Channel, owner: Owner, max_payload: int) -> None:
        self.concurrency = 1
        self._channel = channel
        self.owner = owner
        self._max_payload = max_payload
        self._session = ""
        self._queue: deque[tuple[int, bytes | None, int]] = deque()
        self._calling = False  # whether a task runs
        self._work = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._enter = self._method("OnSessionEnter", types_pb2.Result)
        self._invoke = self._method("OnTaskInvoke", types_pb2.TaskResult)
        self._leave = self._method("OnSessionLeave", types_pb2.Result)

    def _method(self, name: str, reply: Any) -> Any:
        return self._channel.unary_unary(
            _SERVICE + name,
            request_serializer=lambda request: request.SerializeToString(),
            response_deserializer=reply.FromString,
        )

    async def enter(self, context: shim_pb2.SessionContext) -> types_pb2.Result:
        import grpc.aio

        try:
            result: types_pb2.Result = await self._enter(context)
        except grpc.aio.AioRpcError as error:
            return types_pb2.Result(return_code=_FAILED, message=_describe(error))
        self._session = context.session_id
        self._worker = asyncio.get_running_loop().create_task(self._run())
        return result

    async def leave(self) -> None:
        import grpc.aio

        self._queue.clear()
        try:
            await self._leave(types_pb2.EmptyRequest())
        except grpc.aio.AioRpcError:
            pass  # it is stopped in any case

    @property
    def unread(self) -> int:
        return sum(len(data or b"") for _, data, _ in self._queue)

    def tasks(self, body: bytes) -> None:
        tasks = link_pb2.Tasks.FromString(body)
        inputs: list[bytes | None] = list(tasks.inputs)
        for index in tasks.absent:
            inputs[index] = None
        self._queue.extend(zip(tasks.task_ids, inputs, tasks.attempts or repeat(1), strict=False))
        self._work.set()

    def cancel(self, body: bytes) -> None:
        cancel = link_pb2.Cancel.FromString(body)
        kept: deque[tuple[int, bytes | None, int]] = deque()
        for item in self._queue:
            if any(wanted.first <= item[0] <= wanted.last for wanted in cancel.task_ids):
                state = types_pb2.Failed if cancel.timed_out else types_pb2.Cancelled
                self._fail(item[0], item[2], _FAILED, cancel.reason, state=state, retryable=cancel.timed_out)
            else:
                kept.append(item)
        self._queue = kept

    def retract(self, body: bytes) -> None:
        keep = link_pb2.Retract.FromString(body).keep
        given: list[int] = []
        while self._queue and len(self._queue) + self._calling > keep:
            given.append(self._queue.pop()[0])
        given.reverse()
        self.owner.retracted(link_pb2.Retracted(task_ids=given).SerializeToString())

    def pause(self) -> None:
        """One result at a time is little enough."""

    def resume(self) -> None:
        pass

    def close(self) -> None:
        if self._worker is not None:
            self._worker.cancel()
        self._closing = asyncio.get_running_loop().create_task(self._channel.close(None))

    async def _run(self) -> None:
        """Run what is queued, one after another, until the instance is lost or closed."""
        import grpc.aio

        while True:
            while not self._queue:
                self._work.clear()
                await self._work.wait()
            task_id, data, attempt = self._queue.popleft()
            request = shim_pb2.TaskContext(task_id=str(task_id), session_id=self._session, input=data)
            started = time.monotonic_ns()
            self._calling = True
            try:
                result: types_pb2.TaskResult = await self._invoke(request)
            except grpc.aio.AioRpcError as error:
                if error.code().name in _LOST:
                    self.owner.broken(f"the call of task {task_id} was lost: {_describe(error)}")
                    return
                text = _describe(error)
                if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                    text += f"; the limit is {self._max_payload} bytes (cluster.limits.max_payload)"
                self._fail(task_id, attempt, _FAILED, text)
                continue
            finally:
                self._calling = False
            busy_us = (time.monotonic_ns() - started) // 1000
            size = len(result.output)
            if result.return_code:
                self._fail(task_id, attempt, result.return_code, result.message, busy_us=busy_us)
            elif size > self._max_payload:
                limit = f"{self._max_payload} bytes (cluster.limits.max_payload)"
                self._fail(task_id, attempt, _FAILED, f"the output of {size} bytes is over the limit of {limit}")
            else:
                results = link_pb2.Results(task_ids=[task_id], outputs=[result.output], busy_us=busy_us)
                if not result.HasField("output"):
                    results.absent.append(0)
                self._answer(results, attempt)

    def _fail(
        self,
        task_id: int,
        attempt: int,
        code: int,
        message: str,
        *,
        state: types_pb2.TaskState = types_pb2.Failed,
        retryable: bool = False,
        busy_us: int = 0,
    ) -> None:
        failure = link_pb2.Failure(state=state, code=code, message=message, retryable=retryable)
        results = link_pb2.Results(task_ids=[task_id], outputs=[b""], absent=[0], failures=[failure], busy_us=busy_us)
        self._answer(results, attempt)

    def _answer(self, results: link_pb2.Results, attempt: int) -> None:
        if attempt != 1:
            results.attempts.append(attempt)
        self.owner.results(results.SerializeToString())


def _describe(error: grpc.aio.AioRpcError) -> str:
    return f"{error.details() or 'no details'} ({error.code().name})"

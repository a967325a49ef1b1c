"""The other dialect: `flame.v1.Instance` over gRPC, for executor managers that do not speak the instance link.

They call one handler at a time and stop the instance with a signal. Coroutines run in an event loop in the main
thread, ordinary handlers in the threads of the gRPC server.
"""

# The stubs of grpc leave type arguments out.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportMissingTypeArgument=false
# pyright: reportUnknownParameterType=false, reportUnknownLambdaType=false

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from flame.objects.parcels import limit_of
from flame.proto import shim_pb2, types_pb2
from flame.service.api import FlameService, TaskContext
from flame.service.incoming import begin_session
from flame.service.outcome import CODE, describe, log_traceback, output_fault, sendable
from flame.service.wire import DEFAULT_MAX_PAYLOAD

_THREADS = 10
_UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class InstanceServicer:
    """The three calls of the service. Exceptions of the handlers become return code -1 with their text."""

    def __init__(self, service: FlameService, loop: asyncio.AbstractEventLoop, max_payload: int) -> None:
        self._service = service
        self._loop = loop
        self._max_payload = max_payload
        self._parcel_from = limit_of(max_payload)

    def on_session_enter(self, request: shim_pb2.SessionContext, _: grpc.ServicerContext) -> types_pb2.Result:
        try:
            self._call(self._service.on_session_enter, begin_session(request))
        except Exception as error:
            log_traceback(error)
            return types_pb2.Result(return_code=CODE, message=describe(error))
        return types_pb2.Result()

    def on_task_invoke(self, request: shim_pb2.TaskContext, _: grpc.ServicerContext) -> types_pb2.TaskResult:
        data = request.input if request.HasField("input") else None
        try:
            returned = self._call(self._service.on_task_invoke, TaskContext(request.task_id, request.session_id, data))
            output: Any = sendable(returned, self._parcel_from)
        except Exception as error:
            log_traceback(error)
            return types_pb2.TaskResult(return_code=CODE, message=describe(error))
        fault = output_fault(output, self._max_payload)
        if fault:
            return types_pb2.TaskResult(return_code=CODE, message=fault)
        return types_pb2.TaskResult(output=output)

    def on_session_leave(self, request: types_pb2.EmptyRequest, _: grpc.ServicerContext) -> types_pb2.Result:
        try:
            self._call(self._service.on_session_leave)
        except Exception as error:
            log_traceback(error)
            return types_pb2.Result(return_code=CODE, message=describe(error))
        return types_pb2.Result()

    def _call(self, handler: Callable[..., Any], *arguments: object) -> Any:
        returned = handler(*arguments)
        if isinstance(returned, Coroutine):
            return asyncio.run_coroutine_threadsafe(returned, self._loop).result()  # pyright: ignore[reportUnknownArgumentType]
        return returned


def serve(service: FlameService, path: str) -> None:
    """Serve at the unix socket `path` until the process is told to end."""
    loop = asyncio.new_event_loop()
    preparing = service.on_prepare()
    if preparing is not None:
        loop.run_until_complete(_finished(preparing))
    max_payload = int(os.environ.get("FLAME_MAX_PAYLOAD") or DEFAULT_MAX_PAYLOAD)
    servicer = InstanceServicer(service, loop, max_payload)
    server = grpc.server(ThreadPoolExecutor(_THREADS, "flame-call"), options=_UNLIMITED)
    server.add_generic_rpc_handlers((_handlers(servicer),))
    server.add_insecure_port(f"unix:{path}")
    server.start()
    try:
        loop.run_forever()
    finally:
        server.stop(grace=None).wait()
        loop.close()


async def _finished(work: Awaitable[None]) -> None:
    await work


def _handlers(servicer: InstanceServicer) -> grpc.GenericRpcHandler:
    calls = {
        "OnSessionEnter": (servicer.on_session_enter, shim_pb2.SessionContext),
        "OnTaskInvoke": (servicer.on_task_invoke, shim_pb2.TaskContext),
        "OnSessionLeave": (servicer.on_session_leave, types_pb2.EmptyRequest),
    }
    return grpc.method_handlers_generic_handler(
        "flame.v1.Instance",
        {
            name: grpc.unary_unary_rpc_method_handler(
                handler,
                request_deserializer=request.FromString,
                response_serializer=lambda reply: reply.SerializeToString(),
            )
            for name, (handler, request) in calls.items()
        },
    )

"""The calls of `flame.v1.Frontend`. One method per call; links and gRPC serve the same ones.

Foreign clients speak the first eighteen: what is an error there, and which, follows the contract they know.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple, TypeVar

from google.protobuf.message import DecodeError, Message

from flame.engine import cluster_views, views
from flame.engine import events as ev
from flame.manager import cluster_wire, wire
from flame.manager.clients import too_large
from flame.manager.json_schema import check_json_schema
from flame.manager.log_reader import LogReader
from flame.manager.payloads import Payloads
from flame.manager.session_list import list_sessions
from flame.manager.task_reader import TaskReader
from flame.manager.turns import Turns
from flame.manager.watches import Watches
from flame.model.errors import FlameError, InvalidArgumentError, NotFoundError
from flame.model.specs import NO_OPTIONS
from flame.model.states import SessionState, TaskState
from flame.proto import frontend_pb2 as pb
from flame.proto import link_pb2, types_pb2, values
from flame.security import Identity, authorize

M = TypeVar("M", bound=Message)
WATCH_PAUSE_S = 0.05
SHORT_S = 0.02


class Method(NamedTuple):
    """One call: its request message, and what serves it (a coroutine function or an async generator function)."""

    request: type[Message]
    handler: Callable[[Any], Any]
    streams: bool = False


class Frontend:
    """All calls. Handlers raise FlameError; whoever serves them turns it into the error of its carrier."""

    def __init__(
        self,
        turns: Turns,
        payloads: Payloads,
        watches: Watches,
        logs: LogReader,
        cluster: Callable[[], pb.ClusterInfo],
        *,
        max_payload: int,
    ) -> None:
        self._turns = turns
        self._engine = turns.engine
        self._watches = watches
        self._tasks = TaskReader(turns, payloads)
        self._logs = logs
        self._cluster = cluster
        self._max_payload = max_payload
        self.methods: dict[str, Method] = {
            "RegisterApplication": Method(pb.RegisterApplicationRequest, self.register_application),
            "UnregisterApplication": Method(pb.UnregisterApplicationRequest, self.unregister_application),
            "UpdateApplication": Method(pb.UpdateApplicationRequest, self.update_application),
            "GetApplication": Method(pb.GetApplicationRequest, self.get_application),
            "ListApplication": Method(pb.ListApplicationRequest, self.list_applications),
            "ListExecutor": Method(pb.ListExecutorRequest, self.list_executors),
            "GetExecutor": Method(pb.GetExecutorRequest, self.get_executor),
            "ListNodes": Method(pb.ListNodesRequest, self.list_nodes),
            "GetNode": Method(pb.GetNodeRequest, self.get_node),
            "GetCluster": Method(pb.GetClusterRequest, self.get_cluster),
            "CreateSession": Method(pb.CreateSessionRequest, self.create_session),
            "DeleteSession": Method(pb.DeleteSessionRequest, self.delete_session),
            "OpenSession": Method(pb.OpenSessionRequest, self.open_session),
            "CloseSession": Method(pb.CloseSessionRequest, self.close_session),
            "GetSession": Method(pb.GetSessionRequest, self.get_session),
            "ListSession": Method(pb.ListSessionRequest, self.list_sessions),
            "WatchSession": Method(pb.WatchSessionRequest, self.watch_session, streams=True),
            "CreateTask": Method(pb.CreateTaskRequest, self.create_task),
            "GetTask": Method(pb.GetTaskRequest, self.get_task),
            "WatchTask": Method(pb.WatchTaskRequest, self.watch_task, streams=True),
            "ListTask": Method(pb.ListTaskRequest, self.list_tasks, streams=True),
            "CancelTask": Method(pb.CancelTaskRequest, self.cancel_tasks),
            "GetLogs": Method(pb.GetLogsRequest, self.get_logs, streams=True),
            "Explain": Method(pb.ExplainRequest, self.explain),
            "CreateTenant": Method(pb.CreateTenantRequest, self.create_tenant),
            "UpdateTenant": Method(pb.UpdateTenantRequest, self.update_tenant),
            "DeleteTenant": Method(pb.DeleteTenantRequest, self.delete_tenant),
            "GetTenant": Method(pb.GetTenantRequest, self.get_tenant),
            "ListTenants": Method(pb.ListTenantsRequest, self.list_tenants),
            "MarkNode": Method(pb.MarkNodeRequest, self.mark_node),
        }

    # --- serving -----------------------------------------------------------------------------------------------------

    def unary(self, name: str, request: Any, identity: Identity) -> Awaitable[Message]:
        """Answer a call that has one response. Raises FlameError, also when awaited."""
        self._admit(name, request, identity)
        if name == "OpenSession" and identity.session_id:
            request.ClearField("session")  # an instance opens its session, it makes none
        return self.methods[name].handler(request)

    def streaming(self, name: str, request: Any, identity: Identity) -> AsyncIterator[Message]:
        """Answer a call that has many responses. Raises FlameError, also when iterated."""
        self._admit(name, request, identity)
        return self.methods[name].handler(request)

    def serve_bytes(self, name: str, body: bytes, identity: Identity) -> Awaitable[bytes] | AsyncIterator[bytes]:
        """The same with requests and responses as bytes, as links carry them."""
        method = self.methods.get(name)
        if method is None:
            raise NotFoundError(f"no method {name!r} here")
        try:
            request = method.request.FromString(body)
        except DecodeError:
            raise InvalidArgumentError(f"the request of {name} is no {method.request.DESCRIPTOR.name}") from None
        if method.streams:
            return _each_to_bytes(self.streaming(name, request, identity))
        return _to_bytes(self.unary(name, request, identity))

    def _admit(self, name: str, request: Any, identity: Identity) -> None:
        if name == "CreateTask":
            session_id = request.task.session_id
        else:
            session_id = getattr(request, "session_id", "")
        authorize(identity, name, session_id)

    # --- applications ------------------------------------------------------------------------------------------------

    async def register_application(self, request: pb.RegisterApplicationRequest) -> types_pb2.Result:
        spec = _application_spec(request)
        return await self._result(lambda ticket: ev.RegisterApplication(ticket, request.name, spec))

    async def update_application(self, request: pb.UpdateApplicationRequest) -> types_pb2.Result:
        spec = _application_spec(request)
        return await self._result(lambda ticket: ev.UpdateApplication(ticket, request.name, spec))

    async def unregister_application(self, request: pb.UnregisterApplicationRequest) -> types_pb2.Result:
        return await self._result(lambda ticket: ev.UnregisterApplication(ticket, request.name))

    async def _result(self, make: Callable[[int], ev.Event]) -> types_pb2.Result:
        try:
            await self._turns.ask(make)
        except FlameError as error:
            return types_pb2.Result(
                return_code=-1, message=error.message, error_code=int(error.code), remedy=error.remedy
            )
        return types_pb2.Result(return_code=0)

    async def get_application(self, request: pb.GetApplicationRequest) -> types_pb2.Application:
        return wire.application_message(views.application(self._engine, request.name))

    async def list_applications(self, request: pb.ListApplicationRequest) -> types_pb2.ApplicationList:
        del request
        found = [wire.application_message(view) for view in views.applications(self._engine)]
        return types_pb2.ApplicationList(applications=found)

    # --- the cluster -------------------------------------------------------------------------------------------------

    async def list_executors(self, request: pb.ListExecutorRequest) -> types_pb2.ExecutorList:
        found = cluster_views.executors(self._engine, request.session_id, request.node)
        return types_pb2.ExecutorList(executors=[cluster_wire.executor_message(view) for view in found])

    async def get_executor(self, request: pb.GetExecutorRequest) -> types_pb2.Executor:
        for view in cluster_views.executors(self._engine):
            if view.id == request.executor_id:
                return cluster_wire.executor_message(view)
        raise NotFoundError(f"executor <{request.executor_id}> not found")

    async def list_nodes(self, request: pb.ListNodesRequest) -> types_pb2.NodeList:
        del request
        return types_pb2.NodeList(nodes=[cluster_wire.node_message(view) for view in cluster_views.nodes(self._engine)])

    async def get_node(self, request: pb.GetNodeRequest) -> pb.GetNodeResponse:
        for view in cluster_views.nodes(self._engine):
            if view.name == request.name:
                return pb.GetNodeResponse(node=cluster_wire.node_message(view))
        raise NotFoundError(f"node <{request.name}> not found")

    async def mark_node(self, request: pb.MarkNodeRequest) -> types_pb2.Node:
        grace = self._engine.settings.preemption_grace_ms
        if request.HasField("grace_ms"):
            grace = request.grace_ms
        view = await self._turns.ask(lambda ticket: ev.MarkNode(ticket, request.name, request.mark, grace))
        return cluster_wire.node_message(view)

    async def get_cluster(self, request: pb.GetClusterRequest) -> pb.ClusterInfo:
        del request
        return self._cluster()

    # --- tenants -----------------------------------------------------------------------------------------------------

    async def create_tenant(self, request: pb.CreateTenantRequest) -> types_pb2.Tenant:
        spec = cluster_wire.tenant_spec_of(request.tenant)
        view = await self._turns.ask(lambda ticket: ev.SetTenant(ticket, request.name, spec))
        return cluster_wire.tenant_message(view)

    async def update_tenant(self, request: pb.UpdateTenantRequest) -> types_pb2.Tenant:
        if not request.HasField("tenant"):
            raise InvalidArgumentError("tenant spec is missed", remedy="send the whole spec, as GetTenant shows it")
        spec = cluster_wire.tenant_spec_of(request.tenant)
        view = await self._turns.ask(lambda ticket: ev.SetTenant(ticket, request.name, spec, create=False))
        return cluster_wire.tenant_message(view)

    async def delete_tenant(self, request: pb.DeleteTenantRequest) -> types_pb2.Tenant:
        return cluster_wire.tenant_message(await self._turns.ask(lambda ticket: ev.DeleteTenant(ticket, request.name)))

    async def get_tenant(self, request: pb.GetTenantRequest) -> types_pb2.Tenant:
        return cluster_wire.tenant_message(cluster_views.tenant(self._engine, request.name))

    async def list_tenants(self, request: pb.ListTenantsRequest) -> types_pb2.TenantList:
        del request
        found = [cluster_wire.tenant_message(view) for view in cluster_views.tenants(self._engine)]
        return types_pb2.TenantList(tenants=found)

    # --- sessions ----------------------------------------------------------------------------------------------------

    async def create_session(self, request: pb.CreateSessionRequest) -> types_pb2.Session:
        if not request.HasField("session"):
            raise InvalidArgumentError("session spec is missed")
        spec = self._session_spec(request.session)
        return wire.session_message(
            await self._turns.ask(lambda ticket: ev.CreateSession(ticket, request.session_id, spec))
        )

    async def open_session(self, request: pb.OpenSessionRequest) -> types_pb2.Session:
        spec = self._session_spec(request.session) if request.HasField("session") else None
        return wire.session_message(
            await self._turns.ask(lambda ticket: ev.OpenSession(ticket, request.session_id, spec))
        )

    def _session_spec(self, message: types_pb2.SessionSpec) -> Any:
        if len(message.common_data) > self._max_payload:
            raise too_large("common data", len(message.common_data), self._max_payload)
        return wire.session_spec_of(message)

    async def close_session(self, request: pb.CloseSessionRequest) -> types_pb2.Session:
        return wire.session_message(
            await self._turns.ask(lambda ticket: ev.CloseSession(ticket, request.session_id, request.force))
        )

    async def delete_session(self, request: pb.DeleteSessionRequest) -> types_pb2.Session:
        return wire.session_message(await self._turns.ask(lambda ticket: ev.DeleteSession(ticket, request.session_id)))

    async def get_session(self, request: pb.GetSessionRequest) -> types_pb2.Session:
        return wire.session_message(views.session(self._engine, request.session_id))

    async def list_sessions(self, request: pb.ListSessionRequest) -> types_pb2.SessionList:
        return list_sessions(self._engine, request)

    async def watch_session(self, request: pb.WatchSessionRequest) -> AsyncIterator[pb.SessionUpdate]:
        """The session as it is, then again with the tasks that changed, until it is closed or gone."""
        session_id = request.session_id
        views.session(self._engine, session_id)
        with self._watches.watch(session_id) as watcher:
            view = views.session(self._engine, session_id)
            while True:
                changes = [self._change(session_id, task_id) for task_id in watcher.changed]
                watcher.changed.clear()
                yield pb.SessionUpdate(session=wire.session_message(view, common_data=False), tasks=changes)
                if view.state is SessionState.CLOSED:
                    return
                await watcher.wait()
                try:
                    view = views.session(self._engine, session_id)
                except NotFoundError:
                    return
                if view.state is SessionState.OPEN:
                    # Not more often than somebody can look: what changes meanwhile is told together.
                    await asyncio.sleep(WATCH_PAUSE_S)

    def _change(self, session_id: str, task_id: int) -> pb.TaskChange:
        view = views.task(self._engine, session_id, task_id)
        return pb.TaskChange(task_id=task_id, state=types_pb2.TaskState.Name(view.state), attempt=view.attempt)

    async def get_logs(self, request: pb.GetLogsRequest) -> AsyncIterator[pb.LogChunk]:
        async for chunk in self._logs.read(request):
            yield chunk

    async def explain(self, request: pb.ExplainRequest) -> pb.Explanation:
        task_id = _task_id(request.task_id) if request.task_id else 0
        view = views.explain(self._engine, request.session_id, task_id)
        return pb.Explanation(
            summary=view.summary,
            reasons=[
                pb.Reason(rule=rule, object=thing, message=message, remedy=remedy, since=since)
                for rule, thing, message, remedy, since in view.reasons
            ],
            story=wire.event_messages(view.story),
        )

    # --- tasks -------------------------------------------------------------------------------------------------------

    async def create_task(self, request: pb.CreateTaskRequest) -> types_pb2.Task:
        if not request.HasField("task"):
            raise InvalidArgumentError("task spec is missed")
        spec = request.task
        if len(spec.input) > self._max_payload:
            raise too_large("input", len(spec.input), self._max_payload)
        submit = link_pb2.Submit(inputs=(spec.input,))
        if not spec.HasField("input"):
            submit.absent.append(0)
        options = NO_OPTIONS
        if spec.HasField("options"):
            submit.options.CopyFrom(spec.options)
            options = values.options_of(spec.options)
        body = submit.SerializeToString()
        now = self._turns.now()
        first = await self._turns.submit(ev.Submitted(0, spec.session_id, "", 0, 1, body, options))
        return types_pb2.Task(
            metadata=types_pb2.Metadata(id=str(first), name=str(first)),
            spec=types_pb2.TaskSpec(session_id=spec.session_id, input=spec.input if spec.HasField("input") else None),
            status=types_pb2.TaskStatus(creation_time=now),
        )

    async def get_task(self, request: pb.GetTaskRequest) -> types_pb2.Task:
        view = views.task(self._engine, request.session_id, _task_id(request.task_id))
        return await self._tasks.read(view)

    async def watch_task(self, request: pb.WatchTaskRequest) -> AsyncIterator[types_pb2.Task]:
        """Each change of state from Pending on; an ended task is told last. Unknown tasks: nothing.

        That it runs is told only if it still does a moment later: most tasks have ended by then, and one message less
        is half of what watching costs.
        """
        session_id, task_id = request.session_id, _task_id(request.task_id)
        told = TaskState.PENDING
        with self._watches.watch(session_id, task_id) as watcher:
            while True:
                try:
                    view = views.task(self._engine, session_id, task_id)
                except NotFoundError:
                    return
                if view.state.terminal:
                    yield await self._tasks.read(view)
                    return
                if view.state is told:
                    await watcher.wait()
                elif view.state is TaskState.PENDING or not await watcher.changes_within(SHORT_S):
                    told = view.state
                    yield await self._tasks.read(view)

    async def list_tasks(self, request: pb.ListTaskRequest) -> AsyncIterator[types_pb2.Task]:
        found = views.tasks(
            self._engine, request.session_id, tuple(request.states), request.after_task_id, request.limit
        )
        async for task in self._tasks.stream(found, payloads=not request.without_payloads):
            yield task

    async def cancel_tasks(self, request: pb.CancelTaskRequest) -> pb.CancelTaskResponse:
        ranges = [(task_id, task_id) for task_id in sorted(set(request.task_ids))]
        ended = await self._turns.ask(
            lambda ticket: ev.CancelTasks(ticket, request.session_id, ranges, reason=request.reason)
        )
        return pb.CancelTaskResponse(task_ids=ended)


def _application_spec(request: pb.RegisterApplicationRequest | pb.UpdateApplicationRequest) -> Any:
    """The spec in a request. Raises InvalidArgumentError for faults of its form."""
    if not request.HasField("application"):
        raise InvalidArgumentError("application spec is missed")
    spec = values.application_spec_of(request.application)
    if spec.schema is not None:
        texts = (
            ("input", spec.schema.input),
            ("output", spec.schema.output),
            ("common data", spec.schema.common_data),
        )
        for what, text in texts:
            if text is not None:
                try:
                    check_json_schema(text)
                except ValueError as error:
                    raise InvalidArgumentError(f"invalid {what} schema: {error}") from None
    if spec.working_directory and not spec.working_directory.startswith("/"):
        raise InvalidArgumentError(f"working_directory must be an absolute path, got: {spec.working_directory}")
    return spec


def _task_id(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise InvalidArgumentError("invalid task id")
    return int(text)


async def _to_bytes(answer: Awaitable[Message]) -> bytes:
    return (await answer).SerializeToString()


async def _each_to_bytes(answers: AsyncIterator[Message]) -> AsyncIterator[bytes]:
    try:
        async for answer in answers:
            yield answer.SerializeToString()
    finally:
        close = getattr(answers, "aclose", None)
        if close is not None:
            await close()

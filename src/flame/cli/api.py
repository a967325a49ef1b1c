"""The calls of the session manager as plain functions, for commands that run one after another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Protocol, Self, TypeVar

from google.protobuf.message import Message

from flame.cli.options import Settings
from flame.proto import frontend_pb2 as fe
from flame.proto import types_pb2 as ty

M = TypeVar("M", bound=Message)


class Caller(Protocol):
    """An open connection to a cluster."""

    async def call(self, method: str, request: bytes, *, timeout: float | None = None) -> bytes: ...
    def stream(self, method: str, request: bytes) -> AsyncIterator[bytes]: ...
    async def close(self) -> None: ...


class Api:
    """A cluster, as a context manager. Every method is one call of `flame.v1.Frontend` and raises its FlameError."""

    def __init__(self, caller: Caller, runner: asyncio.Runner, timeout: float) -> None:
        self._caller = caller
        self._runner = runner
        self._timeout = timeout
        self._unit: ty.ResourceRequirement | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._runner.run(self._caller.close())
        finally:
            self._runner.close()

    def sleep(self, seconds: float) -> None:
        """Wait, while the connection stays alive."""
        self._runner.run(asyncio.sleep(seconds))

    # --- the cluster, its nodes and executors ----------------------------------------------------------------------

    def cluster(self) -> fe.ClusterInfo:
        return self._call("GetCluster", fe.GetClusterRequest(), fe.ClusterInfo)

    def unit(self) -> ty.ResourceRequirement:
        """The unit request that slots are counted in; asked for once."""
        if self._unit is None:
            self._unit = self.cluster().unit
        return self._unit

    def nodes(self) -> Sequence[ty.Node]:
        return self._call("ListNodes", fe.ListNodesRequest(), ty.NodeList).nodes

    def node(self, name: str) -> ty.Node:
        return self._call("GetNode", fe.GetNodeRequest(name=name), fe.GetNodeResponse).node

    def mark_node(self, name: str, mark: str, grace_ms: int | None = None) -> ty.Node:
        """`cordon`, `drain` or `uncordon` it; `grace_ms` is how long running tasks may go on while it drains."""
        return self._call("MarkNode", fe.MarkNodeRequest(name=name, mark=mark, grace_ms=grace_ms), ty.Node)

    def executors(self, session_id: str = "", node: str = "") -> Sequence[ty.Executor]:
        request = fe.ListExecutorRequest(session_id=session_id, node=node)
        return self._call("ListExecutor", request, ty.ExecutorList).executors

    def executor(self, executor_id: str) -> ty.Executor:
        return self._call("GetExecutor", fe.GetExecutorRequest(executor_id=executor_id), ty.Executor)

    # --- tenants ---------------------------------------------------------------------------------------------------

    def tenants(self) -> Sequence[ty.Tenant]:
        return self._call("ListTenants", fe.ListTenantsRequest(), ty.TenantList).tenants

    def tenant(self, name: str) -> ty.Tenant:
        return self._call("GetTenant", fe.GetTenantRequest(name=name), ty.Tenant)

    def create_tenant(self, name: str, spec: ty.TenantSpec) -> ty.Tenant:
        return self._call("CreateTenant", fe.CreateTenantRequest(name=name, tenant=spec), ty.Tenant)

    def update_tenant(self, name: str, spec: ty.TenantSpec) -> ty.Tenant:
        """Replace its whole specification."""
        return self._call("UpdateTenant", fe.UpdateTenantRequest(name=name, tenant=spec), ty.Tenant)

    def delete_tenant(self, name: str) -> ty.Tenant:
        return self._call("DeleteTenant", fe.DeleteTenantRequest(name=name), ty.Tenant)

    # --- applications ----------------------------------------------------------------------------------------------

    def applications(self) -> Sequence[ty.Application]:
        return self._call("ListApplication", fe.ListApplicationRequest(), ty.ApplicationList).applications

    def application(self, name: str) -> ty.Application:
        return self._call("GetApplication", fe.GetApplicationRequest(name=name), ty.Application)

    def register(self, name: str, spec: ty.ApplicationSpec) -> None:
        request = fe.RegisterApplicationRequest(name=name, application=spec)
        _check(self._call("RegisterApplication", request, ty.Result))

    def update(self, name: str, spec: ty.ApplicationSpec) -> None:
        _check(self._call("UpdateApplication", fe.UpdateApplicationRequest(name=name, application=spec), ty.Result))

    def unregister(self, name: str) -> None:
        _check(self._call("UnregisterApplication", fe.UnregisterApplicationRequest(name=name), ty.Result))

    # --- sessions ------------------------------------------------------------------------------------------------

    def sessions(
        self,
        states: Sequence[ty.SessionState] = (),
        application: str = "",
        labels: Mapping[str, str] | None = None,
        *,
        without_common_data: bool = True,
    ) -> Iterator[ty.Session]:
        """All that match, fetched page by page."""
        token = ""
        while True:
            request = fe.ListSessionRequest(
                states=states,
                application=application,
                labels=labels or {},
                page_size=1000,
                page_token=token,
                without_common_data=without_common_data,
            )
            answer = self._call("ListSession", request, ty.SessionList)
            yield from answer.sessions
            token = answer.next_page_token
            if not token:
                return

    def session(self, session_id: str) -> ty.Session:
        return self._call("GetSession", fe.GetSessionRequest(session_id=session_id), ty.Session)

    def create_session(self, session_id: str, spec: ty.SessionSpec) -> ty.Session:
        return self._call("CreateSession", fe.CreateSessionRequest(session_id=session_id, session=spec), ty.Session)

    def close_session(self, session_id: str, *, force: bool = False) -> ty.Session:
        return self._call("CloseSession", fe.CloseSessionRequest(session_id=session_id, force=force), ty.Session)

    def delete_session(self, session_id: str) -> ty.Session:
        return self._call("DeleteSession", fe.DeleteSessionRequest(session_id=session_id), ty.Session)

    def watch_session(self, session_id: str) -> Iterator[fe.SessionUpdate]:
        return self._stream("WatchSession", fe.WatchSessionRequest(session_id=session_id), fe.SessionUpdate)

    # --- tasks ---------------------------------------------------------------------------------------------------

    def tasks(
        self, session_id: str, states: Sequence[ty.TaskState] = (), limit: int = 0, *, without_payloads: bool = True
    ) -> Iterator[ty.Task]:
        request = fe.ListTaskRequest(
            session_id=session_id, states=states, limit=limit, without_payloads=without_payloads
        )
        return self._stream("ListTask", request, ty.Task)

    def task(self, session_id: str, task_id: str) -> ty.Task:
        return self._call("GetTask", fe.GetTaskRequest(session_id=session_id, task_id=task_id), ty.Task)

    def watch_task(self, session_id: str, task_id: str) -> Iterator[ty.Task]:
        return self._stream("WatchTask", fe.WatchTaskRequest(session_id=session_id, task_id=task_id), ty.Task)

    def cancel_tasks(self, session_id: str, task_ids: Sequence[int], reason: str) -> Sequence[int]:
        """The ids of those that were not finished yet. No ids = all tasks of the session."""
        request = fe.CancelTaskRequest(session_id=session_id, task_ids=task_ids, reason=reason)
        return self._call("CancelTask", request, fe.CancelTaskResponse).task_ids

    # --- what happened ---------------------------------------------------------------------------------------------

    def logs(self, request: fe.GetLogsRequest) -> Iterator[fe.LogChunk]:
        return self._stream("GetLogs", request, fe.LogChunk)

    def explain(self, session_id: str, task_id: str = "") -> fe.Explanation:
        request = fe.ExplainRequest(session_id=session_id, task_id=task_id)
        return self._call("Explain", request, fe.Explanation)

    # --- inside ----------------------------------------------------------------------------------------------------

    def _call(self, method: str, request: Message, reply: type[M]) -> M:
        answer = self._caller.call(method, request.SerializeToString(), timeout=self._timeout)
        return reply.FromString(self._runner.run(answer))

    def _stream(self, method: str, request: Message, reply: type[M]) -> Iterator[M]:
        stream = self._caller.stream(method, request.SerializeToString())

        async def next_one() -> bytes | None:
            return await anext(stream, None)

        while (body := self._runner.run(next_one())) is not None:
            yield reply.FromString(body)


def open_api(settings: Settings) -> Api:
    """Connect to the cluster that the settings mean. Raises FlameError."""
    from flame.cli.connecting import open_caller

    runner = asyncio.Runner()
    try:
        return Api(runner.run(open_caller(settings)), runner, settings.timeout)
    except BaseException:
        runner.close()
        raise


def _check(result: ty.Result) -> None:
    """Calls that change applications answer some faults with a return code."""
    if result.return_code != 0:
        from flame.model.errors import InvalidArgumentError

        raise InvalidArgumentError(result.message or f"the cluster refused: return code {result.return_code}")

"""`AsyncConnection`: the calls of a cluster for asyncio. The synchronous SDK is a facade over it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from datetime import timedelta
from types import EllipsisType
from typing import Any, Self, TypeVar

from google.protobuf.message import Message

from flame.client import wire
from flame.client.async_session import AsyncSession
from flame.client.endpoints import resolve
from flame.client.logs import read_logs
from flame.client.pending import period_of
from flame.client.snapshot import milliseconds
from flame.client.uplink import CALL_TIMEOUT, RECONNECT_TIMEOUT, Uplink
from flame.client.values import (
    Application,
    ApplicationAttributes,
    ClusterInfo,
    Executor,
    Explanation,
    FlameClientTls,
    LogChunk,
    Node,
    ResourceRequirement,
    SessionAttributes,
    Tenant,
    TenantQuota,
    short_name,
)
from flame.model.errors import (
    AlreadyExistsError,
    FlameErrorCode,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
    error_of,
)
from flame.model.states import SessionState
from flame.objects import parcels
from flame.proto import frontend_pb2 as fe
from flame.proto import types_pb2 as ty

M = TypeVar("M", bound=Message)
CONNECT_TIMEOUT = 10.0
_PAGE = 1000


async def connect(
    addr: str | None = None,
    tls_config: FlameClientTls | None = None,
    *,
    timeout: float = CONNECT_TIMEOUT,
    call_timeout: float = CALL_TIMEOUT,
    reconnect_timeout: float | None = RECONNECT_TIMEOUT,
    pending_warning: float | timedelta | EllipsisType | None = ...,
) -> AsyncConnection:
    """Connect to a cluster.

    `addr` is `http://host:port`, `https://host:port`, `unix:/path`, or None: the configured cluster, else the local
    one, which is started when it does not run. All times in seconds: `timeout` for connecting, `call_timeout` for each
    call, `reconnect_timeout` after which everything that waits fails when the cluster is gone (None = never).
    When a session's tasks have waited for `pending_warning` seconds and none runs, the logger `flame.client` warns and
    says why (None = never; by default what FLAME_PENDING_WARNING says, else 5).
    Raises UnavailableError, UnauthenticatedError, InvalidConfigError.
    """
    loop = asyncio.get_running_loop()
    # Reading files and starting a local cluster block; the loop goes on meanwhile.
    endpoint = await loop.run_in_executor(None, resolve, addr, tls_config)
    warning = period_of(pending_warning)
    uplink = Uplink(endpoint, reconnect_timeout=reconnect_timeout, pending_warning=warning)
    await uplink.open(timeout)
    return AsyncConnection(uplink, call_timeout)


class AsyncConnection:
    """A connection to one cluster; made by `connect`. As an async context manager it is closed at the end."""

    def __init__(self, uplink: Uplink, call_timeout: float = CALL_TIMEOUT) -> None:
        self.uplink = uplink
        self.call_timeout = call_timeout

    @property
    def addr(self) -> str:
        """The address that was connected to."""
        return self.uplink.endpoint.text

    @property
    def connected(self) -> bool:
        """Whether the cluster can be reached, as far as is known now. Calls wait until it can."""
        link = self.uplink.link
        return link is not None and not link.closed

    @property
    def max_payload(self) -> int:
        """Bytes that inputs, outputs and common data may have, each. What is larger needs an object cache."""
        return self.uplink.max_payload

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End the connection. Unfinished futures fail here; their tasks go on in the cluster."""
        await self.uplink.close()

    # --- applications ------------------------------------------------------------------------------------------------

    async def register_application(self, name: str, app_attrs: ApplicationAttributes | Mapping[str, Any]) -> None:
        """Raises AlreadyExistsError, InvalidArgumentError."""
        spec = wire.application_to(app_attrs)
        request = fe.RegisterApplicationRequest(name=name, application=spec)
        try:
            await self._change("RegisterApplication", request)
        except UnavailableError as error:
            if not self.uplink.broken(error):
                raise
            await self._register_again(request)

    async def _register_again(self, request: fe.RegisterApplicationRequest) -> None:
        """The connection broke: whether it is registered now, only the cluster knows."""
        try:
            await self._change("RegisterApplication", request)
        except AlreadyExistsError:
            found = await self._call("GetApplication", fe.GetApplicationRequest(name=request.name), ty.Application)
            if found.spec.command != request.application.command or found.spec.url != request.application.url:
                raise

    async def update_application(self, name: str, app_attrs: ApplicationAttributes | Mapping[str, Any]) -> None:
        """Replace the attributes. Raises NotFoundError, InvalidArgumentError, InvalidStateError (open sessions)."""
        request = fe.UpdateApplicationRequest(name=name, application=wire.application_to(app_attrs))
        await self._change("UpdateApplication", request)

    async def unregister_application(self, name: str) -> None:
        """Forget it and its closed sessions; an unknown one is no error. Raises InvalidStateError while it has open
        sessions."""
        await self._change("UnregisterApplication", fe.UnregisterApplicationRequest(name=name))

    async def list_applications(self) -> list[Application]:
        """All registered applications."""
        answer = await self._call("ListApplication", fe.ListApplicationRequest(), ty.ApplicationList)
        return [wire.application_from(message) for message in answer.applications]

    async def get_application(self, name: str) -> Application | None:
        """The application of that name, None when there is none."""
        try:
            message = await self._call("GetApplication", fe.GetApplicationRequest(name=name), ty.Application)
        except NotFoundError:
            return None
        return wire.application_from(message)

    # --- the cluster -------------------------------------------------------------------------------------------------

    async def get_cluster(self) -> ClusterInfo:
        """Name, version, limits and health of the cluster."""
        return wire.cluster_from(await self._call("GetCluster", fe.GetClusterRequest(), fe.ClusterInfo))

    async def list_nodes(self) -> list[Node]:
        """All nodes."""
        answer = await self._call("ListNodes", fe.ListNodesRequest(), ty.NodeList)
        return [wire.node_from(message) for message in answer.nodes]

    async def get_node(self, name: str) -> Node:
        """Raises NotFoundError."""
        return wire.node_from((await self._call("GetNode", fe.GetNodeRequest(name=name), fe.GetNodeResponse)).node)

    async def list_executors(self, session_id: str = "", node: str = "") -> list[Executor]:
        """All executors, or those of a session or a node."""
        request = fe.ListExecutorRequest(session_id=session_id, node=node)
        answer = await self._call("ListExecutor", request, ty.ExecutorList)
        return [wire.executor_from(message) for message in answer.executors]

    async def get_executor(self, executor_id: str) -> Executor:
        """Raises NotFoundError."""
        request = fe.GetExecutorRequest(executor_id=executor_id)
        return wire.executor_from(await self._call("GetExecutor", request, ty.Executor))

    async def cordon_node(self, name: str) -> Node:
        """The node gets no new executors from now on. Raises NotFoundError."""
        return await self._mark_node(name, "cordon")

    async def drain_node(self, name: str, grace: float | timedelta | None = 30.0) -> Node:
        """As cordon_node, and the executors on it leave: when their running tasks have ended, at the latest after
        `grace` seconds (None = the cluster's grace time of preemption). Raises NotFoundError, InvalidArgumentError."""
        return await self._mark_node(name, "drain", None if grace is None else milliseconds("grace", grace, least=0))

    async def uncordon_node(self, name: str) -> Node:
        """The node takes executors again. Raises NotFoundError."""
        return await self._mark_node(name, "uncordon")

    async def _mark_node(self, name: str, mark: str, grace_ms: int | None = None) -> Node:
        request = fe.MarkNodeRequest(name=name, mark=mark, grace_ms=grace_ms)
        return wire.node_from(await self._call("MarkNode", request, ty.Node))

    # --- tenants -----------------------------------------------------------------------------------------------------

    async def create_tenant(
        self,
        name: str,
        *,
        parent: str = "",
        weight: float = 1.0,
        guarantee: ResourceRequirement | str | None = None,
        quota: TenantQuota | None = None,
        description: str = "",
    ) -> Tenant:
        """A new tenant below `parent` (empty = at the top); `guarantee` may also be text such as `cpu=4,mem=8g`.

        Raises AlreadyExistsError, NotFoundError (no such parent), InvalidArgumentError.
        """
        spec = wire.tenant_to(
            ty.TenantSpec(), parent=parent, weight=weight, guarantee=guarantee, quota=quota, description=description
        )
        return wire.tenant_from(
            await self._call("CreateTenant", fe.CreateTenantRequest(name=name, tenant=spec), ty.Tenant)
        )

    async def update_tenant(
        self,
        name: str,
        *,
        parent: str | None = None,
        weight: float | None = None,
        guarantee: ResourceRequirement | str | None = None,
        quota: TenantQuota | None = None,
        description: str | None = None,
    ) -> Tenant:
        """Change what is given and leave the rest; a `quota` replaces all limits, `TenantQuota()` lifts them.

        Raises NotFoundError, InvalidArgumentError.
        """
        known = await self._call("GetTenant", fe.GetTenantRequest(name=name), ty.Tenant)
        spec = wire.tenant_to(
            known.spec, parent=parent, weight=weight, guarantee=guarantee, quota=quota, description=description
        )
        return wire.tenant_from(
            await self._call("UpdateTenant", fe.UpdateTenantRequest(name=name, tenant=spec), ty.Tenant)
        )

    async def delete_tenant(self, name: str) -> None:
        """Remove a tenant. Raises NotFoundError, InvalidStateError (it has open sessions, or tenants below it)."""
        await self._call("DeleteTenant", fe.DeleteTenantRequest(name=name), ty.Tenant)

    async def get_tenant(self, name: str) -> Tenant:
        """Raises NotFoundError."""
        return wire.tenant_from(await self._call("GetTenant", fe.GetTenantRequest(name=name), ty.Tenant))

    async def list_tenants(self) -> list[Tenant]:
        """All tenants, and what each of them uses."""
        answer = await self._call("ListTenants", fe.ListTenantsRequest(), ty.TenantList)
        return [wire.tenant_from(message) for message in answer.tenants]

    # --- sessions --------------------------------------------------------------------------------------------------

    async def create_session(self, attrs: SessionAttributes | str, **options: Any) -> AsyncSession:
        """A new session, described by attributes, or by an application's name and attributes as keywords.

        Raises AlreadyExistsError, NotFoundError (no such application), InvalidArgumentError.
        """
        attrs = session_attributes(attrs, options)
        session_id = attrs.id or short_name(attrs.application)
        spec = wire.session_to(attrs)
        if parcels.wanted(len(spec.common_data), self.uplink.max_payload, self.addr):
            spec.common_data = await asyncio.to_thread(parcels.pack, session_id, spec.common_data, self.addr)
        try:
            message = await self._call(
                "CreateSession", fe.CreateSessionRequest(session_id=session_id, session=spec), ty.Session
            )
        except UnavailableError as error:
            if not self.uplink.broken(error):
                raise
            # The connection broke: it may have been created. Opening with a spec does the right thing either way.
            message = await self._call(
                "OpenSession", fe.OpenSessionRequest(session_id=session_id, session=spec), ty.Session
            )
        return AsyncSession(self, message)

    async def open_session(self, session_id: str, spec: SessionAttributes | None = None) -> AsyncSession:
        """The open session of that id; with a spec it is created when it does not exist, and compared when it does.

        Raises NotFoundError, InvalidStateError (it is closed), InvalidArgumentError (it differs from the spec).
        """
        request = fe.OpenSessionRequest(session_id=session_id)
        if spec is not None:
            request.session.CopyFrom(wire.session_to(spec))
        return AsyncSession(self, await self._call("OpenSession", request, ty.Session))

    async def get_session(self, session_id: str) -> AsyncSession:
        """The session of that id, open or closed. Raises NotFoundError."""
        request = fe.GetSessionRequest(session_id=session_id)
        return AsyncSession(self, await self._call("GetSession", request, ty.Session))

    async def list_sessions(
        self,
        states: Sequence[SessionState] = (),
        application: str = "",
        labels: Mapping[str, str] | None = None,
    ) -> list[AsyncSession]:
        """All sessions that match: in one of the states, of the application, with all of the labels."""
        found: list[AsyncSession] = []
        token = ""
        while True:
            request = fe.ListSessionRequest(
                states=[ty.SessionState.Name(state) for state in states],
                application=application,
                labels=labels,
                page_size=_PAGE,
                page_token=token,
            )
            answer = await self._call("ListSession", request, ty.SessionList)
            found.extend(AsyncSession(self, message) for message in answer.sessions)
            token = answer.next_page_token
            if not token:
                return found

    async def close_session(self, session_id: str, *, force: bool = False) -> AsyncSession:
        """Close a session: its pending tasks are cancelled. Closing a closed one does nothing.

        While tasks run this is refused with InvalidStateError, unless `force`, which cancels them too.
        """
        request = fe.CloseSessionRequest(session_id=session_id, force=force)
        return AsyncSession(self, await self._call("CloseSession", request, ty.Session))

    async def delete_session(self, session_id: str) -> None:
        """Remove a closed session with its tasks and results. Raises NotFoundError, InvalidStateError."""
        await self._call("DeleteSession", fe.DeleteSessionRequest(session_id=session_id), ty.Session)

    # --- what happens ------------------------------------------------------------------------------------------------

    async def logs(
        self,
        session_id: str = "",
        *,
        executor_id: str = "",
        stream: str = "",
        follow: bool = False,
        tail_bytes: int = 0,
    ) -> AsyncIterator[LogChunk]:
        """What the instances of a session, or of one executor, printed; see AsyncSession.logs."""
        request = fe.GetLogsRequest(
            session_id=session_id, executor_id=executor_id, stream=stream, follow=follow, tail_bytes=tail_bytes
        )
        async with aclosing(read_logs(self.uplink, request)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def explain(self, session_id: str, task_id: str = "") -> Explanation:
        """Why a session gets no (further) executor, or what happened to a task. Raises NotFoundError."""
        request = fe.ExplainRequest(session_id=session_id, task_id=str(task_id or ""))
        return wire.explanation_from(await self._call("Explain", request, fe.Explanation))

    # --- inside ------------------------------------------------------------------------------------------------------

    async def _call(self, method: str, request: Message, reply: type[M]) -> M:
        return await self.uplink.call(method, request, reply, self.call_timeout)

    async def _change(self, method: str, request: Message) -> None:
        """Calls that answer a Result. Servers that say no more than that it failed leave its code open."""
        result = await self._call(method, request, ty.Result)
        if result.return_code != 0:
            code = result.error_code if result.HasField("error_code") else FlameErrorCode.INTERNAL
            raise error_of(code, result.message or f"{method} failed with code {result.return_code}", result.remedy)


def session_attributes(attrs: SessionAttributes | str, options: Mapping[str, Any]) -> SessionAttributes:
    """Attributes from the two ways to give them. Raises InvalidArgumentError."""
    if isinstance(attrs, SessionAttributes):
        if options:
            raise InvalidArgumentError("give either SessionAttributes or an application's name with keywords")
        return attrs
    try:
        return SessionAttributes(attrs, **{"id" if key == "session_id" else key: v for key, v in options.items()})
    except TypeError as error:
        raise InvalidArgumentError(f"invalid attributes of a session: {error}") from error

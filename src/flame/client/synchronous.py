"""The synchronous SDK: a facade over the asynchronous one, whose event loop runs in a thread of its own.

Calls are handed to that thread and waited for. The way of a task is shorter: `submit` and `map` put it into the
stream's buffer themselves, and the future is settled by the thread of the loop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from types import EllipsisType
from typing import Any, Self

from flame.client.async_connection import CONNECT_TIMEOUT, AsyncConnection
from flame.client.async_session import AsyncSession
from flame.client.background import LoopThread, Pull, loop_thread
from flame.client.endpoints import resolve
from flame.client.pending import period_of
from flame.client.synchronous_session import Session
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
)
from flame.model.states import SessionState


def connect(
    addr: str | None = None,
    tls_config: FlameClientTls | None = None,
    *,
    timeout: float = CONNECT_TIMEOUT,
    call_timeout: float = CALL_TIMEOUT,
    reconnect_timeout: float | None = RECONNECT_TIMEOUT,
    pending_warning: float | timedelta | EllipsisType | None = ...,
    instance_token: bool = True,
) -> Connection:
    """Connect to a cluster.

    `addr` is `http://host:port`, `https://host:port`, `unix:/path`, or None: the configured cluster, else the local
    one, which is started when it does not run. All times in seconds: `timeout` for connecting, `call_timeout` for each
    call, `reconnect_timeout` after which everything that waits fails when the cluster is gone (None = never).
    When a session's tasks have waited for `pending_warning` seconds and none runs, the logger `flame.client` warns and
    says why (None = never; by default what FLAME_PENDING_WARNING says, else 5).
    Inside an instance its token is shown, which is good for its own session and nothing else; without `instance_token`
    it is whoever its socket or certificate says.
    Raises UnavailableError, UnauthenticatedError, InvalidConfigError.
    """
    warning = period_of(pending_warning)
    endpoint = resolve(addr, tls_config)
    thread = loop_thread()

    async def open_() -> AsyncConnection:
        uplink = Uplink(
            endpoint,
            reconnect_timeout=reconnect_timeout,
            pending_warning=warning,
            wake=thread.loop.call_soon_threadsafe,
            instance_token=instance_token,
        )
        await uplink.open(timeout)
        return AsyncConnection(uplink, call_timeout)

    return Connection(thread.run(open_()), thread)


class Connection:
    """A connection to one cluster, usable by several threads; made by `connect`. As a context manager it is closed
    at the end."""

    def __init__(self, connection: AsyncConnection, thread: LoopThread) -> None:
        self.asynchronous = connection
        self.thread = thread
        self._run = thread.run

    @classmethod
    def connect(cls, addr: str | None = None, tls_config: FlameClientTls | None = None) -> Connection:
        """The same as the function `connect`."""
        return connect(addr, tls_config)

    @property
    def addr(self) -> str:
        """The address that was connected to."""
        return self.asynchronous.addr

    @property
    def connected(self) -> bool:
        """Whether the cluster can be reached, as far as is known now. Calls wait until it can."""
        return self.asynchronous.connected

    @property
    def max_payload(self) -> int:
        """Bytes that inputs, outputs and common data may have, each. What is larger needs an object cache."""
        return self.asynchronous.max_payload

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection. Unfinished futures fail here; their tasks go on in the cluster."""
        self._run(self.asynchronous.close())

    # --- applications ------------------------------------------------------------------------------------------------

    def register_application(self, name: str, app_attrs: ApplicationAttributes | Mapping[str, Any]) -> None:
        """Raises AlreadyExistsError, InvalidArgumentError."""
        self._run(self.asynchronous.register_application(name, app_attrs))

    def update_application(self, name: str, app_attrs: ApplicationAttributes | Mapping[str, Any]) -> None:
        """Replace the attributes. Raises NotFoundError, InvalidArgumentError, InvalidStateError (open sessions)."""
        self._run(self.asynchronous.update_application(name, app_attrs))

    def unregister_application(self, name: str) -> None:
        """Forget it and its closed sessions; an unknown one is no error. Raises InvalidStateError while it has open
        sessions."""
        self._run(self.asynchronous.unregister_application(name))

    def list_applications(self) -> list[Application]:
        """All registered applications."""
        return self._run(self.asynchronous.list_applications())

    def get_application(self, name: str) -> Application | None:
        """The application of that name, None when there is none."""
        return self._run(self.asynchronous.get_application(name))

    # --- the cluster -------------------------------------------------------------------------------------------------

    def get_cluster(self) -> ClusterInfo:
        """Name, version, limits and health of the cluster."""
        return self._run(self.asynchronous.get_cluster())

    def list_nodes(self) -> list[Node]:
        """All nodes."""
        return self._run(self.asynchronous.list_nodes())

    def get_node(self, name: str) -> Node:
        """Raises NotFoundError."""
        return self._run(self.asynchronous.get_node(name))

    def list_executors(self, session_id: str = "", node: str = "") -> list[Executor]:
        """All executors, or those of a session or a node."""
        return self._run(self.asynchronous.list_executors(session_id, node))

    def get_executor(self, executor_id: str) -> Executor:
        """Raises NotFoundError."""
        return self._run(self.asynchronous.get_executor(executor_id))

    def cordon_node(self, name: str) -> Node:
        """The node gets no new executors from now on. Raises NotFoundError."""
        return self._run(self.asynchronous.cordon_node(name))

    def drain_node(self, name: str, grace: float | timedelta | None = 30.0) -> Node:
        """As cordon_node, and the executors on it leave: when their running tasks have ended, at the latest after
        `grace` seconds (None = the cluster's grace time of preemption). Raises NotFoundError, InvalidArgumentError."""
        return self._run(self.asynchronous.drain_node(name, grace))

    def uncordon_node(self, name: str) -> Node:
        """The node takes executors again. Raises NotFoundError."""
        return self._run(self.asynchronous.uncordon_node(name))

    # --- tenants -----------------------------------------------------------------------------------------------------

    def create_tenant(
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
        return self._run(
            self.asynchronous.create_tenant(
                name, parent=parent, weight=weight, guarantee=guarantee, quota=quota, description=description
            )
        )

    def update_tenant(
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
        return self._run(
            self.asynchronous.update_tenant(
                name, parent=parent, weight=weight, guarantee=guarantee, quota=quota, description=description
            )
        )

    def delete_tenant(self, name: str) -> None:
        """Remove a tenant. Raises NotFoundError, InvalidStateError (it has open sessions, or tenants below it)."""
        self._run(self.asynchronous.delete_tenant(name))

    def get_tenant(self, name: str) -> Tenant:
        """Raises NotFoundError."""
        return self._run(self.asynchronous.get_tenant(name))

    def list_tenants(self) -> list[Tenant]:
        """All tenants, and what each of them uses."""
        return self._run(self.asynchronous.list_tenants())

    # --- sessions --------------------------------------------------------------------------------------------------

    def create_session(self, attrs: SessionAttributes | str, **options: Any) -> Session:
        """A new session, described by attributes, or by an application's name and attributes as keywords.

        Raises AlreadyExistsError, NotFoundError (no such application), InvalidArgumentError.
        """
        return self._session(self._run(self.asynchronous.create_session(attrs, **options)))

    def open_session(self, session_id: str, spec: SessionAttributes | None = None) -> Session:
        """The open session of that id; with a spec it is created when it does not exist, and compared when it does.

        Raises NotFoundError, InvalidStateError (it is closed), InvalidArgumentError (it differs from the spec).
        """
        return self._session(self._run(self.asynchronous.open_session(session_id, spec)))

    def get_session(self, session_id: str) -> Session:
        """The session of that id, open or closed. Raises NotFoundError."""
        return self._session(self._run(self.asynchronous.get_session(session_id)))

    def list_sessions(
        self,
        states: Sequence[SessionState] = (),
        application: str = "",
        labels: Mapping[str, str] | None = None,
    ) -> list[Session]:
        """All sessions that match: in one of the states, of the application, with all of the labels."""
        found = self._run(self.asynchronous.list_sessions(states, application, labels))
        return [self._session(session) for session in found]

    def close_session(self, session_id: str, *, force: bool = False) -> Session:
        """Close a session: its pending tasks are cancelled. Closing a closed one does nothing.

        While tasks run this is refused with InvalidStateError, unless `force`, which cancels them too.
        """
        return self._session(self._run(self.asynchronous.close_session(session_id, force=force)))

    def delete_session(self, session_id: str) -> None:
        """Remove a closed session with its tasks and results. Raises NotFoundError, InvalidStateError."""
        self._run(self.asynchronous.delete_session(session_id))

    # --- what happens ------------------------------------------------------------------------------------------------

    def logs(
        self,
        session_id: str = "",
        *,
        executor_id: str = "",
        stream: str = "",
        follow: bool = False,
        tail_bytes: int = 0,
    ) -> Pull[LogChunk]:
        """What the instances of a session, or of one executor, printed; see Session.logs."""
        chunks = self.asynchronous.logs(
            session_id, executor_id=executor_id, stream=stream, follow=follow, tail_bytes=tail_bytes
        )
        return Pull(self.thread, chunks)

    def explain(self, session_id: str, task_id: str = "") -> Explanation:
        """Why a session gets no (further) executor, or what happened to a task. Raises NotFoundError."""
        return self._run(self.asynchronous.explain(session_id, task_id))

    def _session(self, session: AsyncSession) -> Session:
        return Session(self, session)

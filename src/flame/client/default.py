"""The functions of the module: calls on one connection of the process, made at the first call."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from flame.client.synchronous import Connection, Session, connect
from flame.client.values import (
    Application,
    ApplicationAttributes,
    ClusterInfo,
    Executor,
    Located,
    Node,
    ResourceRequirement,
    SessionAttributes,
    Tenant,
    TenantQuota,
)
from flame.model.specs import TaskOptions
from flame.model.states import SessionState


class ConnectionInstance:
    """The connection that the functions below use."""

    _lock = threading.Lock()
    _connection: Connection | None = None
    _process = 0

    @classmethod
    def instance(cls) -> Connection:
        """It, made when there is none in this process. Raises what `connect` raises."""
        with cls._lock:
            if cls._connection is None or cls._process != os.getpid():
                cls._connection = connect()
                cls._process = os.getpid()
            return cls._connection

    @classmethod
    def close(cls) -> None:
        """End it, if there is one; the next use connects again."""
        with cls._lock:
            connection, cls._connection = cls._connection, None
            if connection is not None and cls._process == os.getpid():
                connection.close()


def create_session(
    application: str,
    common_data: bytes | None = None,
    session_id: str | None = None,
    min_instances: int = 0,
    max_instances: int | None = None,
    batch_size: int = 1,
    resreq: ResourceRequirement | str | None = None,
    *,
    priority: int = 0,
    labels: dict[str, str] | None = None,
    task_defaults: TaskOptions | None = None,
    retention: int | None = None,
    max_running_per_key: int = 0,
    tenant: str = "",
    gang: bool = False,
    topology: str = "",
    on_member_loss: str = "",
    selector: dict[str, str] | None = None,
    tolerations: Sequence[str] = (),
    prefer_nodes: Sequence[str | Located] = (),
) -> Session:
    """A new session of an application; see SessionAttributes for what the arguments mean."""
    attrs = SessionAttributes(
        application=application,
        id=session_id,
        common_data=common_data,
        min_instances=min_instances,
        max_instances=max_instances,
        batch_size=batch_size,
        resreq=resreq,
        priority=priority,
        labels=labels or {},
        task_defaults=task_defaults,
        retention=retention,
        max_running_per_key=max_running_per_key,
        tenant=tenant,
        gang=gang,
        topology=topology,
        on_member_loss=on_member_loss,
        selector=selector or {},
        tolerations=tolerations,
        prefer_nodes=prefer_nodes,
    )
    return ConnectionInstance.instance().create_session(attrs)


def open_session(session_id: str, spec: SessionAttributes | None = None) -> Session:
    """See Connection.open_session."""
    return ConnectionInstance.instance().open_session(session_id, spec)


def get_session(session_id: str) -> Session:
    """See Connection.get_session."""
    return ConnectionInstance.instance().get_session(session_id)


def list_sessions(
    states: Sequence[SessionState] = (), application: str = "", labels: Mapping[str, str] | None = None
) -> list[Session]:
    """See Connection.list_sessions."""
    return ConnectionInstance.instance().list_sessions(states, application, labels)


def close_session(session_id: str, *, force: bool = False) -> Session:
    """See Connection.close_session."""
    return ConnectionInstance.instance().close_session(session_id, force=force)


def delete_session(session_id: str) -> None:
    """See Connection.delete_session."""
    ConnectionInstance.instance().delete_session(session_id)


def register_application(name: str, app_attrs: ApplicationAttributes | Mapping[str, Any]) -> None:
    """See Connection.register_application."""
    ConnectionInstance.instance().register_application(name, app_attrs)


def update_application(name: str, app_attrs: ApplicationAttributes | Mapping[str, Any]) -> None:
    """See Connection.update_application."""
    ConnectionInstance.instance().update_application(name, app_attrs)


def unregister_application(name: str) -> None:
    """See Connection.unregister_application."""
    ConnectionInstance.instance().unregister_application(name)


def list_applications() -> list[Application]:
    """See Connection.list_applications."""
    return ConnectionInstance.instance().list_applications()


def get_application(name: str) -> Application | None:
    """See Connection.get_application."""
    return ConnectionInstance.instance().get_application(name)


def list_executors(session_id: str = "", node: str = "") -> list[Executor]:
    """See Connection.list_executors."""
    return ConnectionInstance.instance().list_executors(session_id, node)


def get_executor(executor_id: str) -> Executor:
    """See Connection.get_executor."""
    return ConnectionInstance.instance().get_executor(executor_id)


def list_nodes() -> list[Node]:
    """See Connection.list_nodes."""
    return ConnectionInstance.instance().list_nodes()


def get_node(name: str) -> Node:
    """See Connection.get_node."""
    return ConnectionInstance.instance().get_node(name)


def cordon_node(name: str) -> Node:
    """See Connection.cordon_node."""
    return ConnectionInstance.instance().cordon_node(name)


def drain_node(name: str, grace: float | timedelta | None = 30.0) -> Node:
    """See Connection.drain_node."""
    return ConnectionInstance.instance().drain_node(name, grace)


def uncordon_node(name: str) -> Node:
    """See Connection.uncordon_node."""
    return ConnectionInstance.instance().uncordon_node(name)


def create_tenant(
    name: str,
    *,
    parent: str = "",
    weight: float = 1.0,
    guarantee: ResourceRequirement | str | None = None,
    quota: TenantQuota | None = None,
    description: str = "",
) -> Tenant:
    """See Connection.create_tenant."""
    return ConnectionInstance.instance().create_tenant(
        name, parent=parent, weight=weight, guarantee=guarantee, quota=quota, description=description
    )


def update_tenant(
    name: str,
    *,
    parent: str | None = None,
    weight: float | None = None,
    guarantee: ResourceRequirement | str | None = None,
    quota: TenantQuota | None = None,
    description: str | None = None,
) -> Tenant:
    """See Connection.update_tenant."""
    return ConnectionInstance.instance().update_tenant(
        name, parent=parent, weight=weight, guarantee=guarantee, quota=quota, description=description
    )


def delete_tenant(name: str) -> None:
    """See Connection.delete_tenant."""
    ConnectionInstance.instance().delete_tenant(name)


def get_tenant(name: str) -> Tenant:
    """See Connection.get_tenant."""
    return ConnectionInstance.instance().get_tenant(name)


def list_tenants() -> list[Tenant]:
    """See Connection.list_tenants."""
    return ConnectionInstance.instance().list_tenants()


def get_cluster() -> ClusterInfo:
    """See Connection.get_cluster."""
    return ConnectionInstance.instance().get_cluster()

"""Flame: a distributed engine for elastic AI workloads.

Names are loaded when they are first used, so that importing the package costs next to nothing.
"""

from __future__ import annotations

from flame._version import __version__

TYPE_CHECKING = False  # as typing's, without its import
if TYPE_CHECKING:
    from typing import Any

    from flame import aio as aio
    from flame.client.context import (
        FlameClientCache,
        FlameClusterConfig,
        FlameContext,
        FlameContextRunner,
        FlamePackage,
    )
    from flame.client.default import (
        ConnectionInstance,
        close_session,
        cordon_node,
        create_session,
        create_tenant,
        delete_session,
        delete_tenant,
        drain_node,
        get_application,
        get_cluster,
        get_executor,
        get_node,
        get_session,
        get_tenant,
        list_applications,
        list_executors,
        list_nodes,
        list_sessions,
        list_tenants,
        open_session,
        register_application,
        uncordon_node,
        unregister_application,
        update_application,
        update_tenant,
    )
    from flame.client.futures import TaskFuture
    from flame.client.synchronous import Connection, connect
    from flame.client.synchronous_session import Session, TaskIterator, TaskWatcher, as_completed
    from flame.client.values import (
        DEFAULT_FLAME_CACHE_ENDPOINT,
        DEFAULT_FLAME_CONF,
        DEFAULT_FLAME_ENDPOINT,
        DEFAULT_FLAME_RUNNER_TEMPLATE,
        FLAME_INSTANCE_ENDPOINT,
        Application,
        ApplicationAttributes,
        ApplicationID,
        ApplicationSchema,
        ClusterInfo,
        CommonData,
        Event,
        Explanation,
        FlameClientTls,
        LogChunk,
        Message,
        Node,
        Reason,
        ResourceRequirement,
        SessionAttributes,
        SessionID,
        SessionUpdate,
        Task,
        TaskID,
        TaskInformer,
        TaskInput,
        TaskOutput,
        Tenant,
        TenantQuota,
        short_name,
    )
    from flame.model.errors import (
        AlreadyExistsError,
        ExhaustedError,
        FlameError,
        FlameErrorCode,
        InternalError,
        InvalidArgumentError,
        InvalidConfigError,
        InvalidStateError,
        NotFoundError,
        PermissionDeniedError,
        ProtocolError,
        ReadOnlyError,
        TaskCancelledError,
        TaskFailedError,
        TimedOutError,
        TooLargeError,
        UnauthenticatedError,
        UnavailableError,
    )
    from flame.model.isolation import Limits
    from flame.model.specs import Gang, TaskOptions
    from flame.model.states import ApplicationState, ExecutorState, NodeState, SessionState, Shim, TaskState
    from flame.objects import (
        ObjectKey,
        ObjectRef,
        delete_objects,
        download_object,
        get,
        get_object,
        patch_object,
        put,
        put_object,
        update_object,
        upload_object,
    )
    from flame.runner import (
        Executor,
        ObjectFuture,
        RemoteFunction,
        Runner,
        RunnerService,
        StateLostError,
        function,
        progress,
        register_joblib,
    )
    from flame.sandbox import Sandbox, SandboxLostError
    from flame.service import (
        ApplicationContext,
        FlameService,
        GangContext,
        SessionContext,
        TaskCancelled,
        TaskContext,
        run,
    )

__all__ = [
    "DEFAULT_FLAME_CACHE_ENDPOINT",
    "DEFAULT_FLAME_CONF",
    "DEFAULT_FLAME_ENDPOINT",
    "DEFAULT_FLAME_RUNNER_TEMPLATE",
    "FLAME_INSTANCE_ENDPOINT",
    "AlreadyExistsError",
    "Application",
    "ApplicationAttributes",
    "ApplicationContext",
    "ApplicationID",
    "ApplicationSchema",
    "ApplicationState",
    "ClusterInfo",
    "CommonData",
    "Connection",
    "ConnectionInstance",
    "Event",
    "Executor",
    "ExecutorState",
    "ExhaustedError",
    "Explanation",
    "FlameClientCache",
    "FlameClientTls",
    "FlameClusterConfig",
    "FlameContext",
    "FlameContextRunner",
    "FlameError",
    "FlameErrorCode",
    "FlamePackage",
    "FlameService",
    "Gang",
    "GangContext",
    "InternalError",
    "InvalidArgumentError",
    "InvalidConfigError",
    "InvalidStateError",
    "Limits",
    "LogChunk",
    "Message",
    "Node",
    "NodeState",
    "NotFoundError",
    "ObjectFuture",
    "ObjectKey",
    "ObjectRef",
    "PermissionDeniedError",
    "ProtocolError",
    "ReadOnlyError",
    "Reason",
    "RemoteFunction",
    "ResourceRequirement",
    "Runner",
    "RunnerService",
    "Sandbox",
    "SandboxLostError",
    "Session",
    "SessionAttributes",
    "SessionContext",
    "SessionID",
    "SessionState",
    "SessionUpdate",
    "Shim",
    "StateLostError",
    "Task",
    "TaskCancelled",
    "TaskCancelledError",
    "TaskContext",
    "TaskFailedError",
    "TaskFuture",
    "TaskID",
    "TaskInformer",
    "TaskInput",
    "TaskIterator",
    "TaskOptions",
    "TaskOutput",
    "TaskState",
    "TaskWatcher",
    "Tenant",
    "TenantQuota",
    "TimedOutError",
    "TooLargeError",
    "UnauthenticatedError",
    "UnavailableError",
    "__version__",
    "aio",
    "as_completed",
    "close_session",
    "connect",
    "cordon_node",
    "create_session",
    "create_tenant",
    "delete_objects",
    "delete_session",
    "delete_tenant",
    "download_object",
    "drain_node",
    "function",
    "get",
    "get_application",
    "get_cluster",
    "get_executor",
    "get_node",
    "get_object",
    "get_session",
    "get_tenant",
    "list_applications",
    "list_executors",
    "list_nodes",
    "list_sessions",
    "list_tenants",
    "open_session",
    "patch_object",
    "progress",
    "put",
    "put_object",
    "register_application",
    "register_joblib",
    "run",
    "short_name",
    "uncordon_node",
    "unregister_application",
    "update_application",
    "update_object",
    "update_tenant",
    "upload_object",
]

# Where each name comes from; a test asks for all of them.
_SOURCES = {
    "flame.client.context": "FlameClientCache FlameClusterConfig FlameContext FlameContextRunner FlamePackage",
    "flame.client.default": (
        "ConnectionInstance close_session cordon_node create_session create_tenant delete_session delete_tenant "
        "drain_node get_application get_cluster get_executor get_node get_session get_tenant list_applications "
        "list_executors list_nodes list_sessions list_tenants open_session register_application uncordon_node "
        "unregister_application update_application update_tenant"
    ),
    "flame.client.futures": "TaskFuture",
    "flame.client.synchronous": "Connection connect",
    "flame.client.synchronous_session": "Session TaskIterator TaskWatcher as_completed",
    "flame.client.values": (
        "DEFAULT_FLAME_CACHE_ENDPOINT DEFAULT_FLAME_CONF DEFAULT_FLAME_ENDPOINT DEFAULT_FLAME_RUNNER_TEMPLATE "
        "FLAME_INSTANCE_ENDPOINT Application ApplicationAttributes ApplicationID ApplicationSchema ClusterInfo "
        "CommonData Event Explanation FlameClientTls LogChunk Message Node Reason "
        "ResourceRequirement SessionAttributes SessionID SessionUpdate Task TaskID TaskInformer TaskInput "
        "TaskOutput Tenant TenantQuota short_name"
    ),
    "flame.model.errors": (
        "AlreadyExistsError ExhaustedError FlameError FlameErrorCode InternalError InvalidArgumentError "
        "InvalidConfigError InvalidStateError NotFoundError PermissionDeniedError ProtocolError ReadOnlyError "
        "TaskCancelledError TaskFailedError TimedOutError TooLargeError UnauthenticatedError UnavailableError"
    ),
    "flame.model.isolation": "Limits",
    "flame.model.specs": "Gang TaskOptions",
    "flame.model.states": "ApplicationState ExecutorState NodeState SessionState Shim TaskState",
    "flame.objects": (
        "ObjectKey ObjectRef delete_objects download_object get get_object patch_object put put_object update_object "
        "upload_object"
    ),
    "flame.runner": (
        "Executor ObjectFuture RemoteFunction Runner RunnerService StateLostError function progress register_joblib"
    ),
    "flame.sandbox": "Sandbox SandboxLostError",
    "flame.service": "ApplicationContext FlameService GangContext SessionContext TaskCancelled TaskContext run",
}
_SOURCE_OF = {name: module for module, names in _SOURCES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    module = _SOURCE_OF.get(name)
    if module is None:
        if name in ("aio", "local", "objects", "runner", "sandbox", "typed"):
            return import_module(f"flame.{name}")
        raise AttributeError(f"module 'flame' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(module), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""Who may do what: one table. Names are those of the calls of Frontend and of what links carry."""

from __future__ import annotations

from flame.model.errors import PermissionDeniedError
from flame.security.identity import Identity, Role

_ADMINS = frozenset({Role.ADMIN})
_CLIENTS = _ADMINS | {Role.CLIENT}
_EVERYBODY = _CLIENTS | {Role.NODE, Role.INSTANCE}
_SESSION = _CLIENTS | {Role.INSTANCE}  # an instance: in its own session only
_NODES = _ADMINS | {Role.NODE}
_CERTIFIED = _CLIENTS | {Role.NODE}

TABLE: dict[str, frozenset[Role]] = {
    # applications
    "RegisterApplication": _CLIENTS,
    "UpdateApplication": _CLIENTS,
    "UnregisterApplication": _CLIENTS,
    "GetApplication": _CLIENTS,
    "ListApplication": _CLIENTS,
    # the cluster
    "GetCluster": _EVERYBODY,
    "ListNodes": _CLIENTS,
    "GetNode": _CLIENTS,
    "ListExecutor": _CLIENTS,
    "GetExecutor": _CLIENTS,
    "MarkNode": _ADMINS,
    "GetTenant": _CLIENTS,
    "ListTenants": _CLIENTS,
    "CreateTenant": _ADMINS,
    "UpdateTenant": _ADMINS,
    "DeleteTenant": _ADMINS,
    # sessions
    "CreateSession": _CLIENTS,
    "OpenSession": _SESSION,
    "CloseSession": _CLIENTS,
    "DeleteSession": _CLIENTS,
    "GetSession": _SESSION,
    "ListSession": _CLIENTS,
    "WatchSession": _SESSION,
    "GetLogs": _SESSION,
    "Explain": _SESSION,
    # tasks
    "CreateTask": _SESSION,
    "GetTask": _SESSION,
    "WatchTask": _SESSION,
    "ListTask": _SESSION,
    "CancelTask": _SESSION,
    # links: what HELLO asks for, and sessions attached on them
    "ClientLink": _SESSION,
    "NodeLink": _NODES,
    "Attach": _SESSION,
    # over HTTP: probes, and what is counted
    "Health": _CERTIFIED,
    "Metrics": _CLIENTS,
}

# What an instance may do that concerns no session.
_WITHOUT_SESSION = frozenset({"GetCluster", "ClientLink"})


def authorize(identity: Identity, method: str, session_id: str = "") -> None:
    """Raise PermissionDeniedError unless this identity may call `method` (on this session)."""
    if identity.role not in TABLE.get(method, frozenset()):
        raise PermissionDeniedError(f"{identity.role} {identity.name!r} may not call {method}")
    if identity.role is Role.INSTANCE and method not in _WITHOUT_SESSION and session_id != identity.session_id:
        raise PermissionDeniedError(
            f"instance {identity.name!r} may only use its own session {identity.session_id!r}, not {session_id!r}"
        )

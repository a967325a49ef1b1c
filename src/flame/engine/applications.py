"""The life of an application: registered, updated, unregistered."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flame.engine import lives
from flame.engine.cluster import Application
from flame.engine.effects import RecordKind
from flame.engine.records import ApplicationMeta, NameMeta
from flame.model.errors import AlreadyExistsError, InvalidArgumentError, InvalidStateError, NotFoundError, ReadOnlyError
from flame.model.isolation import check
from flame.model.specs import ApplicationSpec
from flame.model.states import SessionState, Shim

if TYPE_CHECKING:
    from flame.engine.cluster import Cluster
    from flame.engine.events import RegisterApplication, UnregisterApplication, UpdateApplication
    from flame.engine.turn import Draft

MAX_NAME = 253
_ALLOWED = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")


def check_name(name: str) -> None:
    """Names become parts of paths on nodes. Raises InvalidArgumentError."""
    problem = ""
    if not name:
        problem = "is empty"
    elif len(name.encode()) > MAX_NAME:
        problem = f"is longer than {MAX_NAME} bytes"
    elif name[0] in ".-":
        problem = f"begins with {name[0]!r}"
    elif ".." in name:
        problem = "holds '..'"
    else:
        wrong = next((char for char in name if char not in _ALLOWED), None)
        if wrong is not None:
            problem = f"holds {wrong!r}"
    if problem:
        raise InvalidArgumentError(
            f"application name {name[:80]!r} {problem}", remedy="use letters, digits, '-', '_' and '.'"
        )


def _check_spec(spec: ApplicationSpec) -> None:
    check(spec.isolation, spec.limits, spec.network, spec.readable_objects)
    if spec.shim is Shim.CONTAINER and not spec.image:
        raise InvalidArgumentError("shim container runs programs of an image, and there is none", remedy="set image")


def on_register(cluster: Cluster, draft: Draft, event: RegisterApplication) -> None:
    known = cluster.applications.get(event.name)
    if known is not None and event.builtin:
        if known.spec != event.spec and not _open_sessions(cluster, event.name):
            _store(cluster, draft, event.name, event.spec, known.created, known.version + 1)
        draft.reply(event.ticket)
        return
    try:
        check_name(event.name)
        _check_spec(event.spec)
        _check_writable(cluster)
        if known is not None:
            raise AlreadyExistsError(
                f"Application '{event.name}' already exists", remedy="update it, or choose another name"
            )
    except (InvalidArgumentError, AlreadyExistsError, ReadOnlyError) as error:
        draft.refuse(event.ticket, error)
        return
    _store(cluster, draft, event.name, event.spec, draft.now_ms, 1)
    draft.reply(event.ticket)


def on_update(cluster: Cluster, draft: Draft, event: UpdateApplication) -> None:
    known = cluster.applications.get(event.name)
    try:
        check_name(event.name)
        _check_spec(event.spec)
        _check_writable(cluster)
        if known is None:
            raise NotFoundError(f"Application {event.name} not found")
        _check_unused(cluster, event.name, "update")
    except (InvalidArgumentError, NotFoundError, InvalidStateError, ReadOnlyError) as error:
        draft.refuse(event.ticket, error)
        return
    _store(cluster, draft, event.name, event.spec, known.created, known.version + 1)
    draft.reply(event.ticket)


def on_unregister(cluster: Cluster, draft: Draft, event: UnregisterApplication) -> None:
    """Also forgets the closed sessions of the application. Unknown names are no error."""
    try:
        _check_writable(cluster)
        _check_unused(cluster, event.name, "unregister")
    except (InvalidStateError, ReadOnlyError) as error:
        draft.refuse(event.ticket, error)
        return
    if cluster.applications.pop(event.name, None) is not None:
        draft.record(RecordKind.APPLICATION_GONE, "", NameMeta(event.name))
        for session in [s for s in cluster.sessions.values() if s.spec.application == event.name]:
            lives.purge(cluster, draft, session)
    draft.reply(event.ticket)


def _store(cluster: Cluster, draft: Draft, name: str, spec: ApplicationSpec, created: int, version: int) -> None:
    cluster.applications[name] = Application(name, spec, created, version)
    draft.record(RecordKind.APPLICATION, "", ApplicationMeta(name, spec, created, version))


def _open_sessions(cluster: Cluster, name: str) -> int:
    return sum(s.spec.application == name and s.state is SessionState.OPEN for s in cluster.sessions.values())


def _check_unused(cluster: Cluster, name: str, verb: str) -> None:
    count = _open_sessions(cluster, name)
    if count:
        raise InvalidStateError(
            f"Cannot {verb} application '{name}': {count} open sessions in the application", remedy="close them first"
        )


def _check_writable(cluster: Cluster) -> None:
    if cluster.read_only:
        raise ReadOnlyError(f"the journal can't be written: {cluster.read_only}", remedy="free the disk and try again")

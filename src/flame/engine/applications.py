"""The life of an application: registered, updated, unregistered."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flame.engine.effects import RecordKind
from flame.engine.records import ApplicationMeta, NameMeta
from flame.model.errors import AlreadyExistsError, InvalidArgumentError, InvalidStateError, NotFoundError, ReadOnlyError
from flame.model.isolation import check, check_shim
from flame.model.specs import ApplicationSpec
from flame.model.states import ApplicationState, SessionState

if TYPE_CHECKING:
    from flame.engine.engine import Engine
    from flame.engine.events import RegisterApplication, UnregisterApplication, UpdateApplication
    from flame.engine.turn import Draft

MAX_NAME = 253
_ALLOWED = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")


class Application:
    """A registered application."""

    __slots__ = ("created", "name", "spec", "state", "version")

    def __init__(self, name: str, spec: ApplicationSpec, created: int, version: int = 1) -> None:
        self.name = name
        self.spec = spec
        self.created = created
        self.version = version
        self.state = ApplicationState.ENABLED


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


def on_register(engine: Engine, draft: Draft, event: RegisterApplication) -> None:
    known = engine.applications.get(event.name)
    if known is not None and event.builtin:
        if known.spec != event.spec and not _open_sessions(engine, event.name):
            _store(engine, draft, event.name, event.spec, known.created, known.version + 1)
        draft.reply(event.ticket)
        return
    try:
        check_name(event.name)
        check(event.spec.isolation, event.spec.limits, event.spec.network)
        check_shim(event.spec.shim, event.spec.isolation)
        _check_writable(engine)
        if known is not None:
            raise AlreadyExistsError(
                f"Application '{event.name}' already exists", remedy="update it, or choose another name"
            )
    except (InvalidArgumentError, AlreadyExistsError, ReadOnlyError) as error:
        draft.refuse(event.ticket, error)
        return
    _store(engine, draft, event.name, event.spec, draft.now_ms, 1)
    draft.reply(event.ticket)


def on_update(engine: Engine, draft: Draft, event: UpdateApplication) -> None:
    known = engine.applications.get(event.name)
    try:
        check_name(event.name)
        check(event.spec.isolation, event.spec.limits, event.spec.network)
        check_shim(event.spec.shim, event.spec.isolation)
        _check_writable(engine)
        if known is None:
            raise NotFoundError(f"Application {event.name} not found")
        _check_unused(engine, event.name, "update")
    except (InvalidArgumentError, NotFoundError, InvalidStateError, ReadOnlyError) as error:
        draft.refuse(event.ticket, error)
        return
    _store(engine, draft, event.name, event.spec, known.created, known.version + 1)
    draft.reply(event.ticket)


def on_unregister(engine: Engine, draft: Draft, event: UnregisterApplication) -> None:
    """Also forgets the closed sessions of the application. Unknown names are no error."""
    try:
        _check_writable(engine)
        _check_unused(engine, event.name, "unregister")
    except (InvalidStateError, ReadOnlyError) as error:
        draft.refuse(event.ticket, error)
        return
    if engine.applications.pop(event.name, None) is not None:
        draft.record(RecordKind.APPLICATION_GONE, "", NameMeta(event.name))
        for session in [s for s in engine.sessions.values() if s.spec.application == event.name]:
            engine.purge(draft, session)
    draft.reply(event.ticket)


def _store(engine: Engine, draft: Draft, name: str, spec: ApplicationSpec, created: int, version: int) -> None:
    engine.applications[name] = Application(name, spec, created, version)
    draft.record(RecordKind.APPLICATION, "", ApplicationMeta(name, spec, created, version))


def _open_sessions(engine: Engine, name: str) -> int:
    return sum(s.spec.application == name and s.state is SessionState.OPEN for s in engine.sessions.values())


def _check_unused(engine: Engine, name: str, verb: str) -> None:
    count = _open_sessions(engine, name)
    if count:
        raise InvalidStateError(
            f"Cannot {verb} application '{name}': {count} open sessions in the application", remedy="close them first"
        )


def _check_writable(engine: Engine) -> None:
    if engine.read_only:
        raise ReadOnlyError(f"the journal can't be written: {engine.read_only}", remedy="free the disk and try again")

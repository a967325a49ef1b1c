"""Who may do what with the objects of a cache: one function, asked by every door through which requests come.

What a request wants is looked at before anything is done. An instance has what belongs to its session, and reads what
all sessions of its application share; a node has the objects of sessions, and reads everything.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import TypeVar

import msgspec

from flame.model.errors import InvalidArgumentError, PermissionDeniedError
from flame.model.object_keys import covers
from flame.objects import messages as m
from flame.objects.keys import SHARED_SESSION, ObjectKey
from flame.objects.parcels import APPLICATION as PARCELS
from flame.security import Role

T = TypeVar("T")
PACKAGES = "pkg"
_EVERYTHING = frozenset({Role.ADMIN, Role.CLIENT})
_SHARED = (SHARED_SESSION, PACKAGES)  # what all sessions of an application read, and none of their instances changes


class Deed(StrEnum):
    """What is done with an object, or with all under a prefix."""

    READ = "read"
    CHANGE = "change"
    KEEP_HOUSE = "keep house of"  # what concerns more than one session, or the cache itself


class Visitor(msgspec.Struct, frozen=True):
    """Who asks. `application` and `session_id` are those of an instance; without a session it has nothing. `readable`
    are keys and prefixes that its application or its session let it read besides."""

    role: Role
    application: str = ""
    session_id: str = ""
    readable: tuple[str, ...] = ()


Need = tuple[Deed, str]  # and the key or prefix, empty = the cache itself


def needs_of(request: m.Request) -> list[Need]:
    """What has to be allowed for a request. Raises InvalidArgumentError for one whose body makes no sense."""
    match request:
        case m.Get():
            return [(Deed.READ, request.key)]
        case m.Put() | m.Send() | m.Commit():
            return [(Deed.CHANGE, request.key)]
        case m.Call():
            return needs_of_action(request.action, request.body)
        case m.Hello() | m.Reserve() | m.Cancel() | m.Release():
            return []  # nothing of anybody is touched


def needs_of_action(action: str, body: bytes) -> list[Need]:
    """The same for one of ACTIONS."""
    match action:
        case "DELETE":
            return [(Deed.CHANGE, body.decode(errors="replace"))]
        case "DELETE_MANY":
            return [(Deed.CHANGE, key) for key in _decoded(body, m.KeysRequest).keys]
        case "EXISTS" | "LIST":
            return [(Deed.READ, _decoded(body, m.KeyRequest).key)]
        case "TTL":
            return [(Deed.CHANGE, _decoded(body, m.TtlRequest).key)]
        case "LOCAL":
            return []
        case "END_SESSION":
            return [(Deed.KEEP_HOUSE, _decoded(body, m.TtlRequest).key)]
        case _:
            return [(Deed.KEEP_HOUSE, "")]


def check(visitor: Visitor, request: m.Request) -> None:
    """Raise PermissionDeniedError unless somebody may have what they ask for."""
    if visitor.role not in _EVERYTHING:
        authorize(visitor, needs_of(request))


def authorize(visitor: Visitor, needs: Iterable[Need]) -> None:
    """Raise PermissionDeniedError, which names the object and says where it could lie, unless all is allowed."""
    if visitor.role in _EVERYTHING:
        return
    for deed, path in needs:
        key = ObjectKey.from_path(path) if path else None
        if visitor.role is Role.NODE:
            _check_node(deed, key)
        else:
            _check_instance(visitor, deed, key)


def _check_node(deed: Deed, key: ObjectKey | None) -> None:
    of_session = key is not None and not key.is_all_sessions() and key.session_id not in _SHARED
    if deed is Deed.READ or key is None or (deed is Deed.CHANGE and of_session):
        return
    raise PermissionDeniedError(f"a node may not {deed} {str(key)!r}: that is for clients and administrators")


def _check_instance(visitor: Visitor, deed: Deed, key: ObjectKey | None) -> None:
    application, session_id = visitor.application, visitor.session_id
    if not session_id:
        raise PermissionDeniedError("this instance has no session yet, and so no objects")
    own = f"{application}/{session_id}"
    if key is None:
        raise PermissionDeniedError(f"an instance may not ask this of the cache: it has the objects of {own} only")
    mine = session_id not in _SHARED and key.session_id == session_id and key.app_name in (application, PARCELS)
    shared = key.app_name == application and key.session_id in _SHARED
    if (mine and deed is not Deed.KEEP_HOUSE) or (shared and deed is Deed.READ):
        return
    if deed is Deed.READ and any(covers(entry, str(key)) for entry in visitor.readable):
        return
    remedy = f"use {own}; what it shall only read may also be in {application}/{SHARED_SESSION}"
    if deed is Deed.READ:
        remedy += f", or be named when its session is created: readable_objects=[{key.to_prefix()!r}]"
    raise PermissionDeniedError(
        f"an instance of session {session_id!r} may not {deed} {str(key)!r}",
        remedy=remedy,
    )


def _decoded(body: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.MsgspecError as error:
        raise InvalidArgumentError(f"not a {kind.__name__}: {error}") from None

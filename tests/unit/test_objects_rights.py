"""Who may do what with the objects of a cache."""

from __future__ import annotations

import msgspec
import pytest

from flame.model.errors import InvalidArgumentError, PermissionDeniedError
from flame.objects import messages as m
from flame.objects.rights import Deed, Visitor, authorize, needs_of
from flame.security import Role

INSTANCE = Visitor(Role.INSTANCE, "app", "s1")
NODE = Visitor(Role.NODE)


def may(visitor: Visitor, deed: Deed, path: str) -> bool:
    try:
        authorize(visitor, [(deed, path)])
    except PermissionDeniedError:
        return False
    return True


@pytest.mark.parametrize("prefix", ["app/s1", "parcels/s1"])
def test_an_instance_has_what_is_of_its_session(prefix: str) -> None:
    for path in (prefix, f"{prefix}/object"):
        assert may(INSTANCE, Deed.READ, path)
        assert may(INSTANCE, Deed.CHANGE, path)
        assert not may(INSTANCE, Deed.KEEP_HOUSE, path)


@pytest.mark.parametrize("prefix", ["app/shared", "app/pkg"])
def test_an_instance_reads_what_its_application_shares(prefix: str) -> None:
    for path in (prefix, f"{prefix}/object"):
        assert may(INSTANCE, Deed.READ, path)
        assert not may(INSTANCE, Deed.CHANGE, path)


@pytest.mark.parametrize(
    "path",
    ["app/s2", "app/s2/object", "app/*", "other/s1", "other/s1/object", "other/shared", "other/pkg", "app/s1x/object",
     "parcels/s2/object", "parcels/*", "parcels/shared", "application/s1/object", ""],
)  # fmt: skip
def test_nothing_else_is_an_instances(path: str) -> None:
    assert not any(may(INSTANCE, deed, path) for deed in Deed)


@pytest.mark.parametrize(
    ("readable", "paths"),
    [
        ("data/shared", ["data/shared", "data/shared/train"]),
        ("data/s1/train", ["data/s1/train"]),
        ("models/*", ["models/*", "models/s7", "models/s7/weights", "models/shared"]),
        ("app/s2", ["app/s2", "app/s2/object"]),
    ],
)
def test_what_it_is_let_is_read_and_not_changed(readable: str, paths: list[str]) -> None:
    visitor = Visitor(Role.INSTANCE, "app", "s1", (readable, "none/such"))
    for path in paths:
        assert may(visitor, Deed.READ, path)
        assert not may(visitor, Deed.CHANGE, path)
        assert not may(visitor, Deed.KEEP_HOUSE, path)
    for path in ("data/*", "data/s1", "data/s1/train2", "data/shared2", "app/*", "modelsx/s7", "dat/shared", ""):
        assert not may(visitor, Deed.READ, path)


def test_what_it_is_let_is_nothing_without_a_session() -> None:
    assert not may(Visitor(Role.INSTANCE, "app", "", ("data/shared",)), Deed.READ, "data/shared/train")


def test_a_refusal_says_how_to_allow_it() -> None:
    with pytest.raises(PermissionDeniedError) as caught:
        authorize(INSTANCE, [(Deed.READ, "data/shared/train")])
    assert caught.value.message == "an instance of session 's1' may not read 'data/shared/train'"
    assert "readable_objects=['data/shared']" in caught.value.remedy
    with pytest.raises(PermissionDeniedError) as caught:
        authorize(INSTANCE, [(Deed.CHANGE, "data/shared/train")])
    assert "readable_objects" not in caught.value.remedy


@pytest.mark.parametrize("session_id", ["shared", "pkg"])
def test_a_session_with_the_name_of_what_is_shared_can_not_change_it(session_id: str) -> None:
    visitor = Visitor(Role.INSTANCE, "app", session_id)
    assert may(visitor, Deed.READ, f"app/{session_id}/object")
    assert not may(visitor, Deed.CHANGE, f"app/{session_id}/object")
    assert not may(visitor, Deed.READ, f"parcels/{session_id}/object")


def test_without_a_session_there_is_nothing() -> None:
    waiting = Visitor(Role.INSTANCE, "app")
    assert not any(may(waiting, deed, path) for deed in Deed for path in ("app/shared", "app/s1/object", ""))


def test_a_path_that_is_no_key_is_refused_as_such() -> None:
    for path in ("app/s1/../s2", "app", "app/s1/a/b", "app/../s1"):
        with pytest.raises(InvalidArgumentError):
            authorize(INSTANCE, [(Deed.READ, path)])


def test_a_node_has_the_objects_of_sessions_and_reads_everything() -> None:
    assert all(may(NODE, Deed.READ, path) for path in ("app/s1/object", "app/shared/object", "app/pkg/object", "app/*"))
    assert all(may(NODE, Deed.CHANGE, path) for path in ("app/s1/object", "app/s1", "parcels/s1/object"))
    assert not any(may(NODE, Deed.CHANGE, path) for path in ("app/*", "app/shared", "app/shared/object", "app/pkg/x"))
    assert may(NODE, Deed.KEEP_HOUSE, "")
    assert not any(may(NODE, Deed.KEEP_HOUSE, path) for path in ("app/s1", "app/*"))


@pytest.mark.parametrize("role", [Role.ADMIN, Role.CLIENT])
def test_clients_may_do_everything(role: Role) -> None:
    assert all(may(Visitor(role), deed, path) for deed in Deed for path in ("app/s1/object", "app/*", "app/shared", ""))


def json(body: msgspec.Struct) -> bytes:
    return msgspec.json.encode(body)


@pytest.mark.parametrize(
    ("request_", "needs"),
    [
        (m.Get("a/s/o"), [(Deed.READ, "a/s/o")]),
        (m.Put("a/s", b"", m.Options()), [(Deed.CHANGE, "a/s")]),
        (m.Send("a/s/o", m.Options(patch=True)), [(Deed.CHANGE, "a/s/o")]),
        (m.Commit(1, "a/s/o", m.Options()), [(Deed.CHANGE, "a/s/o")]),
        (m.Reserve(10), []),
        (m.Call("DELETE", b"a/*"), [(Deed.CHANGE, "a/*")]),
        (m.Call("DELETE_MANY", json(m.KeysRequest(["a/s/o", "b/t"]))), [(Deed.CHANGE, "a/s/o"), (Deed.CHANGE, "b/t")]),
        (m.Call("EXISTS", json(m.KeyRequest("a/s/o"))), [(Deed.READ, "a/s/o")]),
        (m.Call("LIST", json(m.KeyRequest("a/s", after="b/t/o"))), [(Deed.READ, "a/s")]),
        (m.Call("TTL", json(m.TtlRequest("a/s/o"))), [(Deed.CHANGE, "a/s/o")]),
        (m.Call("END_SESSION", json(m.TtlRequest("a/s"))), [(Deed.KEEP_HOUSE, "a/s")]),
        (m.Call("STAT", b""), [(Deed.KEEP_HOUSE, "")]),
        (m.Call("LOCAL", b""), []),
    ],
)  # fmt: skip
def test_what_a_request_needs(request_: m.Request, needs: list[tuple[Deed, str]]) -> None:
    assert needs_of(request_) == needs


def test_every_action_needs_something_but_the_one_that_names_the_door() -> None:
    bodies = {"DELETE": b"a/s", "DELETE_MANY": b'{"keys":["a/s/o"]}', "STAT": b"", "LOCAL": b""}
    for action in m.ACTIONS:
        needs = needs_of(m.Call(action, bodies.get(action, b'{"key":"a/s"}')))
        assert bool(needs) == (action != "LOCAL"), action


def test_an_action_that_nobody_knows_is_nothing_for_instances() -> None:
    with pytest.raises(PermissionDeniedError):
        authorize(INSTANCE, needs_of(m.Call("FORMAT", b"")))
    with pytest.raises(InvalidArgumentError):
        needs_of(m.Call("DELETE_MANY", b"[1]"))


def test_one_key_of_another_refuses_all() -> None:
    with pytest.raises(PermissionDeniedError, match="may not change 'b/s/o'"):
        authorize(INSTANCE, needs_of(m.Call("DELETE_MANY", json(m.KeysRequest(["app/s1/o", "b/s/o"])))))
